"""Attach a reducer to a model, and detach it without a trace."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Site
from bigain.adapters.report import AttachReport, SiteReport
from bigain.errors import SiteError
from bigain.grid import Grid
from bigain.reducers.base import Context, TokenReducer
from bigain.registry import available, build, build_reducer, get

__all__ = ["attach", "find_sites"]

_INNER = ("transformer", "unet", "network")
"""Where pipelines and bigain's backbones keep the network."""


@dataclass
class _Forward:
    """The forward pass in progress; empty between passes."""

    moment: Moment | None = None
    cache: dict[Any, Any] = field(default_factory=dict)


class ReducedProcessor:
    """Runs whatever attention processor was there on reduced tokens."""

    def __init__(
        self,
        inner: Any,
        reducer: TokenReducer,
        adapter: Adapter,
        model: nn.Module,
        site: Site,
        forward: _Forward,
        seed: int,
    ) -> None:
        self.inner, self._reducer, self._adapter = inner, reducer, adapter
        self._model, self._site, self._forward, self._seed = model, site, forward, seed

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            raise SiteError(
                f"{self._site.name} is reduced as self-attention, but was called with encoder states or a mask."
            )
        reduction = self._reducer.plan(hidden_states, self._grid(hidden_states), self._context())
        short = reduction.reduce(hidden_states)
        if reduction.kind == "kv":
            return self.inner(attn, hidden_states, short, None, *args, **kwargs)  # type: ignore[no-any-return]
        return reduction.restore(self.inner(attn, short, None, None, *args, **kwargs))

    def _grid(self, hidden_states: Tensor) -> Grid:
        moment = self._forward.moment
        shape = self._adapter.configured_shape(self._model) if moment is None else moment.shape
        return self._adapter.grid(self._model, shape, self._site)

    def _context(self) -> Context:
        moment = self._forward.moment
        return Context(
            timestep=None if moment is None else moment.timestep,
            layer=self._site.layer,
            stage=self._site.stage,
            seed=self._seed,
            cache=self._forward.cache,
        )


def attach(
    model: Any,
    reducer: TokenReducer | str | Mapping[str, Any],
    *,
    layers: Sequence[int] | int | None = None,
    seed: int = 0,
    **settings: Any,
) -> AttachReport:
    """Put a reducer into a model; undo it with `report.detach()` or a `with` block.

    Args:
        model: A model of a known family, or a pipeline or backbone that holds one.
        reducer: A reducer, or its name with its settings: `attach(model, "lgtm", ratio=0.5)`.
        layers: Blocks to attach to: their indices, or how many of the first.
            Default: those of the published methods.
        seed: Seeds whatever the reducer draws at random.
        settings: Settings of a reducer given by name.

    Returns:
        The sites taken, with tokens before and after.

    Raises:
        SiteError: Nothing matches, or a reducer is attached already. The model is untouched.
        SettingError: The reducer cannot do on the model's grid what it is asked to.
    """
    chosen = build_reducer(reducer, **settings)
    network, adapter, sites = find_sites(model, layers)
    taken = [site.name for site in sites if isinstance(_processor(site), ReducedProcessor)]
    if taken:
        raise SiteError(f"A reducer is attached already, at {', '.join(taken)}. Detach it first.")
    for site in sites:
        if isinstance(_processor(site), nn.Module):
            raise SiteError(
                f"The processor of {site.name} is a {type(_processor(site)).__name__}, a module of its own; "
                "wrapping it would take its parameters out of the model. Only plain processors can be wrapped."
            )
    report = AttachReport(repr(chosen), adapter.family, tuple(_row(adapter, network, chosen, site) for site in sites))
    _install(report, network, adapter, chosen, sites, seed)
    return report


def find_sites(model: Any, layers: Sequence[int] | int | None = None) -> tuple[nn.Module, Adapter, list[Site]]:
    """Find the network in `model`, the adapter that knows it, and the sites `layers` names.

    Raises:
        SiteError: No adapter knows the model, or it has no such blocks.
    """
    network, adapter = _match(model)
    return network, adapter, _select(adapter, adapter.sites(network), layers)


def _match(model: Any) -> tuple[nn.Module, Adapter]:
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
            return matching[0], adapter
    known = "; ".join(
        f"{name} ({'broken: ' + broken[name] if name in broken else _family(name)})" for name in available("adapters")
    )
    raise SiteError(f"Nothing to attach to in {type(model).__name__}. Known families: {known}.")


def _family(name: str) -> str:
    return getattr(get("adapters", name), "family", "no family stated")


def _select(adapter: Adapter, sites: list[Site], layers: Sequence[int] | int | None) -> list[Site]:
    known = [site.layer for site in sites]
    if layers is None:
        wanted = adapter.default_layers(sites)
    elif isinstance(layers, int):
        wanted = known[:layers] if 1 <= layers <= len(known) else [layers - 1]
    else:
        wanted = list(layers)
    strangers = [layer for layer in wanted if layer not in known]
    if strangers or not wanted:
        raise SiteError(
            f"layers={layers} was asked for; the model has blocks {known[0]} to {known[-1]}: give indices among "
            f"them, or how many of the first (1 to {len(known)})."
        )
    return [site for site in sites if site.layer in wanted]


def _processor(site: Site) -> Any:
    return site.module.processor


def _row(adapter: Adapter, network: nn.Module, reducer: TokenReducer, site: Site) -> SiteReport:
    grid = adapter.grid(network, adapter.configured_shape(network), site)
    return SiteReport(site.name, grid, grid.tokens, reducer.reduced_length(grid))


def _install(
    report: AttachReport, network: nn.Module, adapter: Adapter, reducer: TokenReducer, sites: list[Site], seed: int
) -> None:
    forward = _Forward()

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
            # Blocks would run again during backward, where neither the timestep nor the
            # pass's cache is known: other tokens would be merged, and gradients be wrong.
            raise SiteError(
                f"{type(module).__name__} has gradient checkpointing on, which a reducer cannot follow. "
                "Turn it off with model.disable_gradient_checkpointing(), or detach the reducer."
            )
        forward.moment, forward.cache = adapter.moment(module, args, kwargs), {}

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward.moment, forward.cache = None, {}

    undo = report._undo  # noqa: SLF001 the report owns what undoes it
    undo.append(network.register_forward_pre_hook(begin, with_kwargs=True).remove)
    undo.append(network.register_forward_hook(end, always_call=True).remove)
    for site in sites:
        before = _processor(site)
        wrapped: Any = ReducedProcessor(before, reducer, adapter, network, site, forward, seed)
        site.module.processor = wrapped
        undo.append(lambda module=site.module, processor=before: setattr(module, "processor", processor))  # type: ignore[misc]
