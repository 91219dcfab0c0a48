"""A reducer: which tokens become one."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from bigain import Context, Grid, Reduction, TokenReducer, TokenScorer, build_scorer
from bigain.functional.cells import cell_tokens
from bigain.reducers.base import NoReduction
from bigain.reducers.bipartite import Merge
from bigain.reducers.cells import checked_ratio, checked_removal, count_cells

__all__ = ["NeighbourPairs"]


class NeighbourPairs(TokenReducer):
    """Merges the pairs of neighbours with the least detail.

    The last axis is cut into pairs; where its length is odd, its last token has none.
    Of N grid tokens, the floor(N * ratio) pairs whose scores have the smallest sum
    become their mean. Tokens stay in their order.

    Args:
        ratio: Share of the tokens removed.
        scorer: What detail is.

    Raises:
        SettingError: A ratio outside [0, 1); on planning, one for which there are not
            enough pairs.
    """

    # Settings only, each kept as an attribute of its own name: a result folder records them.
    def __init__(self, ratio: float, scorer: TokenScorer | str | Mapping[str, Any] = "template_range") -> None:
        self.ratio = checked_ratio(ratio)
        self.scorer = build_scorer(scorer)

    @property
    def averages(self) -> bool:
        return True

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        body, removed = grid.body(tokens), self._removed_on(grid)
        if not removed:
            return NoReduction.of(tokens)
        pairs, _ = cell_tokens(grid.shape, _pair_on(grid), tokens.device)
        with torch.no_grad():
            detail = self.scorer(body, Grid(grid.shape))[:, pairs].sum(dim=-1)
            merged = detail.argsort(dim=-1, stable=True)[:, :removed]
            absorbed = pairs[:, 1][merged]
            stays = torch.ones_like(body[..., 0], dtype=torch.int64).scatter(1, absorbed, 0)
            # The second of a pair comes right after the first: it adds nothing, and so has the same place.
            place = stays.cumsum(dim=-1) - 1
            kept = stays.argsort(dim=-1, descending=True, stable=True)[:, : grid.size - removed]
            return Merge.on(grid, place, kept, "mean")

    # How many are left depends on grid and settings alone, never on the tokens: shapes stay static.
    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - self._removed_on(grid)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.25), cls(0.4, scorer="laplacian_l1")]

    def _removed_on(self, grid: Grid) -> int:
        pair = _pair_on(grid)
        return checked_removal(self, self.ratio, grid, pair, most=count_cells(grid, pair))


def _pair_on(grid: Grid) -> tuple[int, ...]:
    """Return the sides of a cell that holds two neighbours along the last axis."""
    return (*[1] * (grid.axes - 1), 2)
