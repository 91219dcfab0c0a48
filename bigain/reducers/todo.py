"""ToDo: keys and values from one token of each cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.resample import cell_token
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.kv import Downsampled, Downsampler

__all__ = ["Pick", "Picked", "ToDo"]

Pick = Literal["nearest-exact", "nearest"]
"""Which token of a cell, by the names `torch.nn.functional.interpolate` gives them."""


@dataclass(frozen=True)
class Picked(Downsampled):
    """One token of each cell.

    Args:
        sizes: float32, `[B, M]`.
        grid: How the tokens lie.
        factor: Tokens of a cell along each axis.
        pick: Which token.
    """

    pick: Pick = "nearest-exact"

    def shrink(self, body: Tensor) -> Tensor:
        return cell_token(body, self.grid.shape, self.factor, middle=self.pick == "nearest-exact")


class ToDo(Downsampler):
    """Token downsampling: attention sees one key and value of each cell; queries stay whole.

    Args:
        factor: Tokens of a cell along each axis; one number serves every axis. Where
            it does not divide an axis, the last cell along it is smaller.
        pick: `nearest-exact`: the token at `factor // 2` of the cell along each axis
            (of a smaller cell that ends before: its last), as BiGain ran it.
            `nearest`: the cell's first token, as the authors of ToDo do.

    References:
        ToDo: Token Downsampling for Efficient Generation of High-Resolution Images (Smith et al., 2024).
    """

    def __init__(self, factor: Sequence[int] | int, pick: Pick = "nearest-exact") -> None:
        super().__init__(factor)
        if pick not in ("nearest-exact", "nearest"):
            raise SettingError(f"pick is 'nearest-exact' or 'nearest'; got {pick!r}.")
        self.pick: Pick = pick

    def downsampled(self, sizes: Tensor, grid: Grid, factor: tuple[int, ...], context: Context) -> Picked:
        return Picked(sizes, grid, factor, self.pick)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(2), cls(3), cls(2, pick="nearest")]
