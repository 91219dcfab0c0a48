"""ToMe as vision transformers use it: every other token of the sequence merges into those between."""

import math
from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.matching import assign_to_most_similar
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer
from bigain.reducers.bipartite import Merge
from bigain.reducers.cells import checked_ratio

__all__ = ["ToMeViT"]


class ToMeViT(TokenReducer):
    """Token merging for vision transformers: no randomness, no cells, tokens in sequence order.

    Counted from the sequence's first token, those at even places are sources and those
    at odd places destinations; the best-matched sources merge into their most similar
    destination. Prefix and suffix take part in neither. What is left lies in the order of
    the authors' code for models with a class token: prefix, remaining sources,
    destinations, each in the order they had.

    In progressive placements the next block splits that sequence again.

    Args:
        ratio: Share of the N grid tokens that is removed, floor(N * ratio), up to a half.

    Raises:
        SettingError: A ratio outside [0, 1); on planning, one above a half.

    References:
        Token Merging: Your ViT but Faster (Bolya et al., 2023), section 3.
    """

    def __init__(self, ratio: float = 0.5) -> None:
        self.ratio = checked_ratio(ratio)

    @property
    def averages(self) -> bool:
        return True

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        removed, body = self._removed(grid), grid.body(tokens)
        if not removed:
            return NoReduction.of(tokens)
        with torch.no_grad():
            odd = grid.prefix % 2
            sources = torch.arange(odd, grid.size, 2, device=tokens.device).expand(len(tokens), -1)
            destinations = torch.arange(1 - odd, grid.size, 2, device=tokens.device).expand(len(tokens), -1)
            return Merge.on(grid, *assign_to_most_similar(body, sources, destinations, removed), "mean")

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - self._removed(grid)

    def _removed(self, grid: Grid) -> int:
        removed = math.floor(grid.size * self.ratio)
        if removed > grid.size // 2:
            raise SettingError(
                f"ToMeViT with ratio={self.ratio:g} would remove {removed} of {grid.size} tokens; "
                f"at once it can remove at most {grid.size // 2}, half of them."
            )
        return removed

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(0.2)]
