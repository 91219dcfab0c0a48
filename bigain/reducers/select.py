"""Select: keys and values from the tokens of least or most detail."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import hashed_picks
from bigain.functional.matching import take
from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, NoReduction, Reduction, TokenReducer
from bigain.scorers.base import TokenScorer
from bigain.scorers.build import build_scorer

__all__ = ["Select", "Selected", "Which"]

Which = Literal["low", "high", "random"]
"""Which tokens stay."""


@dataclass(frozen=True)
class Selected(Reduction):
    """Some of the grid's tokens, in their order; prefix and suffix as they are.

    Args:
        sizes: float32, `[B, M]`: how many tokens lie nearest to each one that stays.
        kept: int64, `[B, K]`: the grid tokens that stay, ascending, counted from the
            grid's first.
        grid: How the tokens lie.
    """

    kind = "kv"
    sizes: Tensor
    kept: Tensor
    grid: Grid

    def reduce(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens, len(self.kept), self.grid.tokens)
        return self.grid.with_body(tokens, take(self.grid.body(tokens), self.kept))

    def restore(self, reduced: Tensor) -> Tensor:
        batch, count = self.kept.shape
        short = Grid((count,), self.grid.prefix, self.grid.suffix)
        tokens = torch.arange(self.grid.size, device=self.kept.device).repeat(batch, 1)
        nearest = torch.searchsorted(_midpoints(self.kept), tokens)
        return short.with_body(reduced, take(short.body(reduced), nearest))


class Select(TokenReducer):
    """Keeps as keys and values the tokens of least, or of most, detail; queries stay whole.

    Of the N grid tokens floor(N * keep) stay, at least one, in their order on the
    grid; of equal scores, the earlier token's counts first. A random choice depends on
    the context's seed, layer and timestep, as ToMe's destinations do, and on `seed`; with
    a generator in the context, one draw serves the whole batch.

    In `sizes` and `restore`, the nearest token that stays, in row-major order, stands for a
    dropped one; of two equally near, the earlier. Attention uses neither, unless it is
    proportional, which was not published for this method.

    Args:
        keep: Share of the tokens that stays.
        scorer: Measures detail.
        which: `low`, `high` or `random`; the last uses no scorer.
        seed: Separates random selections, beside the context's seed.

    Raises:
        SettingError: A share outside (0, 1], or another setting that is not accepted.

    References:
        BiGain, Table 12: lowest and highest Laplacian at 75 % sparsity (keep=0.25).
    """

    kind: ClassVar[Kind] = "kv"

    def __init__(
        self,
        keep: float,
        scorer: TokenScorer | str | Mapping[str, Any] = "laplacian_l1",
        which: Which = "low",
        seed: int = 0,
    ) -> None:
        self.keep = _checked_keep(keep)
        self.scorer = build_scorer(scorer)
        if which not in ("low", "high", "random"):
            raise SettingError(f"which is 'low', 'high' or 'random'; got {which!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise SettingError(f"seed is a whole number; got {seed!r}.")
        self.which: Which = which
        self.seed = seed

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        body, count = grid.body(tokens), self._count(grid)
        if count == grid.size:
            return NoReduction.of(tokens)
        with torch.no_grad():
            if self.which == "random":
                rank = self._draw(body, context or Context())
            else:
                rank = self.scorer(body, Grid(grid.shape))
            order = rank.argsort(dim=1, descending=self.which == "high", stable=True)
            kept = order[:, :count].sort(dim=1).values
            # A token on a midpoint belongs to the one before it.
            ends = F.pad(F.pad(_midpoints(kept) + 1, (1, 0)), (0, 1), value=grid.size)
            sizes = F.pad(ends.diff(dim=1).float(), (grid.prefix, grid.suffix), value=1.0)
        return Selected(sizes, kept, grid)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.prefix + self._count(grid) + grid.suffix

    def _count(self, grid: Grid) -> int:
        return max(1, math.floor(grid.size * self.keep))

    def _draw(self, body: Tensor, context: Context) -> Tensor:
        """Draw a number for each token; int64 or float32, `[B, N_grid]`."""
        batch, count, _ = body.shape
        if context.generator is not None:
            generator = context.generator
            shared = torch.rand(1, count, generator=generator, device=generator.device)
            return shared.to(body.device).expand(batch, -1)
        return hashed_picks(context.draw_rows(body), count, 2**32, context.salt + self.seed * 0x9E3779B1)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.25), cls(0.5, which="high"), cls(0.25, which="random", seed=1)]


def _midpoints(kept: Tensor) -> Tensor:
    """Between neighbours, the last token that belongs to the earlier one; `[B, K - 1]`."""
    return (kept[:, :-1] + kept[:, 1:]) // 2


def _checked_keep(keep: float) -> float:
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise SettingError(f"keep is the share of tokens that stays, in (0, 1]; got {keep!r}.")
    return float(keep)
