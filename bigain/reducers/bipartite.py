"""What ToMe and L-GTM share: one destination a cell, greedy cosine matching."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import cell_tokens, split_by_pick
from bigain.functional.matching import MergeMode, assign_to_most_similar, group_sizes, merge, restore
from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer

__all__ = ["BipartiteReducer", "Merge", "checked_ratio"]

_MODES = ("mean", "prune", "mlerp")


@dataclass(frozen=True)
class Merge(Reduction):
    """Tokens merged by an assignment.

    Args:
        place: int64, `[B, N]`: each token's place in the reduced sequence.
        representatives: int64, `[B, M]`: the token each place stands for.
        sizes: float32, `[B, M]`.
        mode: How a group becomes one token.
    """

    place: Tensor
    representatives: Tensor
    sizes: Tensor
    mode: MergeMode = "mean"

    def reduce(self, tokens: Tensor) -> Tensor:
        return merge(tokens, self.place, self.representatives, self.mode)

    def restore(self, reduced: Tensor) -> Tensor:
        return restore(reduced, self.place)


class BipartiteReducer(TokenReducer):
    """Merges the best-matched sources of a grid into one destination a cell.

    A subclass says which token of each cell is the destination. Leftover tokens
    of a grid that cells do not divide are sources.

    Args:
        ratio: Share of the N grid tokens that is removed: floor(N * ratio).
        cell: Tokens of a cell along each axis; one number serves every axis.
        mode: `mean`, `prune` or `mlerp`.

    Raises:
        SettingError: A ratio outside [0, 1), an impossible cell, an unknown mode.
    """

    def __init__(self, ratio: float, cell: Sequence[int] | int = 2, mode: MergeMode = "mean") -> None:
        self.ratio = checked_ratio(ratio)
        self.cell = _checked_cell(cell)
        if mode not in _MODES:
            raise SettingError(f"mode is one of {', '.join(_MODES)}; got {mode!r}.")
        self.mode: MergeMode = mode

    @abstractmethod
    def picks(self, tokens: Tensor, grid: Grid, cells: Tensor, context: Context) -> Tensor:
        """Say which token of each cell is the destination.

        Args:
            tokens: Grid tokens alone, `[B, N_grid, C]`.
            grid: How they lie, without prefix and suffix.
            cells: `[D, k]`, the tokens of each cell.
            context: The moment.

        Returns:
            int64, `[B, D]`, from 0 to k - 1.
        """

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        removed = self._removed(grid)
        body, inner = grid.body(tokens), Grid(grid.shape)
        cells, leftover = cell_tokens(grid.shape, self._cell_on(grid), tokens.device)
        with torch.no_grad():
            picks = self.picks(body, inner, cells, context or Context())
            destinations, sources = split_by_pick(cells, leftover, picks)
            place, representatives = assign_to_most_similar(body, sources, destinations, removed)
            place, representatives = _with_fixed(place, representatives, grid)
            sizes = group_sizes(place, representatives.shape[1])
        return Merge(place, representatives, sizes, self.mode)

    def reduced_length(self, grid: Grid) -> int:
        return grid.tokens - self._removed(grid)

    def _cell_on(self, grid: Grid) -> tuple[int, ...]:
        cell = self.cell * grid.axes if len(self.cell) == 1 else self.cell
        if len(cell) != grid.axes:
            raise SettingError(
                f"{type(self).__name__} got a cell of {len(cell)} axes {cell} for a grid of "
                f"{grid.axes} axes {grid.shape}; give one number for all axes, or one an axis."
            )
        return cell

    def _removed(self, grid: Grid) -> int:
        cell = self._cell_on(grid)
        destinations = math.prod([n // s for n, s in zip(grid.shape, cell, strict=True)])
        if not destinations:
            raise SettingError(f"No cell of {cell} fits on a grid of {grid.shape}.")
        removed, most = math.floor(grid.size * self.ratio), grid.size - destinations
        if removed > most:
            raise SettingError(
                f"{type(self).__name__} with ratio={self.ratio} would remove {removed} of {grid.size} tokens; "
                f"with cells of {cell} on a grid of {grid.shape} it can remove at most {most} "
                f"(ratio {math.floor(1000 * most / grid.size) / 1000:g}). Lower the ratio or enlarge the cell."
            )
        return removed


def checked_ratio(ratio: float) -> float:
    """Return `ratio`, refusing what is not a share in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise SettingError(f"ratio is the share of tokens removed, in [0, 1); got {ratio!r}.")
    return float(ratio)


def _checked_cell(cell: Sequence[int] | int) -> tuple[int, ...]:
    sides = tuple(cell) if isinstance(cell, Sequence) else (cell,)
    if not sides or any(not isinstance(side, int) or side < 1 for side in sides) or max(sides) < 2:
        raise SettingError(f"A cell is one or more whole numbers >= 1, one of them >= 2; got {cell!r}.")
    return sides


def _with_fixed(place: Tensor, representatives: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Put prefix and suffix tokens back around the reduced grid, each in a place of its own."""
    if not grid.prefix and not grid.suffix:
        return place, representatives
    batch, length = representatives.shape
    before = torch.arange(grid.prefix, device=place.device).expand(batch, -1)
    after = torch.arange(grid.suffix, device=place.device).expand(batch, -1)
    place = torch.cat([before, place + grid.prefix, after + grid.prefix + length], dim=1)
    return place, torch.cat([before, representatives + grid.prefix, after + grid.prefix + grid.size], dim=1)
