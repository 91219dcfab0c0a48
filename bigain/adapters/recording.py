"""What a report can record of a forward pass."""

from dataclasses import dataclass

from torch import Tensor

from bigain.adapters.base import Part
from bigain.grid import Grid
from bigain.reducers.base import Reduction

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """One plan that a pass makes.

    Args:
        block: Path of the block in the model.
        layer: Its index, counted from the input.
        part: The first part that follows the plan.
        name: Path of that part's module in the model.
        tokens: What the plan is made from, `[B, N, C]`; where rows share plans, the mean of those that share.
        grid: How they lie.
        plan: The plan, with as many rows as `tokens`.
        timestep: Timestep of each row, `[B]`; `None` if the model has none.
    """

    block: str
    layer: int
    part: Part
    name: str
    tokens: Tensor
    grid: Grid
    plan: Reduction
    timestep: Tensor | None
