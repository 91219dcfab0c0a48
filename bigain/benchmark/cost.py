"""What one network evaluation costs under each row of a comparison: operations and time."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bigain.adapters.placement import Placement
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Conditions
from bigain.profiling.latency import interleaved, ratio
from bigain.profiling.modes import GRAPHS, compiled_apart
from bigain.profiling.operations import META, count_pass, on_meta
from bigain.results.scores import Score
from bigain.tasks.method import Applied, Method

__all__ = [
    "TimedRow",
    "backbone_pass",
    "count_operations",
    "time_passes",
    "time_rows",
    "timing_scores",
    "with_shared_weights",
]

Model = TypeVar("Model", bound=nn.Module)

_ENOUGH = 6
"""With fewer passes a ratio has no interval, and milliseconds would look more precise than they are."""


@dataclass(frozen=True)
class TimedRow:
    """A row to count or to time."""

    method: Method
    placement: Placement
    seed: int


def count_operations(backbone: Backbone, row: TimedRow, condition: Conditions, sharing: int = 1) -> float:
    """Count the floating-point operations of one evaluation of one row of a pass.

    Runs on the meta device, without weights or arithmetic; a multiplication and an addition
    count as two. Matrix products, convolutions and attention count, as in
    `torch.utils.flop_counter`; sorting and element-wise work do not.

    Args:
        backbone: The model.
        row: The method, where it works, and its seed.
        condition: What the model is conditioned on; one row suffices.
        sharing: How many evaluations share one plan.

    Raises:
        SettingError: The method cannot run without values.
    """
    copied = on_meta(backbone).eval()
    with row.method.applied(copied, row.placement, row.seed) as applied, _shared(applied, sharing):
        evaluate = backbone_pass(applied.backbone, condition, sharing, META)
        counter = count_pass(lambda _: evaluate(), sharing, f"{row.method!r} cannot be counted")
    return float(counter.get_total_flops()) / sharing


def time_rows(
    backbone: Backbone,
    rows: Mapping[str, TimedRow],
    condition: Conditions,
    pass_rows: int,
    repeats: int,
    compile: bool = False,  # noqa: A002 the name of the setting
    sharing: int = 1,
) -> dict[str, list[float]]:
    """Time one forward pass of each row in turn: the first, the second, .., the first, the second, ..

    Each row has a copy of the network's modules; the copies share their weights.

    Args:
        backbone: The model, on the device and in the type that is timed.
        rows: The rows of the table, by name.
        condition: What the model is conditioned on.
        pass_rows: Rows of one forward pass.
        repeats: Timed rounds.
        compile: Compile each copy to one graph.
        sharing: How many rows of a pass share one plan.

    Returns:
        Seconds of each timed pass, by name; equal indices are of one round.
    """
    device = next(backbone.network.parameters()).device

    def ready(row: TimedRow, stack: ExitStack) -> Callable[[], Tensor]:
        applied = stack.enter_context(row.method.applied(with_shared_weights(backbone), row.placement, row.seed))
        stack.enter_context(_shared(applied, sharing))
        return backbone_pass(applied.backbone, condition, pass_rows, device)

    return time_passes({name: partial(ready, row) for name, row in rows.items()}, repeats, device, compile)


def time_passes(
    ready: Mapping[str, Callable[[ExitStack], Callable[[], Tensor]]],
    repeats: int,
    device: torch.device,
    compile: bool = False,  # noqa: A002 the name of the setting
) -> dict[str, list[float]]:
    """Time one forward pass of each row in turn.

    Args:
        ready: For each row, puts its method to work until the stack ends, and returns a pass.
        repeats: Timed rounds.
        device: Where passes run.
        compile: Compile each row's pass to one graph.

    Returns:
        Seconds of each timed pass, by name; equal indices are of one round.
    """
    with ExitStack() as stack, torch.inference_mode():
        if compile:
            torch.compiler.reset()
            stack.enter_context(torch._dynamo.config.patch(recompile_limit=GRAPHS))  # noqa: SLF001
        passes = {name: make(stack) for name, make in ready.items()}
        passes = {name: compiled_apart(one) for name, one in passes.items()} if compile else passes
        return interleaved(passes, repeats, warmup=1, device=device)


def timing_scores(times: Sequence[float], baseline: Sequence[float] | None, pass_rows: int) -> list[Score]:
    """Score the times of a row: as a multiple of the baseline's and, given enough passes, in milliseconds.

    Args:
        times: Seconds of each pass.
        baseline: Seconds of the first row's passes in the same rounds; `None` for the first row itself.
        pass_rows: Rows of one pass.
    """
    scores = []
    if baseline is not None:
        found = ratio(times, baseline)
        note = f"Median of {found.pairs} ratios, each of two passes timed one after the other."
        scores.append(Score("time", found.median, found.low, found.high, "time", "ratio", "lower", note))
    if len(times) >= _ENOUGH:
        per_row = torch.tensor(list(times), dtype=torch.float64).median() * 1000 / pass_rows
        note = f"Median of {len(times)} passes of {pass_rows} rows."
        scores.append(Score("ms", float(per_row), label="milliseconds", unit="ms", better="lower", note=note))
    return scores


def _shared(applied: Applied, sharing: int) -> Any:
    return nullcontext() if applied.report is None or sharing == 1 else applied.report.shared(sharing)


def backbone_pass(backbone: Backbone, condition: Conditions, rows: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that evaluates rows at different timesteps and conditions.

    Args:
        backbone: The model.
        condition: What the model is conditioned on; its rows take turns.
        rows: Rows of the pass.
        device: Where it runs; on `meta` nothing is computed.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    noisy = torch.randn(rows, *backbone.latent_shape, generator=generator, dtype=torch.float32).to(device)
    t = torch.linspace(0, backbone.process.steps - 1, rows, device=device).long()
    given = condition.take([row % len(condition) for row in range(rows)]).to(device)
    return lambda: backbone.predict(noisy, t, given)


def with_shared_weights(model: Model) -> Model:
    """Copy the modules of a model, which share its tensors."""
    tensors: Iterator[Tensor | nn.Parameter] = iter([*model.parameters(), *model.buffers()])
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
