"""What one network evaluation costs: operations and time."""

from dataclasses import dataclass

import torch

from bigain.adapters.placement import Placement
from bigain.benchmark.flops import FlopCounter, backbone_inputs
from bigain.diffusion.backbone import Backbone
from bigain.profiling.latency import quartiles, time_passes
from bigain.reducers.base import TokenReducer

__all__ = ["Latency", "count_flops", "measure_latency"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one network evaluation, in batches of `rows`.

    Args:
        median: Median over the repeats.
        low: First quartile.
        high: Third quartile.
        rows: Rows of one forward pass.
        repeats: Timed passes, after the warm-up.
    """

    median: float
    low: float
    high: float
    rows: int
    repeats: int


def count_flops(
    backbone: Backbone, reducer: TokenReducer, placement: Placement = Placement(), sharing: int = 1
) -> float:
    """Count the floating-point operations of one evaluation of one image.

    Runs on the meta device, without weights or arithmetic; a multiplication and
    an addition count as two. Matrix products, convolutions and attention count,
    as in `torch.utils.flop_counter`; sorting and element-wise work do not.

    Args:
        backbone: The model.
        reducer: What is attached to it.
        placement: Where.
        sharing: So many evaluations share one plan.

    Returns:
        Operations of one evaluation; a share of the plan's where it is shared.
    """
    return FlopCounter(backbone).count(reducer, placement, sharing).total


def measure_latency(backbone: Backbone, rows: int, repeats: int = 20, warmup: int = 1) -> Latency:
    """Time the backbone as it is: attached, compiled, on its device.

    Args:
        backbone: The model, with whatever reducer is attached.
        rows: Rows of one forward pass.
        repeats: Timed passes.
        warmup: Passes before, not timed; compilation falls there.
    """
    weight = next(backbone.network.parameters())
    noisy, step, label = backbone_inputs(backbone, rows, weight.device, torch.float32)
    with torch.inference_mode():
        times = time_passes(lambda: backbone.predict_noise(noisy, step, label), weight.device, repeats, warmup)
    low, median, high = quartiles([elapsed / rows for elapsed in times])
    return Latency(median, low, high, rows, repeats)
