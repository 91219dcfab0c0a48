"""ABM: whole tiles of little detail become one token each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import cell_tokens
from bigain.functional.matching import take
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer
from bigain.reducers.cells import checked_cell, checked_ratio, checked_removal, count_cells, sides_on
from bigain.reducers.once import once_a_pass
from bigain.scorers.base import TokenScorer
from bigain.scorers.build import build_scorer

__all__ = ["ABM", "Aggregation", "BlockMerge"]

Aggregation = Literal["sum", "max"]
"""How the scores of a tile's tokens become the tile's."""


@dataclass(frozen=True)
class BlockMerge(Reduction):
    """Tiles averaged into one token each; the other tokens as they are.

    The reduced grid has the merged tiles, then the other tokens.

    Args:
        sizes: float32, `[B, M]`.
        place: int64, `[B, N]`: each token's place in the reduced sequence.
        tiles: int64, `[B, T, k]`: the tokens of each merged tile, counted from the
            grid's first.
        others: int64, `[B, S]`: the grid's other tokens, counted likewise.
        grid: How the tokens lie.
    """

    sizes: Tensor
    place: Tensor
    tiles: Tensor
    others: Tensor
    grid: Grid

    def reduce(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens, *self.place.shape)
        body = self.grid.body(tokens)
        members = take(body, self.tiles.flatten(1))
        merged = members.reshape(*self.tiles.shape, -1).mean(dim=2, dtype=torch.float32).to(tokens.dtype)
        stay = take(body, self.others)
        return self.grid.with_body(tokens, torch.cat([merged, stay], dim=1))

    def restore(self, reduced: Tensor) -> Tensor:
        return take(reduced, self.place)


class ABM(TokenReducer):
    """Adaptive block merging: the tiles of least detail become their mean; nothing is matched.

    With k tokens a tile and r = floor(N * ratio), floor(r / (k - 1)) tiles are merged,
    which removes r tokens or up to k - 2 fewer. Tiles are those that fit on the grid;
    leftover tokens stay as they are. Of equal tiles, the earlier goes first.

    Args:
        ratio: Share of the N grid tokens that is removed, at most.
        scorer: Measures detail.
        aggregation: A tile's detail is the `sum` of its tokens' scores, or the `max`.
        cell: Tokens of a tile along each axis; one number serves every axis.

    Raises:
        SettingError: A setting that is not accepted; when planning, a ratio for which
            there are not enough tiles.

    References:
        BiGain, section 3.2.1 and Algorithm 3 (section C.3).
    """

    def __init__(
        self,
        ratio: float,
        scorer: TokenScorer | str | Mapping[str, Any] = "laplacian_l1",
        aggregation: Aggregation = "sum",
        cell: Sequence[int] | int = (2, 2),
    ) -> None:
        self.ratio = checked_ratio(ratio)
        self.scorer = build_scorer(scorer)
        if aggregation not in ("sum", "max"):
            raise SettingError(f"aggregation is 'sum' or 'max'; got {aggregation!r}.")
        self.aggregation: Aggregation = aggregation
        self.cell = checked_cell(cell)

    @property
    def averages(self) -> bool:
        return True

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        body, count = grid.body(tokens), self._merged(grid)
        if not count:
            return NoReduction.of(tokens)
        batch, cell = tokens.shape[0], self._cell_on(grid)
        with torch.no_grad():
            cells, leftover, goal, sizes = once_a_pass(context, _tables, grid, cell, count, tokens.device)
            scores = self.scorer(body, Grid(grid.shape))[:, cells]
            detail = scores.sum(dim=-1) if self.aggregation == "sum" else scores.amax(dim=-1)
            order = detail.argsort(dim=-1, stable=True)
            tiles, unmerged = cells[order[:, :count]], cells[order[:, count:]].flatten(1)
            others = torch.cat([unmerged, leftover.expand(batch, -1)], dim=1)
            members = torch.cat([tiles.flatten(1), others], dim=1) + grid.prefix
            place = goal.expand(batch, -1).scatter(1, members, goal[grid.prefix :][: grid.size].expand(batch, -1))
        return BlockMerge(sizes.expand(batch, -1), place, tiles, others, grid)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - self._merged(grid) * (math.prod(self._cell_on(grid)) - 1)

    def _merged(self, grid: Grid) -> int:
        """Count the tiles to merge on `grid`."""
        cell = self._cell_on(grid)
        saved = math.prod(cell) - 1
        return checked_removal(self, self.ratio, grid, cell, count_cells(grid, cell) * saved) // saved

    def _cell_on(self, grid: Grid) -> tuple[int, ...]:
        return sides_on(self, "cell", self.cell, grid)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.4, cell=2), cls(0.3, aggregation="max", cell=2)]


def _tables(
    grid: Grid, cell: tuple[int, ...], count: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make the tables for merging `count` tiles; they depend on shapes alone.

    Returns:
        `cells` and `leftover` of `cell_tokens`; the place of each token, `[N]`, if the tokens of merged tiles came
        first on the grid, tile by tile; the size of each place, `[M]`.
    """
    cells, leftover = cell_tokens(grid.shape, cell, device)
    size = cells.shape[1]
    merged = slice(grid.prefix, grid.prefix + count)
    place = torch.arange(grid.tokens - count * (size - 1), device=device)
    goal = torch.cat([place[: merged.start], place[merged].repeat_interleave(size), place[merged.stop :]])
    full = torch.full((count,), float(size), device=device)
    return cells, leftover, goal, F.pad(full, (grid.prefix, len(place) - merged.stop), value=1.0)
