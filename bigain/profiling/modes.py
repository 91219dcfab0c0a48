"""The ways in which a pass can run: as it is, compiled, or compiled and replayed as a CUDA graph."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bigain.errors import NumericalError

__all__ = [
    "GRAPHS",
    "Backend",
    "Compilation",
    "Mode",
    "captured",
    "check_finite",
    "compiled_apart",
    "first_pass",
    "peak_memory",
    "replay_clock",
]

Backend = Literal["inductor", "aot_eager", "eager"]
"""Backends of `torch.compile`; the last two make a graph and no kernels."""

Mode = Literal["eager", "compiled", "graphs"]
"""`eager`: as it is. `compiled`: by `torch.compile`, launched by the host. `graphs`: compiled, then replayed."""

GRAPHS = 256
"""Graphs that one function may compile to, where torch stops at 8: a schedule compiles once for each phase, blocks that
another package has patched share none, and SDXL has 70 of them."""

_CACHE = 256 * 2**20
"""Bytes, more than the cache of any GPU."""


@dataclass(frozen=True)
class Compilation:
    """What the compiler did.

    Args:
        seconds: Seconds of the first pass, compilation included.
        graphs: Number of graphs.
        breaks: Number of graph breaks.
    """

    seconds: float
    graphs: int
    breaks: int


def compiled_apart(
    evaluate: Callable[..., Any], backend: Backend = "inductor", whole: bool = True
) -> Callable[..., Any]:
    """Compile a function apart from everything compiled before.

    Dynamo caches compiled code by the function's code object, and its guards ignore a module's
    hooks: with one code object, one method's code could run as another's.

    Args:
        evaluate: The function.
        backend: Backend of `torch.compile`.
        whole: To one graph; a break is an error.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return evaluate(*args, **kwargs)

    own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=whole, backend=backend)


def first_pass(run: Callable[[], Any], device: torch.device) -> tuple[Any, Compilation]:
    """Run the first pass, in which the compiler works; return its output and what the compiler did."""
    graphs, breaks = _counted()
    start = time.perf_counter()
    output = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    after = _counted()
    return output, Compilation(seconds, after[0] - graphs, after[1] - breaks)


def check_finite(name: str, output: Any) -> None:
    """Refuse NaN and infinity, which take another time to compute with than other numbers.

    Raises:
        NumericalError: The output has NaN or infinity.
    """
    values: Tensor = output if isinstance(output, Tensor) else output[0]
    if values.is_floating_point() and not values.isfinite().all():
        raise NumericalError(
            f"{name}: with random weights in {values.dtype} the network returned NaN or infinity, and what that takes "
            "says nothing; take another dtype."
        )


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes that a pass allocates beyond those in use before it; `None` where no GPU counts."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def captured(run: Callable[[], object], device: torch.device, pool: Any) -> Callable[[], object]:
    """Capture a pass as a CUDA graph and return its replay.

    Graphs that are replayed one after another may share a pool. Each then overwrites the
    others' memory, so that a replay's output is meaningless and only its time counts.

    Args:
        run: The pass, which has run before: a capture cannot compile or synchronise with the host.
        device: The GPU.
        pool: From `torch.cuda.graph_pool_handle()`.
    """
    with _current(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        graph.replay()
        torch.cuda.synchronize(device)
    return graph.replay


def replay_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Return a clock for replays: the device's own, in seconds.

    Before each replay, a buffer larger than the cache is cleared: every method starts with a
    cold cache, and the host gets ahead of the device, so that launching is not timed.
    """
    flush = torch.empty(_CACHE, dtype=torch.uint8, device=device)

    def clock(replay: Callable[[], object]) -> float:
        with _current(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            flush.zero_()
            start.record()
            replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000

    return clock


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _counted() -> tuple[int, int]:
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
