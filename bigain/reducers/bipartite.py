"""What ToMe and L-GTM share: one destination in each cell, greedy cosine matching."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import cell_tokens, split_by_pick
from bigain.functional.matching import (
    MergeMode,
    group_order,
    group_sizes,
    merge,
    most_similar,
    place_merged,
    restore,
    take,
)
from bigain.functional.windows import most_similar_within
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer
from bigain.reducers.cells import (
    checked_cell,
    checked_ratio,
    checked_removal,
    checked_window,
    count_cells,
    sides_on,
)
from bigain.reducers.once import once_a_pass

__all__ = ["BipartiteReducer", "Merge"]

_MODES = ("mean", "prune", "mlerp")


@dataclass(frozen=True)
class Merge(Reduction):
    """Tokens merged by an assignment.

    Args:
        place: int64, `[B, N]`: each token's place in the reduced sequence.
        representatives: int64, `[B, M]`: the token each place stands for.
        sizes: float32, `[B, M]`.
        mode: How a group becomes one token.
        order: What `functional.matching.group_order` returns.
    """

    place: Tensor
    representatives: Tensor
    sizes: Tensor
    mode: MergeMode = "mean"
    order: Tensor | None = None

    @classmethod
    def on(cls, grid: Grid, place: Tensor, representatives: Tensor, mode: MergeMode) -> Self:
        """Merge the tokens on a grid, and leave its prefix and suffix as they are.

        Args:
            grid: How the tokens lie.
            place: int64, `[B, N_grid]`: each grid token's place among the reduced ones.
            representatives: int64, `[B, M_grid]`: the grid token that each place stands for.
            mode: How a group becomes one token.
        """
        place, representatives = _with_fixed(place, representatives, grid)
        length = representatives.shape[1]
        order = None if mode == "prune" else group_order(place, length)
        return cls(place, representatives, group_sizes(place, length), mode, order)

    def reduce(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens, *self.place.shape)
        return merge(tokens, self.place, self.representatives, self.mode, self.order, self.sizes)

    def restore(self, reduced: Tensor) -> Tensor:
        return restore(reduced, self.place)

    def place_positions(self, values: Tensor) -> Tensor:
        return take(values, self.representatives)


class BipartiteReducer(TokenReducer):
    """Merges the best-matched sources of a grid into one destination for each cell.

    A subclass says which token of each cell is the destination. Leftover tokens
    of a grid that cells do not divide are sources.

    Args:
        ratio: Share of the N grid tokens that is removed: floor(N * ratio).
        cell: Tokens of a cell along each axis; one number serves every axis.
        mode: `mean`, `prune` or `mlerp`.
        window: Cells of a tile along each axis; one number serves every axis. A source then
            sees the destinations of its own tile alone, so that matching costs N instead
            of N^2. Default: all of them, as published.

    Raises:
        SettingError: A ratio outside [0, 1), an impossible cell or window, an unknown mode.
    """

    def __init__(
        self,
        ratio: float,
        cell: Sequence[int] | int = 2,
        mode: MergeMode = "mean",
        window: Sequence[int] | int | None = None,
    ) -> None:
        self.ratio = checked_ratio(ratio)
        self.cell = checked_cell(cell)
        if mode not in _MODES:
            raise SettingError(f"mode is one of {', '.join(_MODES)}; got {mode!r}.")
        self.mode: MergeMode = mode
        self.window = checked_window(window)

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

    @property
    def averages(self) -> bool:
        return self.mode == "mean"

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        removed = self.removed_on(grid)
        body, inner = grid.body(tokens), Grid(grid.shape)
        if not removed:
            return NoReduction.of(tokens)
        with torch.no_grad():
            cells, leftover = once_a_pass(context, cell_tokens, grid.shape, self.cell_on(grid), tokens.device)
            picks = self.picks(body, inner, cells, context or Context())
            destinations, sources = split_by_pick(cells, leftover, picks)
            if self.window is None:
                best, partner = most_similar(body, sources, destinations)
            else:
                best, partner = most_similar_within(
                    body, sources, destinations, grid.shape, self.cell_on(grid), self._window_on(grid)
                )
            place, representatives = place_merged(best, partner, sources, destinations, removed)
            return Merge.on(grid, place, representatives, self.mode)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - self.removed_on(grid)

    def cell_on(self, grid: Grid) -> tuple[int, ...]:
        """Return the sides of a cell on a grid.

        Raises:
            SettingError: The cell has another number of axes.
        """
        return sides_on(self, "cell", self.cell, grid)

    def _window_on(self, grid: Grid) -> tuple[int, ...]:
        """Return the cells of a tile along each axis, no more than there are."""
        sides = sides_on(self, "window", self.window or (1,), grid)
        cells = [length // side for length, side in zip(grid.shape, self.cell_on(grid), strict=True)]
        return tuple(min(side, most) for side, most in zip(sides, cells, strict=True))

    def removed_on(self, grid: Grid) -> int:
        """Return how many tokens of a grid are removed.

        Raises:
            SettingError: That is more than there are sources.
        """
        cell = self.cell_on(grid)
        cells = count_cells(grid, cell)
        return checked_removal(self, self.ratio, grid, cell, grid.size - cells if cells else 0)


def _with_fixed(place: Tensor, representatives: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Put prefix and suffix tokens back around the reduced grid, each in a place of its own."""
    if not grid.prefix and not grid.suffix:
        return place, representatives
    batch, length = representatives.shape
    before = torch.arange(grid.prefix, device=place.device).expand(batch, -1)
    after = torch.arange(grid.suffix, device=place.device).expand(batch, -1)
    place = torch.cat([before, place + grid.prefix, after + grid.prefix + length], dim=1)
    return place, torch.cat([before, representatives + grid.prefix, after + grid.prefix + grid.size], dim=1)
