"""L-GTM: destinations where there is least detail."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from bigain.functional.matching import MergeMode
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.bipartite import BipartiteReducer
from bigain.scorers.base import TokenScorer
from bigain.scorers.build import build_scorer

__all__ = ["LGTM"]


class LGTM(BipartiteReducer):
    """Laplacian-gated token merging: the token of least detail in each cell is the destination.

    This is the paper's rule. The authors' released code takes the minimum over
    runs of a row and uses it as a position in a cell; it differs on most tokens.

    Args:
        ratio: Share of the tokens removed.
        scorer: Measures detail.
        cell: Tokens of a cell along each axis.
        mode: `mean`, `prune` or `mlerp`.
        window: Cells of a tile along each axis, within which sources are matched; none for everywhere,
            as published.

    References:
        BiGain, section 3.2.1.
    """

    def __init__(
        self,
        ratio: float,
        scorer: TokenScorer | str | Mapping[str, Any] = "laplacian_l1",
        cell: Sequence[int] | int = (2, 2),
        mode: MergeMode = "mean",
        window: Sequence[int] | int | None = None,
    ) -> None:
        super().__init__(ratio, cell, mode, window)
        self.scorer = build_scorer(scorer)

    def picks(self, tokens: Tensor, grid: Grid, cells: Tensor, context: Context) -> Tensor:
        detail = self.scorer(tokens, grid)
        return detail[:, cells].argmin(dim=-1)

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(0.5),
            cls(0.3, scorer="cosine_neighbors", cell=2, mode="prune", window=2),
            cls(0.7, cell=3, mode="mlerp"),
        ]
