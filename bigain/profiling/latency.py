"""How long forward passes take on the device at hand, and how much memory they need."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from bigain.benchmark.cost import quartiles, time_passes
from bigain.errors import NumericalError, SettingError

__all__ = ["Backend", "Compilation", "Passes", "first_pass", "forward_pass", "measure_passes", "timed_passes"]

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
