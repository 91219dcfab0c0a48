"""Attach a reducer to a model, and detach it without a trace."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from bigain.adapters._counting import count_operations
from bigain.adapters.attachment import Attachment, Setup
from bigain.adapters.base import Adapter, Part, Site, Undo
from bigain.adapters.find import AdapterSpec, match
from bigain.adapters.pass_state import BlockPlanner, modules_taken
from bigain.adapters.placement import Placement, placement_of
from bigain.adapters.progressive.merging import Step
from bigain.adapters.progressive.steps import check_progressive, install_steps, plan_steps, step_reports
from bigain.adapters.report import AttachReport, SiteReport, too_few
from bigain.adapters.selection import select_sites
from bigain.errors import SettingError, SiteError
from bigain.grid import checked_shape
from bigain.profiling.operations import Operations, on_meta
from bigain.reducers.base import Context, TokenReducer
from bigain.reducers.build import build_reducer

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)

__all__ = ["attach", "find_sites", "part_report"]


def attach(
    model: Any,
    reducer: TokenReducer | str | Mapping[str, Any],
    /,  # so that settings may have these names, too: attach(model, "cached", reducer="lgtm")
    *,
    placement: Placement | str | Mapping[str, Any] | None = None,
    layers: Sequence[int] | int | None = None,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    adapter: AdapterSpec | None = None,
    **settings: Any,
) -> AttachReport:
    """Put a reducer into a model; undo it with `report.detach()` or a `with` block.

    `print(report)` shows every site with its grid and its tokens before and after;
    `report.flops()` counts what that saves of the model's floating-point operations.
    A model that is to be compiled is compiled after attaching.

    Args:
        model: A model of a known family, or a pipeline or backbone that holds one.
        reducer: A reducer, or its name with its settings: `attach(model, "lgtm", ratio=0.5)`.
        placement: Which blocks, and which parts of them: a `Placement`, its fields as a
            mapping, or the name of a published one. Default: self-attention, in the
            blocks of the published methods.
        layers: Shorthand for a placement that says only which blocks: their indices, or
            how many of the first.
        shape: Tokens along each axis of the model's input grid (of latents, in U-Nets), where it
            is not the configured one: what the reducer is checked on and the report is about.
        seed: Seeds whatever the reducer draws at random.
        adapter: An adapter, or its name or mapping, for a model that none knows by
            itself: `{"name": "modules", "attention": "layers.*.attn", "shape": [16, 16]}`.
        settings: Settings of a reducer given by name.

    Returns:
        The modules taken, with tokens before and after.

    Raises:
        SiteError: Nothing matches, or a reducer is attached already. The model is untouched.
        SettingError: The reducer cannot do on the model's grid what it is asked to.
    """
    chosen, wanted = build_reducer(reducer, **settings), placement_of(placement, layers)
    return _install(_prepare(model, chosen, wanted, shape, _checked_seed(seed), adapter))


def _checked_seed(seed: Any) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise SettingError(f"seed is a whole number; got {seed!r}.")
    return seed


@dataclass(frozen=True)
class _Prepared:
    """What is to be put in, after all that could be refused was."""

    attachment: Attachment
    placement: Placement
    sites: list[Site]
    rows: tuple[SiteReport, ...]
    steps: tuple[Step, ...] = ()


def _prepare(
    model: Any,
    reducer: TokenReducer,
    placement: Placement,
    shape: Sequence[int] | None,
    seed: int,
    adapter: AdapterSpec | None,
) -> _Prepared:
    network, known, wanted, sites = find_sites(model, placement, adapter)
    places = tuple(_place(site) for site in sites)
    steps: tuple[Step, ...] = ()
    if wanted.removal is not None:
        check_progressive(known, reducer, wanted, sites)
    reducer.check_places(places)
    with _name_versions(known, network):
        _refuse(network, reducer, wanted, sites)
    size = known.configured_shape(network) if shape is None else checked_shape(shape)
    if wanted.removal is None:
        few = wanted.min_tokens
        rows = [part_report(known, network, size, reducer, site, part, few) for site, part in _parts(wanted, sites)]
    else:
        steps = plan_steps(known, network, size, reducer, wanted, sites)
        rows = step_reports(steps, wanted.min_tokens)
    attachment = Attachment(Setup(network, known, reducer, seed, size, places, wanted.min_tokens))
    return _Prepared(attachment, wanted, sites, tuple(rows), steps)


def _count(prepared: _Prepared, undo: Undo) -> Operations:
    """Count a forward pass of one row without and with the reducer, on a copy without values."""
    setup = prepared.attachment.setup
    both: Any = nn.Module()
    both.network, both.undo = setup.model, undo
    copied: Any = on_meta(both).eval()
    while copied.undo:  # what hooks do not show: processors and methods that attaching replaced
        copied.undo.pop()()

    def attached() -> AttachReport:
        again = _prepare(copied.network, setup.reducer, prepared.placement, setup.shape, setup.seed, setup.adapter)
        return _install(again)

    return count_operations(copied.network, setup.adapter, setup.shape, tuple(_taken(prepared)), attached)


def _taken(prepared: _Prepared) -> set[str]:
    """List the paths of all modules that are given fewer tokens."""
    if prepared.steps:  # merged tokens stay merged: every part of the blocks behind
        parts = [(step.site, part) for step in prepared.steps for part in step.site.parts]
    else:
        every = zip(_parts(prepared.placement, prepared.sites), prepared.rows, strict=True)
        parts = [place for place, row in every if not row.left_alone]
    return {path for site, part in parts for path in site.covered(part)}


def find_sites(
    model: Any, placement: Placement, adapter: AdapterSpec | None = None
) -> tuple[nn.Module, Adapter, Placement, list[Site]]:
    """Find the network in `model`, the adapter that knows it, and the blocks a placement names.

    Returns:
        The network, its adapter, the placement with its preset resolved, the blocks.

    Raises:
        SiteError: No adapter knows the model, or it has no such blocks.
    """
    network, name, known = match(model, adapter)
    with _name_versions(known, network):
        every = known.sites(network)
    wanted, sites = select_sites(known, name, every, placement)
    return network, known, wanted, sites


@contextmanager
def _name_versions(adapter: Adapter, network: nn.Module) -> Iterator[None]:
    """Say what a model lacks that its adapter needs, and which versions of its library were tested."""
    try:
        yield
    except AttributeError as error:
        library = sys.modules.get(adapter.library)
        here = f"; this is {version}" if (version := getattr(library, "__version__", "")) else ""
        raise SiteError(
            f"{type(network).__name__} is not as the adapter for {adapter.family} knows it: {error}. It was tested "
            f"with {adapter.library} {adapter.tested or 'of no stated version'}{here}."
        ) from error


def _parts(placement: Placement, sites: list[Site]) -> list[tuple[Site, Part]]:
    return [(site, part) for site in sites for part in placement.parts if part in site.parts]


def _refuse(network: nn.Module, reducer: TokenReducer, placement: Placement, sites: list[Site]) -> None:
    """Refuse what could not work, before anything is touched."""
    chosen = _parts(placement, sites)
    others = [part for part in placement.parts if part != "self"]
    if others and reducer.kinds == {"kv"}:
        raise SettingError(
            f"{reducer!r} shrinks keys and values of self-attention only; it can do nothing for {', '.join(others)}."
        )
    paths: dict[int, str] = {}
    for site, part in chosen:
        other = paths.setdefault(id(site.module(part)), site.path(part))
        if other != site.path(part):
            raise SiteError(
                f"{other} and {site.path(part)} are one module, in two places; a reducer cannot tell them apart. "
                "Choose one of them by `layers`."
            )
    occupied = modules_taken(network)
    taken = [site.path(part) for site, part in chosen if occupied.intersection(site.modules([part]))]
    if taken:
        raise SiteError(f"A reducer is attached already, at {', '.join(taken)}. Detach it first.")
    for site, part in chosen:
        site.parts[part].check(site, part, reducer, placement.weighted)


def part_report(
    adapter: Adapter,
    network: nn.Module,
    shape: tuple[int, ...],
    reducer: TokenReducer,
    site: Site,
    part: Part,
    min_tokens: int,
) -> SiteReport:
    """Say what a reducer does to one part of a block.

    Raises:
        SettingError: More than it can do on the grid there.
    """
    grid, context = adapter.grid(network, shape, site), _place(site)
    if grid.size < min_tokens:
        return SiteReport(site.path(part), grid, grid.tokens, grid.tokens, too_few(min_tokens))
    # Keys and values shrink in self-attention alone.
    whole = part != "self" and reducer.kinds_at(context) == {"kv"}
    after = grid.tokens if whole else reducer.reduced_length(grid, context)
    return SiteReport(site.path(part), grid, grid.tokens, after)


def _place(site: Site) -> Context:
    return Context(layer=site.layer, stage=site.stage)


def _install(prepared: _Prepared) -> AttachReport:
    attachment, placement = prepared.attachment, prepared.placement
    network, adapter, text = attachment.model, attachment.setup.adapter, repr(attachment.reducer)
    if prepared.steps:
        text += f", progressive={placement.progressive},"
    undo: Undo = []
    report = AttachReport(text, adapter.family, prepared.rows, attachment, partial(_count, prepared, undo), undo)
    undo.append(partial(setattr, attachment, "active", False))
    undo.append(network.register_forward_pre_hook(attachment.begin, with_kwargs=True).remove)
    undo.append(network.register_forward_hook(attachment.end, always_call=True).remove)
    source = placement.plan_from or adapter.plan_from
    with _undone_on_error(network, report), _name_versions(adapter, network):
        if prepared.steps:
            install_steps(attachment, prepared.steps, placement, undo)
            return report
        for site in prepared.sites:
            parts = [part for part in placement.parts if part in site.parts]
            planner = BlockPlanner(attachment, site, source == "block", parts)
            undo.append(site.block.register_forward_pre_hook(planner.enter, with_kwargs=True).remove)
            undo.append(site.block.register_forward_hook(planner.leave, always_call=True).remove)
            for part in parts:
                undo.extend(site.parts[part].install(planner, part, placement.weighted))
    return report


@contextmanager
def _undone_on_error(network: nn.Module, report: AttachReport) -> Iterator[None]:
    """Undo everything if one of the hooks cannot be put in."""
    tables = [getattr(module, name) for module in network.modules() for name in _HOOKS]
    before = [set(table) for table in tables]
    try:
        yield
    except BaseException:
        report.detach()
        for table, keys in zip(tables, before, strict=True):
            for key in set(table) - keys:  # of a part whose install raised
                table.pop(key)
        raise
