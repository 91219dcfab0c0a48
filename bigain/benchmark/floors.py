"""What no reducer can beat: the same number of tokens without the work of choosing them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer

__all__ = ["Sliced", "SlicedReduction", "first_merging", "removed_share"]


@dataclass(frozen=True)
class SlicedReduction(Reduction):
    """The first M tokens; the others are restored to zero, so that a residual connection leaves them as they were.

    Args:
        sizes: Ones, float32, `[B, M]`.
        count: N.
    """

    sizes: Tensor
    count: int

    def reduce(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens, self.sizes.shape[0], self.count)
        return tokens[:, : self.sizes.shape[1]]

    def restore(self, reduced: Tensor) -> Tensor:
        return F.pad(reduced, (0, 0, 0, self.count - reduced.shape[1]))


class Sliced(TokenReducer):
    """Takes the first tokens, as many as another reducer leaves: nothing is planned, gathered or restored.

    Args:
        like: The reducer whose reduced length it has.
    """

    def __init__(self, like: TokenReducer) -> None:
        self.like = like

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        length = self.reduced_length(grid, context)
        ones = torch.ones(tokens.shape[0], length, dtype=torch.float32, device=tokens.device)
        return SlicedReduction(ones, tokens.shape[1])

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return self.like.reduced_length(grid, context)


def first_merging(reducers: dict[str, TokenReducer]) -> tuple[str, TokenReducer] | None:
    """Find the first reducer that merges, whose ratio floors and peers have."""
    return next(((name, one) for name, one in reducers.items() if one.kinds == {"merge"}), None)


def removed_share(reducer: TokenReducer, grid: Grid) -> float:
    """Return the share of the tokens of a grid that a reducer removes."""
    return 1 - reducer.reduced_length(grid) / grid.tokens
