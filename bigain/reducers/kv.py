"""What methods that take keys and values from a coarser grid share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.resample import cell_sizes, coarse_shape, copy_to_cells
from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, NoReduction, Reduction, TokenReducer
from bigain.reducers.cells import sides_on
from bigain.reducers.once import once_a_pass

__all__ = ["Downsampled", "Downsampler"]


@dataclass(frozen=True)
class Downsampled(Reduction):
    """Keys and values on a coarser grid: one token for each cell, prefix and suffix as they are.

    Args:
        sizes: float32, `[B, M]`: the tokens of each cell.
        grid: How the tokens lie.
        factor: Tokens of a cell along each axis.
    """

    kind = "kv"
    sizes: Tensor
    grid: Grid
    factor: tuple[int, ...]

    @abstractmethod
    def shrink(self, body: Tensor) -> Tensor:
        """Map the grid's own tokens, `[B, N_grid, C]`, to one for each cell, in their type."""

    def reduce(self, tokens: Tensor) -> Tensor:
        return self.grid.with_body(tokens, self.shrink(self.grid.body(tokens)))

    def restore(self, reduced: Tensor) -> Tensor:
        coarse = Grid(coarse_shape(self.grid.shape, self.factor), self.grid.prefix, self.grid.suffix)
        fine = copy_to_cells(coarse.body(reduced), self.grid.shape, self.factor)
        return coarse.with_body(reduced, fine)


class Downsampler(TokenReducer):
    """Leaves queries whole and takes keys and values from a coarser grid.

    The grid is cut into cells of `factor` tokens along each axis. Where the factor
    does not divide an axis, the last cell along it is smaller; every token lies in
    exactly one cell. A subclass says what becomes of a cell.

    Args:
        factor: Tokens of a cell along each axis; one number serves every axis.

    Raises:
        SettingError: The factor is not a whole number, or several, of at least 1.
    """

    kind: ClassVar[Kind] = "kv"

    def __init__(self, factor: Sequence[int] | int) -> None:
        self.factor = _checked_factor(factor)

    @abstractmethod
    def downsampled(self, sizes: Tensor, grid: Grid, factor: tuple[int, ...], context: Context) -> Downsampled:
        """Plan for a grid that has fewer cells than tokens.

        Args:
            sizes: float32, `[B, M]`, for the plan, on the device of the tokens.
            grid: How the tokens lie.
            factor: Tokens of a cell along each axis.
            context: The moment.
        """

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        factor = self._factor_on(grid)
        if self.reduced_length(grid) == grid.tokens:
            return NoReduction.of(tokens)
        with torch.no_grad():
            sizes = once_a_pass(context, _sizes, grid, factor, tokens.device).expand(tokens.shape[0], -1)
            return self.downsampled(sizes, grid, factor, context or Context())

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return Grid(coarse_shape(grid.shape, self._factor_on(grid)), grid.prefix, grid.suffix).tokens

    def _factor_on(self, grid: Grid) -> tuple[int, ...]:
        sides = (self.factor,) if isinstance(self.factor, int) else self.factor
        return sides_on(self, "factor", sides, grid)


def _sizes(grid: Grid, factor: tuple[int, ...], device: torch.device) -> Tensor:
    """Count the tokens of each cell, prefix and suffix included: `[M]`."""
    return F.pad(cell_sizes(grid.shape, factor, device), (grid.prefix, grid.suffix), value=1.0)


def _checked_factor(factor: Sequence[int] | int) -> tuple[int, ...] | int:
    sides = tuple(factor) if isinstance(factor, Sequence) else (factor,)
    if not sides or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise SettingError(f"factor is a whole number of at least 1, or one for each axis; got {factor!r}.")
    return sides if isinstance(factor, Sequence) else factor
