"""Scorers that compare a token's direction with others; similar means little detail."""

from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.filters import NeighbourPadding, neighbour_cosine
from bigain.functional.precision import token_norms
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer

__all__ = ["CosineGlobalMean", "CosineNeighbors"]


class CosineNeighbors(TokenScorer):
    """Mean cosine between a token and its neighbours.

    `mean_j cos(x_i, x_j)`, j being the two tokens next to i along every axis: 2, 4 or 6
    on grids of 1, 2 or 3 axes. Detail is low; in [-1, 1]. A token of zeros has cosine 0
    with every token.

    Args:
        padding: What a neighbour beyond the border counts as. `valid`, as published: it
            does not count, the mean is over the neighbours on the grid, and a token that
            has none scores 1. `zeros`: as cosine 0. `replicate`: as the token itself,
            cosine 1.

    References:
        BiGain, Table 13.
    """

    detail_is: Literal["high", "low"] = "low"

    def __init__(self, padding: NeighbourPadding = "valid") -> None:
        if padding not in ("valid", "zeros", "replicate"):
            raise SettingError(f"padding is 'valid', 'zeros' or 'replicate'; got {padding!r}.")
        self.padding: NeighbourPadding = padding

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls("valid"), cls("zeros"), cls("replicate")]

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return neighbour_cosine(tokens, grid.shape, self.padding)


class CosineGlobalMean(TokenScorer):
    """Cosine between a token and the mean token of its image.

    `cos(x_i, mu)`, mu being the mean over the grid's tokens. Detail is low; in [-1, 1].
    It is 0 for a token of zeros, and for all tokens where their mean is zero.

    References:
        BiGain, Table 13.
    """

    detail_is: Literal["high", "low"] = "low"

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        wide = tokens.float()
        direction = F.normalize(wide.mean(dim=1, keepdim=True), dim=-1)
        return (wide * direction).sum(dim=-1) / token_norms(wide).clamp_min(1e-12)
