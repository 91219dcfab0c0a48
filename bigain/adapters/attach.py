"""Attach a reducer to a model, and detach it without a trace."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from bigain.adapters.base import Adapter, Part, Site
from bigain.adapters.placement import Placement, placement_of, select_sites
from bigain.adapters.proportional import check_proportional
from bigain.adapters.reduced import Attachment, Planner, ReducedModule, ReducedProcessor
from bigain.adapters.report import AttachReport, SiteReport
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context, TokenReducer
from bigain.registry import available, build, build_reducer, get

__all__ = ["attach", "find_sites", "match", "part_report"]

_INNER = ("transformer", "unet", "network")
"""Where pipelines and bigain's backbones keep the network."""


def attach(
    model: Any,
    reducer: TokenReducer | str | Mapping[str, Any],
    /,  # so that settings may have these names, too: attach(model, "cached", reducer="lgtm")
    *,
    placement: Placement | str | Mapping[str, Any] | None = None,
    layers: Sequence[int] | int | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    **settings: Any,
) -> AttachReport:
    """Put a reducer into a model; undo it with `report.detach()` or a `with` block.

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
        settings: Settings of a reducer given by name.

    Returns:
        The modules taken, with tokens before and after.

    Raises:
        SiteError: Nothing matches, or a reducer is attached already. The model is untouched.
        SettingError: The reducer cannot do on the model's grid what it is asked to.
    """
    chosen = build_reducer(reducer, **settings)
    network, adapter, wanted, sites = find_sites(model, placement_of(placement, layers))
    chosen.check_places([_place(site) for site in sites])
    _refuse(chosen, wanted, sites)
    shape = shape or adapter.configured_shape(network)
    rows = [part_report(adapter, network, shape, chosen, site, part) for site, part in _parts(wanted, sites)]
    attachment = Attachment(network, adapter, chosen, seed, chosen, tuple(_place(site) for site in sites))
    report = AttachReport(repr(chosen), adapter.family, tuple(rows), attachment)
    _install(report, attachment, wanted, sites)
    return report


def find_sites(model: Any, placement: Placement) -> tuple[nn.Module, Adapter, Placement, list[Site]]:
    """Find the network in `model`, the adapter that knows it, and the blocks a placement names.

    Returns:
        The network, its adapter, the placement with its preset resolved, the blocks.

    Raises:
        SiteError: No adapter knows the model, or it has no such blocks.
    """
    network, name, adapter = match(model)
    wanted, sites = select_sites(adapter, name, adapter.sites(network), placement)
    return network, adapter, wanted, sites


def match(model: Any) -> tuple[nn.Module, str, Adapter]:
    """Find the network in `model`, and the name and the adapter of its family.

    Raises:
        SiteError: No adapter knows it.
    """
    candidates = [model, *(getattr(model, name, None) for name in _INNER)]
    networks = [candidate for candidate in candidates if isinstance(candidate, nn.Module)]
    broken: dict[str, str] = {}
    for name in available("adapters"):
        try:
            adapter: Adapter = build("adapters", name)
            if getattr(adapter, "library", None) not in sys.modules:
                continue
            matching = [network for network in networks if adapter.matches(network)]
        except Exception as error:  # whatever a plugin raises, the others still serve
            broken[name] = f"{type(error).__name__}: {error}"
            continue
        if matching:
            return matching[0], name, adapter
    known = "; ".join(
        f"{name} ({'broken: ' + broken[name] if name in broken else _family(name)})" for name in available("adapters")
    )
    raise SiteError(f"Nothing to attach to in {type(model).__name__}. Known families: {known}.")


def _family(name: str) -> str:
    return getattr(get("adapters", name), "family", "no family stated")


def _parts(placement: Placement, sites: list[Site]) -> list[tuple[Site, Part]]:
    return [(site, part) for site in sites for part in placement.parts if part in site.parts]


def _refuse(reducer: TokenReducer, placement: Placement, sites: list[Site]) -> None:
    """Refuse what could not work, before anything is touched."""
    chosen = _parts(placement, sites)
    others = [part for part in placement.parts if part != "self"]
    if others and reducer.kinds == {"kv"}:
        raise SettingError(
            f"{reducer!r} shrinks keys and values of self-attention only; it can do nothing for {', '.join(others)}."
        )
    taken = [site.path(part) for site, part in chosen if _is_taken(site, part)]
    if taken:
        raise SiteError(f"A reducer is attached already, at {', '.join(taken)}. Detach it first.")
    for site, part in chosen:
        if part == "mlp":
            _refuse_chunks(site)
            continue
        processor = _processor(site.module(part))
        if isinstance(processor, nn.Module):
            raise SiteError(
                f"The processor of {site.path(part)} is a {type(processor).__name__}, a module of its own; "
                "wrapping it would take its parameters out of the model. Only plain processors can be wrapped."
            )
        if part == "self" and "kv" in reducer.kinds and getattr(site.module(part), "fused_projections", False):
            raise SiteError(
                f"{site.path(part)} projects queries, keys and values at once, so that keys and values cannot be "
                "fewer; undo that with unfuse_qkv_projections(), or take a merging reducer."
            )
        if placement.proportional and part == "self":
            check_proportional(site.path(part), site.module(part), processor)


def _is_taken(site: Site, part: Part) -> bool:
    if part != "mlp":
        return isinstance(_processor(site.module(part)), ReducedProcessor)
    hooks = site.module(part)._forward_pre_hooks.values()  # noqa: SLF001 torch lists hooks nowhere else
    return any(isinstance(getattr(hook, "__self__", None), ReducedModule) for hook in hooks)


def _refuse_chunks(site: Site) -> None:
    if getattr(site.block, "_chunk_size", None) is not None:
        raise SiteError(
            f"{site.name} feeds its MLP in chunks, which hold no whole grid; turn that off with "
            "disable_forward_chunking(), or leave the MLP out of the placement."
        )


def _processor(attention: Any) -> Any:
    return attention.processor


def part_report(
    adapter: Adapter, network: nn.Module, shape: tuple[int, ...], reducer: TokenReducer, site: Site, part: Part
) -> SiteReport:
    """Say what a reducer does to one part of a block.

    Raises:
        SettingError: More than it can do on the grid there.
    """
    grid = adapter.grid(network, shape, site)
    context = _place(site)
    # Keys and values shrink in self-attention alone.
    whole = part != "self" and reducer.kinds_at(context) == {"kv"}
    after = grid.tokens if whole else reducer.reduced_length(grid, context)
    return SiteReport(site.path(part), grid, grid.tokens, after)


def _place(site: Site) -> Context:
    return Context(layer=site.layer, stage=site.stage)


def _install(report: AttachReport, attachment: Attachment, placement: Placement, sites: list[Site]) -> None:
    network, undo = attachment.model, report._undo  # noqa: SLF001 the report owns what undoes it
    undo.append(network.register_forward_pre_hook(attachment.begin, with_kwargs=True).remove)
    undo.append(network.register_forward_hook(attachment.end, always_call=True).remove)
    source = placement.plan_from or attachment.adapter.plan_from
    for site in sites:
        planner = Planner(attachment, site)
        if source == "block":
            undo.append(site.block.register_forward_pre_hook(planner.enter_planning, with_kwargs=True).remove)
        else:
            undo.append(site.block.register_forward_pre_hook(planner.enter).remove)
        for part in placement.parts:
            if part in site.parts:
                undo.extend(_put_in(planner, site, part, placement.proportional))


def _put_in(planner: Planner, site: Site, part: Part, proportional: bool) -> list[Callable[[], None]]:
    """Make one part run on reduced tokens; return what undoes it."""
    module: Any = site.module(part)
    if part == "mlp":
        reduced = ReducedModule(planner)
        return [
            module.register_forward_pre_hook(reduced.before).remove,
            module.register_forward_hook(reduced.after).remove,
        ]
    before = _processor(module)
    wrapped: Any = ReducedProcessor.around(before, planner, part, proportional and part == "self")
    module.processor = wrapped
    planner.attachment.wrapped.append((site.path(part), module, wrapped))
    return [lambda: setattr(module, "processor", before)]
