"""Measure what `bigain latency` is asked for, size by size."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bigain.adapters.attach import attach, find_sites
from bigain.adapters.placement import Placement
from bigain.benchmark.architectures import build_architecture, build_random
from bigain.benchmark.flops import FlopCount, FlopCounter
from bigain.benchmark.latency_settings import DTYPES, LatencySettings, Size, device_of
from bigain.benchmark.methods import methods_of
from bigain.benchmark.network_cases import NetworkAt, network_cases
from bigain.benchmark.peers import HOW_TO_INSTALL, has_tomesd
from bigain.benchmark.self_attention import SelfAttention, attention_cases, made_up_tokens
from bigain.benchmark.timed_cases import Case, Measured, Timing, time_cases
from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.profiling.latency import Ratio, ratio
from bigain.profiling.modes import Mode
from bigain.reducers.base import TokenReducer

__all__ = ["LatencyTable", "SizeLatency", "measure_latency", "ratio_to"]

Announce = Callable[[str], None]


@dataclass(frozen=True)
class SizeLatency:
    """What was measured at one size.

    Args:
        title: The size, in words.
        shape: Tokens along each axis of the input grid.
        rows: Rows of a pass.
        tokens: Tokens of the largest attention taken, for one row of a pass.
        share: Share of the operations without reduction that is in the parts taken.
        modes: What was measured of each case, by mode. The first case is no reduction.
        channels: C of a self-attention by itself.
        heads: Heads of a self-attention by itself.
    """

    title: str
    shape: tuple[int, ...]
    rows: int
    tokens: int
    share: float | None
    modes: Mapping[Mode, tuple[Measured, ...]]
    channels: int | None = None
    heads: int | None = None


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    Args:
        title: Network, type and placement, in words.
        device: The device.
        settings: The settings, with defaults filled in.
        sizes: What was measured at each size.
        notes: Further sentences for the reader.
    """

    title: str
    device: torch.device
    settings: Mapping[str, Any]
    sizes: tuple[SizeLatency, ...]
    notes: tuple[str, ...] = ()


def ratio_to(row: Measured, baseline: Measured) -> Ratio | None:
    """Compare two cases that were timed in turn; `None` if one has no times."""
    return ratio(row.times, baseline.times) if row.times and baseline.times else None


def measure_latency(
    settings: LatencySettings,
    announce: Announce = lambda line: None,
    keep: Callable[[LatencyTable], None] = lambda content: None,
) -> LatencyTable:
    """Time passes without reduction and under every reducer, in turn.

    Everything is first attached and counted on the meta device, at every size, so that what
    cannot work is refused before anything is built.

    Args:
        settings: What to measure.
        announce: Called with a line before each step.
        keep: Called after each size with everything measured so far.

    Raises:
        BigainError: Something cannot be built, attached or compiled, or does not fit into memory.
    """
    title, measuring = (_self_attentions if settings.self_attention else _networks)(settings, announce)
    known = settings.self_attention or "UNet2DConditionModel" in title
    notes = (HOW_TO_INSTALL,) if known and "peers" in settings.beside and not has_tomesd() else ()
    device, sizes = device_of(settings.device), tuple[SizeLatency, ...]()
    for size in measuring:
        sizes = (*sizes, size)
        content = LatencyTable(title, device, _resolved(settings, sizes), sizes, notes)
        keep(content)
    return content


def _networks(settings: LatencySettings, announce: Announce) -> tuple[str, Iterator[SizeLatency]]:
    assert settings.network is not None
    methods = methods_of(settings.reducer, settings.reducers, settings.timestep)[1]
    shadow = build_architecture(settings.network)
    counters = [FlopCounter(shadow, size.shape) for size in settings.sizes]
    counted = []
    for counter in counters:
        for reducer in methods.values():
            _refuse_mixed(counter, reducer, settings.placement)
        counted.append({name: counter.count(one, settings.placement) for name, one in methods.items()})
    announce(f"building {type(shadow).__name__} with random weights")
    with _fitting(settings):
        network = build_random(settings.network, *_where(settings), settings.seed)
    title = [
        f"{settings.network}: {type(shadow).__name__} with random weights",
        settings.chosen_dtype,
        f"placement {settings.placement}",
        *([f"timestep {settings.timestep:g}"] if settings.timestep is not None else []),
    ]
    return ", ".join(title), _networks_timed(settings, network, counters, counted, announce)


def _networks_timed(
    settings: LatencySettings,
    network: nn.Module,
    counters: list[FlopCounter],
    counted: list[dict[str, FlopCount]],
    announce: Announce,
) -> Iterator[SizeLatency]:
    baseline, methods = methods_of(settings.reducer, settings.reducers, settings.timestep)
    for size, counter, counts in zip(settings.sizes, counters, counted, strict=True):
        announce(_title(counter.shape, size))
        with _fitting(settings), _seeded(settings):
            inputs = counter.adapter.inputs(network, size.rows, counter.shape, *_where(settings))
        regional = settings.backend if settings.regional else None
        at = NetworkAt(network, inputs, counter, settings.placement, settings.seed)
        cases = network_cases(at, baseline, methods, counts, settings.beside, regional)
        share = next((count.share for count in counts.values()), None)
        tokens = max(grid.tokens for grid in at.grids)
        yield _measured(settings, cases, size, counter.shape, tokens, share, announce)


def _self_attentions(settings: LatencySettings, announce: Announce) -> tuple[str, Iterator[SizeLatency]]:
    methods = methods_of(settings.reducer, settings.reducers, settings.timestep)[1]
    sizes = [_filled(settings, size) for size in settings.sizes]
    for size in sizes:
        for reducer in methods.values():
            reducer.reduced_length(Grid(size.shape or ()))
    title = ", ".join(["one self-attention", settings.chosen_dtype, "planned from its input"])
    return title, _self_attentions_timed(settings, sizes, announce)


def _self_attentions_timed(settings: LatencySettings, sizes: list[Size], announce: Announce) -> Iterator[SizeLatency]:
    baseline, methods = methods_of(settings.reducer, settings.reducers, settings.timestep)
    for size in sizes:
        assert size.shape is not None
        assert size.channels is not None
        assert size.heads is not None
        grid = Grid(size.shape)
        announce(_title(size.shape, size))
        with _fitting(settings), _seeded(settings):
            device, dtype = _where(settings)
            block = SelfAttention(size.channels, size.heads).to(device, dtype).eval()
            tokens = made_up_tokens(size.rows, grid, size.channels, device, dtype)
        cases = attention_cases(block, tokens, grid, baseline, methods, settings.beside)
        yield _measured(settings, cases, size, size.shape, grid.tokens, None, announce)


def _filled(settings: LatencySettings, size: Size) -> Size:
    """Complete a size from the network's first self-attention that the placement takes."""
    if settings.network is None:
        if size.shape is None:
            raise SettingError("Give shape, the grid of the self-attention, or a network that says it.")
        return size
    network, adapter, _, sites = find_sites(build_architecture(settings.network), settings.placement)
    site = next(site for site in sites if "self" in site.parts)
    module: Any = site.module("self")
    heads = next((int(getattr(module, name)) for name in _HEADS if hasattr(module, name)), None)
    shape = adapter.grid(network, adapter.configured_shape(network), site).shape
    if heads is None:
        raise SettingError(f"{site.path('self')} does not say how many heads it has: give channels and heads.")
    width = next(value.shape[-1] for value in module.parameters() if value.ndim == 2)
    return Size(size.shape or shape, size.rows, size.channels or width, size.heads or heads)


_HEADS = ("heads", "num_heads", "num_attention_heads")
"""Names that libraries have for the number of heads."""


def _measured(
    settings: LatencySettings,
    cases: list[Case],
    size: Size,
    shape: tuple[int, ...],
    tokens: int,
    share: float | None,
    announce: Announce,
) -> SizeLatency:
    timing = Timing(
        device_of(settings.device), settings.chosen_modes, settings.backend, settings.repeats, settings.warmup
    )
    modes = {mode: tuple(rows) for mode, rows in time_cases(cases, timing, announce).items()}
    return SizeLatency(_title(shape, size), shape, size.rows, tokens, share, modes, size.channels, size.heads)


def _title(shape: tuple[int, ...], size: Size) -> str:
    words = [f"{' x '.join(map(str, shape))} tokens", f"{size.rows} row{'s' if size.rows > 1 else ''}"]
    return ", ".join([*words, *([f"{size.channels} channels, {size.heads} heads"] if size.channels else [])])


def _where(settings: LatencySettings) -> tuple[torch.device, torch.dtype]:
    return device_of(settings.device), DTYPES[settings.chosen_dtype]


@contextmanager
def _seeded(settings: LatencySettings) -> Iterator[None]:
    """Seed the global generators, and restore their states at the end."""
    device = device_of(settings.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield


@contextmanager
def _fitting(settings: LatencySettings) -> Iterator[None]:
    """Raise a sentence if not even weights and inputs fit into memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"{settings.network or 'The input'} in {settings.chosen_dtype} does not fit into the memory of "
            f"{device_of(settings.device)}."
        ) from error


def _refuse_mixed(counter: FlopCounter, reducer: TokenReducer, placement: Placement) -> None:
    """Refuse a reducer that cannot serve the timed pass, whose rows are at different timesteps."""
    with attach(counter.network, reducer, placement=placement, shape=counter.shape) as report:
        report.check_mixed_timesteps()


def _resolved(settings: LatencySettings, sizes: tuple[SizeLatency, ...]) -> dict[str, Any]:
    return {
        "network": settings.network,
        "self_attention": settings.self_attention,
        "shapes": [list(size.shape) for size in sizes],
        "rows": [size.rows for size in sizes],
        "dtype": settings.chosen_dtype,
        "placement": str(settings.placement),
        "modes": list(settings.chosen_modes),
        "backend": settings.backend,
        "regional": settings.regional and not settings.self_attention,
        "beside": list(settings.beside),
        "repeats": settings.repeats,
        "warmup": settings.warmup,
        "timestep": settings.timestep,
        "seed": settings.seed,
    }
