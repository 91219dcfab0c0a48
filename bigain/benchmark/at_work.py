"""One method at work in a model: attached, compiled, and what it costs an image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from bigain.adapters.find import match
from bigain.adapters.placement import Placement
from bigain.benchmark.cost import TimedRow, count_operations
from bigain.benchmark.progress import Progress
from bigain.benchmark.regions import regions_of
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError, first_line
from bigain.profiling.latency import host_clock
from bigain.profiling.modes import GRAPHS, Compilation, first_pass
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.wording import MISSING, decimal
from bigain.tasks.method import Applied, method_of

__all__ = ["Cost", "at_work", "cost_columns", "count_gflops", "peak_gib", "timed", "warm_up"]

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cost:
    """What a method costs beside its time.

    Args:
        gflops: Billions of operations of the network for one image; `None` where they cannot be counted.
        memory_gib: Most memory of the GPU in use while it worked, weights included, in GiB; `None` on a CPU.
        compilation: What the compiler did before anything was timed; `None` where nothing was compiled.
    """

    gflops: float | None
    memory_gib: float | None
    compilation: Compilation | None

    def to_json(self) -> dict[str, object]:
        """Return what results store."""
        made = self.compilation
        return {
            "gflops_per_image": self.gflops,
            "memory_gib": self.memory_gib,
            "compilation": None if made is None else {"seconds": made.seconds, "graphs": made.graphs},
        }


def cost_columns(costs: Sequence[Cost]) -> dict[str, list[str]]:
    """Return the columns of a table that say what methods cost beside their time: a heading, and a cell for each."""
    columns = {"GFLOPs an image": [MISSING if one.gflops is None else decimal(one.gflops) for one in costs]}
    if any(one.memory_gib is not None for one in costs):
        columns["GiB"] = [MISSING if one.memory_gib is None else f"{one.memory_gib:.2f}" for one in costs]
    if any(one.compilation for one in costs):
        columns["s to compile"] = [decimal(one.compilation.seconds) if one.compilation else MISSING for one in costs]
    return columns


@contextmanager
def at_work(
    backbone: Backbone,
    reducer: TokenReducer,
    placement: Placement,
    seed: int = 0,
    compile: bool = False,  # noqa: A002 the name of the setting
) -> Iterator[Applied]:
    """Attach a reducer within a `with` block, and compile the network; none is left out, so that it costs nothing."""
    with ExitStack() as stack:
        applied = Applied(backbone)
        if not isinstance(reducer, Identity):
            applied = stack.enter_context(method_of(reducer).applied(backbone, placement, seed))
        if compile:
            stack.enter_context(_compiled(applied.backbone.network))
        stack.enter_context(torch.inference_mode())
        yield applied


@contextmanager
def _compiled(network: nn.Module) -> Iterator[None]:
    """Compile a network within a `with` block, region by region: equal blocks once, in a fraction of the time."""
    regions = regions_of(network, [site.block for site in match(network)[2].sites(network)])
    torch._dynamo.reset()  # noqa: SLF001 as torch's documentation advises between models
    with torch._dynamo.config.patch(recompile_limit=GRAPHS):  # noqa: SLF001
        try:
            for region in regions:
                region.compile(dynamic=False, fullgraph=True)
            yield
        finally:
            for region in regions:
                region._compiled_call_impl = None  # noqa: SLF001 torch has no verb to undo compile()


def warm_up(name: str, run: Callable[[], object], device: torch.device, compiles: bool) -> Compilation | None:
    """Run what is no time of an image: whatever is loaded or compiled with the first passes.

    Args:
        name: The method's name.
        run: A few passes.
        device: The device; on a CPU, only a compiler has something to do.
        compiles: Whether the network was compiled.

    Raises:
        SettingError: It cannot be compiled.
    """
    if device.type != "cuda" and not compiles:
        return None
    try:
        _, compilation = first_pass(run, device)
    except TorchDynamoException as error:
        raise SettingError(
            f"{name} does not compile: {first_line(error)} Leave --compile out (bigain doctor)."
        ) from error
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return compilation if compiles else None


def peak_gib(device: torch.device) -> float | None:
    """Return the most memory of a GPU in use since the warm-up, in GiB; `None` on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def timed(run: Callable[[], Found], device: torch.device) -> tuple[Found, float]:
    """Run something from an idle device to an idle device; return what it returns, and its seconds."""
    found: list[Found] = []
    seconds = host_clock(lambda: found.append(run()), device)
    return found[0], seconds


def count_gflops(
    name: str,
    reducer: TokenReducer,
    backbone: Backbone,
    placement: Placement,
    condition: Condition,
    progress: Progress,
    evaluations: int,
    timesteps: Iterable[float] | None = None,
) -> float | None:
    """Count the network's operations for one image, in billions, from shapes alone.

    Args:
        name: The method's name.
        reducer: The reducer.
        backbone: The model, with nothing attached.
        placement: Where the reducer works.
        condition: What the model is conditioned on; one row is taken.
        progress: Told why a method cannot be counted, if it reads values.
        evaluations: Network evaluations of one image; with `timesteps`, those of one timestep.
        timesteps: Timesteps that the host knows in turn, so that a reducer that switches by timestep
            is what it is at each. Default: rows mix timesteps.
    """
    settled = [reducer] if timesteps is None else [reducer.at(one) for one in timesteps]
    counted: dict[str, float] = {}
    try:
        for one in settled:
            if repr(one) not in counted:
                row = TimedRow(method_of(one), placement, 0)
                counted[repr(one)] = count_operations(backbone, row, condition.take([0]))
    except SettingError as error:
        progress.say(f"{name}: {error}")
        return None
    return evaluations * sum(counted[repr(one)] for one in settled) / 1e9
