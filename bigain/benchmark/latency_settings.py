"""What `bigain latency` measures: a network of random weights under reducers, beside no reduction."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.benchmark.architectures import build_architecture, build_random
from bigain.benchmark.flops import FlopCounter
from bigain.benchmark.methods import methods_of
from bigain.errors import SettingError
from bigain.profiling.latency import Backend, Passes, measure_passes
from bigain.reducers.base import Identity, TokenReducer

__all__ = ["DTYPES", "LatencySettings", "LatencyTable", "MethodLatency", "device_of", "measure_methods"]

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types by the names that the options have."""


@dataclass(frozen=True)
class LatencySettings:
    """Time forward passes of a network under reducers.

    Args:
        network: A shipped architecture (sd15, sd2, sdxl, dit_xl_2_256, dit_xl_2_512, flux1),
            the embedded model (cifar10_dit), or a folder or file with the config.json of a
            diffusers network. Weights are random.
        reducer: One reducer. Beside those asked for, no reduction is timed always, first
            and last.
        reducers: Several: method name to reducer.
        placement: Which blocks, and which parts of them. Default: those of the published
            methods.
        shape: Tokens along each axis of the network's input grid, `[96, 64]`. Default: as
            configured.
        rows: Rows of one pass.
        dtype: fp32, fp16 or bf16. Default: fp16 on a GPU, fp32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda or cuda:1.
        compile: Compile each method to one graph; one that does not is an error.
        backend: What compiles: inductor; aot_eager and eager make the graph and no kernels.
        repeats: Timed passes of each method.
        warmup: Passes before, not timed, beside the first.
        timestep: Time what a reducer that switches by timestep does at this one. Default:
            what it does where rows may be at any.
        seed: Seeds weights, inputs and what reducers draw.

    Raises:
        SettingError: Settings that exclude each other or have no meaning.
    """

    network: str
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    shape: list[int] | None = None
    rows: int = 1
    dtype: Precision | None = None
    device: str = "auto"
    compile: bool = True
    backend: Backend = "inductor"
    repeats: int = 20
    warmup: int = 3
    timestep: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {least} or more; got {getattr(self, name)}.")
        device_of(self.device)
        methods_of(self.reducer, self.reducers)


@dataclass(frozen=True)
class MethodLatency:
    """One row.

    Args:
        name: The method's name.
        reducer: Its settings.
        flops: Operations of one row, with it.
        passes: Its times and memory.
    """

    name: str
    reducer: str
    flops: float
    passes: Passes


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    Args:
        title: Network, grid, rows, type and placement, in words.
        device: Where.
        settings: What was asked for, with defaults filled in.
        methods: One row a method. The first and the last are no reduction.
        share: Share of the operations without reduction that lies in the parts taken.
    """

    title: str
    device: torch.device
    settings: Mapping[str, Any]
    methods: tuple[MethodLatency, ...]
    share: float

    @property
    def baseline(self) -> float:
        """Milliseconds of a pass without reduction: the mean of the first and the last median."""
        return statistics.mean(row.passes.quartiles[1] for row in (self.methods[0], self.methods[-1]))

    @property
    def drift(self) -> float:
        """By how much the last median without reduction differs from the first, as a share of the baseline."""
        first, last = (row.passes.quartiles[1] for row in (self.methods[0], self.methods[-1]))
        return (last - first) / self.baseline


def device_of(name: str) -> torch.device:
    """Find the device that a name means.

    Raises:
        SettingError: There is none of that name, or of a kind whose work is not waited for here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingError(f"device is auto, cpu, cuda or cuda:N; got {name!r}.")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise SettingError(f"device={name} was asked for; torch {torch.__version__} sees {found} CUDA devices.")
    return device


def measure_methods(settings: LatencySettings, announce: Callable[[str], None] = lambda _: None) -> LatencyTable:
    """Measure every method that the settings name.

    Every reducer is first attached and counted on the meta device, so that one that
    cannot work is refused before anything is built.

    Args:
        settings: What to measure.
        announce: Called with a line before each step.

    Raises:
        BigainError: Something that cannot be built, attached, compiled, or does not fit into memory.
    """
    baseline, methods = methods_of(settings.reducer, settings.reducers, settings.timestep)
    counter = FlopCounter(
        build_architecture(settings.network), tuple(settings.shape) if settings.shape is not None else None
    )
    flops: dict[str, float] = {}
    share = 0.0
    for name, reducer in methods.items():
        _refuse_mixed(counter, reducer, settings.placement)
        count = counter.count(reducer, settings.placement)
        flops[name], share = count.total, count.share
    resolved = _resolved(settings, counter)
    announce(f"building {resolved['class']} with random weights")
    network, inputs = _build(settings, counter)
    order: list[tuple[str, TokenReducer]] = [
        (baseline, Identity()),
        *methods.items(),
        (f"{baseline}, again", Identity()),
    ]
    rows: list[MethodLatency] = []
    for number, (name, reducer) in enumerate(order, start=1):
        announce(f"{number}/{len(order)} {name}: {'compiling and ' if settings.compile else ''}timing")
        passes = _measured(settings, counter, network, inputs, name, reducer)
        rows.append(MethodLatency(name, repr(reducer), flops.get(name, counter.baseline), passes))
    return LatencyTable(_title(resolved), device_of(settings.device), resolved, tuple(rows), share)


def _build(settings: LatencySettings, counter: FlopCounter) -> tuple[nn.Module, dict[str, Any]]:
    device, dtype = device_of(settings.device), _dtype_of(settings)
    try:
        network = build_random(settings.network, device, DTYPES[dtype], settings.seed)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            return network, counter.adapter.inputs(network, settings.rows, counter.shape, device, DTYPES[dtype])
    except torch.OutOfMemoryError as error:
        raise SettingError(f"{settings.network} in {dtype} does not fit into the memory of {device}.") from error


def _measured(
    settings: LatencySettings,
    counter: FlopCounter,
    network: nn.Module,
    inputs: Mapping[str, Any],
    name: str,
    reducer: TokenReducer,
) -> Passes:
    backend = settings.backend if settings.compile else None
    if isinstance(reducer, Identity):  # the network as it is, without a hook
        return measure_passes(name, network, inputs, backend, settings.repeats, settings.warmup)
    with attach(network, reducer, placement=settings.placement, shape=counter.shape, seed=settings.seed):
        return measure_passes(name, network, inputs, backend, settings.repeats, settings.warmup)


def _refuse_mixed(counter: FlopCounter, reducer: TokenReducer, placement: Placement) -> None:
    """Rows of the timed pass are at different timesteps."""
    with attach(counter.network, reducer, placement=placement, shape=counter.shape) as report:
        report.check_mixed_timesteps()


def _dtype_of(settings: LatencySettings) -> str:
    return settings.dtype or ("fp16" if device_of(settings.device).type == "cuda" else "fp32")


def _resolved(settings: LatencySettings, counter: FlopCounter) -> dict[str, Any]:
    return {
        "network": settings.network,
        "class": type(counter.network).__name__,
        "shape": list(counter.shape),
        "rows": settings.rows,
        "dtype": _dtype_of(settings),
        "placement": str(settings.placement),
        "backend": settings.backend if settings.compile else None,
        "repeats": settings.repeats,
        "warmup": settings.warmup,
        "timestep": settings.timestep,
        "seed": settings.seed,
    }


def _title(resolved: Mapping[str, Any]) -> str:
    rows, timestep = resolved["rows"], resolved["timestep"]
    return ", ".join(
        [
            f"{resolved['network']}: {resolved['class']} with random weights",
            f"{' x '.join(map(str, resolved['shape']))} tokens at its input",
            f"{rows} row{'s' if rows > 1 else ''} a pass",
            resolved["dtype"],
            f"placement {resolved['placement']}",
            *([f"timestep {timestep:g}"] if timestep is not None else []),
        ]
    )
