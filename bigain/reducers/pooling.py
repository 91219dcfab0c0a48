"""Pooling: keys and values from the mean or the maximum of each cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.resample import cell_average, cell_maximum
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.kv import Downsampled, Downsampler

__all__ = ["Pool", "Pooled", "Pooling"]

Pool = Literal["average", "max"]
"""How a cell becomes one token."""


@dataclass(frozen=True)
class Pooled(Downsampled):
    """The mean or the maximum of each cell.

    Args:
        sizes: float32, `[B, M]`.
        grid: How the tokens lie.
        factor: Tokens of a cell along each axis.
        pool: Which of the two.
    """

    pool: Pool = "average"

    def shrink(self, body: Tensor) -> Tensor:
        if self.pool == "max":
            return cell_maximum(body, self.grid.shape, self.factor)
        return cell_average(body, self.grid.shape, self.factor).to(body.dtype)


class Pooling(Downsampler):
    """Attention sees the mean, or the maximum, of each cell as its key and value; queries stay whole.

    Args:
        factor: Tokens of a cell along each axis; one number serves every axis. Where
            it does not divide an axis, the last cell along it is smaller and is
            pooled over the tokens it has.
        pool: `average`, or `max` channel by channel.

    References:
        BiGain, section C.4 and Table 15 (alpha = 0).
    """

    def __init__(self, factor: Sequence[int] | int, pool: Pool = "average") -> None:
        super().__init__(factor)
        if pool not in ("average", "max"):
            raise SettingError(f"pool is 'average' or 'max'; got {pool!r}.")
        self.pool: Pool = pool

    @property
    def averages(self) -> bool:
        return self.pool == "average"

    def downsampled(self, sizes: Tensor, grid: Grid, factor: tuple[int, ...], context: Context) -> Pooled:
        return Pooled(sizes, grid, factor, self.pool)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(2), cls(3), cls(2, pool="max")]
