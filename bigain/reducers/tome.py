"""ToMe as Stable Diffusion uses it: destinations at random."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import hashed_picks
from bigain.functional.matching import MergeMode
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.bipartite import BipartiteReducer

__all__ = ["ToMe"]


class ToMe(BipartiteReducer):
    """Token merging with a random destination in each cell.

    Rows at the same timestep share their destinations. The draw depends on the
    context's seed, layer and timestep alone, so that an image meets the same
    destinations in whatever batch it stands; with a generator in the context, one
    draw serves the whole batch, as in the authors' code.

    Args:
        ratio: Share of the tokens removed.
        randomize: Draw destinations; otherwise the first (top-left) token of each
            cell. Turn it off for a control against deterministic methods.
        cell: Tokens of a cell along each axis.
        mode: `mean`, `prune` or `mlerp`.
        window: Cells of a tile along each axis, within which sources are matched; none for everywhere,
            as published.

    References:
        Token Merging for Fast Stable Diffusion (Bolya and Hoffman, 2023).
    """

    def __init__(
        self,
        ratio: float,
        randomize: bool = True,
        cell: Sequence[int] | int = (2, 2),
        mode: MergeMode = "mean",
        window: Sequence[int] | int | None = None,
    ) -> None:
        super().__init__(ratio, cell, mode, window)
        if not isinstance(randomize, bool):
            raise SettingError(f"randomize is true or false; got {randomize!r}.")
        self.randomize = randomize

    def picks(self, tokens: Tensor, grid: Grid, cells: Tensor, context: Context) -> Tensor:
        batch, (count, choices) = tokens.shape[0], cells.shape
        if not self.randomize:
            return torch.zeros(batch, count, dtype=torch.int64, device=tokens.device)
        if context.generator is not None:
            generator = context.generator
            shared = torch.randint(choices, (1, count), generator=generator, device=generator.device)
            return shared.to(tokens.device).expand(batch, -1)
        return hashed_picks(context.draw_rows(tokens), count, choices, context.salt)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.5, window=1), cls(0.3, randomize=False, cell=2, mode="mlerp"), cls(0.7, cell=3, mode="prune")]
