"""How long forward passes take on the device at hand, and how much memory they need."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from bigain.errors import NumericalError, SettingError

__all__ = [
    "Backend",
    "Compilation",
    "Passes",
    "Ratio",
    "first_pass",
    "forward_pass",
    "interleaved",
    "measure_passes",
    "quartiles",
    "ratio",
    "time_passes",
    "timed_passes",
]

Backend = Literal["inductor", "aot_eager", "eager"]
"""Backends of `torch.compile`; the last two make a graph and no kernels."""


@dataclass(frozen=True)
class Compilation:
    """What the compiler did.

    Args:
        seconds: The first pass, in which it works.
        graphs: Graphs it made.
        breaks: Where it had to leave a graph.
    """

    seconds: float
    graphs: int
    breaks: int


@dataclass(frozen=True)
class Passes:
    """Timed passes of a network, under whatever reducer.

    Args:
        times: Milliseconds of each.
        memory: Most bytes of the device's memory in use at once during them, weights and
            inputs included; `None` where the device does not count them.
        compilation: `None` for a network that runs as it is.
    """

    times: tuple[float, ...]
    memory: int | None
    compilation: Compilation | None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the times."""
        return quartiles(self.times)


@dataclass(frozen=True)
class Ratio:
    """How long one method takes, as a share of another's time.

    Args:
        median: Median of the pairs' ratios.
        low: Lower end of its 95 % interval; `None` where there are too few pairs for one.
        high: Upper end, likewise.
        pairs: Passes that were compared.
    """

    median: float
    low: float | None
    high: float | None
    pairs: int


def interleaved(
    passes: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Time several methods in turn, so that a machine that slows down slows all of them.

    Args:
        passes: One pass of each method, by name; they run in this order, once in every round.
        repeats: Timed rounds.
        warmup: Rounds before, not timed.
        device: Where they run. On a GPU each pass starts and ends with an idle device.

    Returns:
        Seconds of each timed pass, by method; those at equal places are of one round.
    """
    where = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(warmup + repeats):
        for name, evaluate in passes.items():
            elapsed = _timed(evaluate, where)
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Compare two methods that were timed in turn.

    The interval has no distribution behind it: for the median of n values, the k-th from either
    end bound it with a probability of 1 - 2 P(X < k), X being binomial (n, 1/2). With fewer than
    six values no k gives 95 %.

    Args:
        times: Times of a method, in any unit.
        baseline: Of what it is compared with, as many, each from the same round.

    Raises:
        ValueError: No times, or not as many of one as of the other.

    References:
        Practical Nonparametric Statistics (Conover, 1999), section 3.2.
    """
    if not times:
        raise ValueError("A ratio of times takes one pair or more; got none.")
    ratios = sorted(one / other for one, other in zip(times, baseline, strict=True))
    count = len(ratios)
    rank = _interval_rank(count)
    low, high = (ratios[rank - 1], ratios[count - rank]) if rank else (None, None)
    return Ratio(statistics.median(ratios), low, high, count)


def _interval_rank(count: int, level: float = 0.95) -> int:
    """Return which order statistic from either end bounds the median; 0 where none does."""
    rank, below = 0, 0.0
    while 2 * (below := below + math.comb(count, rank) / 2**count) <= 1 - level:
        rank += 1
    return rank


def time_passes(evaluate: Callable[[], object], device: torch.device, repeats: int, warmup: int = 1) -> list[float]:
    """Time forward passes one by one, each from an idle device to an idle device.

    Args:
        evaluate: One pass.
        device: Where it runs.
        repeats: Timed passes.
        warmup: Passes before, not timed.

    Returns:
        Milliseconds of each timed pass.
    """
    return [1000 * seconds for seconds in interleaved({"": evaluate}, repeats, warmup, device)[""]]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile; of one value, three times itself."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _timed(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_passes(
    name: str, network: nn.Module, inputs: Mapping[str, Any], backend: Backend | None, repeats: int, warmup: int
) -> Passes:
    """Compile a network as it stands, with whatever is attached, and time it.

    Dynamo keeps compiled code with the function it came from and does not look at a
    module's hooks when it decides whether that code still fits. Therefore everything that
    was compiled in this process is forgotten first, and a caller that detaches compiles anew.

    Args:
        name: The method's name, for errors.
        network: The network, on its device.
        inputs: Arguments of one pass.
        backend: What compiles it; `None` for a network that runs as it is.
        repeats: Timed passes.
        warmup: Passes between the first, in which the compiler works, and the timed ones.

    Raises:
        SettingError: It does not compile to one graph, or does not fit into memory.
        NumericalError: It returned NaN or infinity.
    """
    device = next(network.parameters()).device
    torch.compiler.reset()
    try:
        with torch.inference_mode():
            run = forward_pass(network, inputs, backend)
            compilation = first_pass(name, run, device)
            times, memory = timed_passes(run, device, repeats, warmup)
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"{name} does not fit into the memory of {device}; fewer rows, a smaller shape or half precision need less."
        ) from error
    except TorchDynamoException as error:
        raise SettingError(
            f"{name} does not compile to one graph with {backend}: {_reason(error)} It can be timed uncompiled, with "
            "--compile=false."
        ) from error
    return Passes(tuple(times), memory, compilation if backend else None)


def forward_pass(network: nn.Module, inputs: Mapping[str, Any], backend: Backend | None) -> Callable[[], Any]:
    """Return one forward pass without arguments; compiled, hooks are in the one graph."""

    def evaluate() -> Any:
        return network(**inputs)

    if backend is None:
        return evaluate
    return torch.compile(evaluate, fullgraph=True, dynamic=False, backend=backend)


def first_pass(name: str, run: Callable[[], Any], device: torch.device) -> Compilation:
    """Make the pass in which the compiler works, and look at what comes out.

    Raises:
        NumericalError: NaN or infinity: such numbers take another time than others do.
    """
    graphs, breaks = _counted()
    start = time.perf_counter()
    output = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    values: Tensor = output if isinstance(output, Tensor) else output[0]
    if not values.isfinite().all():
        raise NumericalError(
            f"{name}: with random weights in {values.dtype} the network returned NaN or infinity, and what that takes "
            "says nothing; take another dtype."
        )
    after = _counted()
    return Compilation(seconds, after[0] - graphs, after[1] - breaks)


def timed_passes(
    run: Callable[[], Any], device: torch.device, repeats: int, warmup: int
) -> tuple[list[float], int | None]:
    """Return milliseconds of each pass after the warm-up, and the most bytes in use during all of them."""
    if device.type != "cuda":
        return time_passes(run, device, repeats, warmup), None
    torch.cuda.reset_peak_memory_stats(device)
    times = time_passes(run, device, repeats, warmup)
    return times, torch.cuda.max_memory_allocated(device)


def _counted() -> tuple[int, int]:
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def _reason(error: Exception) -> str:
    """Say in one line what the compiler could not do, and in which line of the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    place = [line for line in lines if line.startswith('File "')][-1:]
    return f"{lines[0].rstrip('.')}{''.join(f' ({line})' for line in place)}."
