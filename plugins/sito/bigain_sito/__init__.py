"""SiTo for bigain: prune tokens that another one resembles, and copy them back."""

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import cell_tokens, hashed_normal, split_by_pick
from bigain.functional.matching import cosine_matrix
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction
from bigain.reducers.bipartite import BipartiteReducer, Merge

__all__ = ["SiTo"]


class SiTo(BipartiteReducer):
    """Similarity-based token pruning.

    In each cell the token that is most similar to the whole image, give or take some
    noise, is a base token; all others, and the leftover tokens of a grid that cells
    do not divide, are sources. Of N grid tokens, the floor(N * ratio) sources most
    similar to any base token are pruned. After the layer each of them takes the output
    of the kept token most similar to it, base token or source. Nothing is averaged.

    The noise depends on the context's seed, layer and timestep alone; with a
    generator in the context, one draw serves the whole batch.

    Args:
        ratio: Share of the tokens removed.
        cell: Tokens of a cell along each axis; one number serves every axis.
        noise: Standard deviation of the noise on a token's summed cosine similarity.

    Raises:
        SettingError: A ratio outside [0, 1), an impossible cell, negative noise; on
            planning, a ratio for which there are not enough sources.

    References:
        Training-Free and Hardware-Friendly Acceleration for Diffusion Models via
        Similarity-based Token Pruning (Zhang et al., AAAI 2025), and its released code.
    """

    def __init__(self, ratio: float, cell: Sequence[int] | int = (2, 2), noise: float = 0.1) -> None:
        super().__init__(ratio, cell, mode="prune")
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
            raise SettingError(f"noise is a finite number of at least 0; got {noise!r}.")
        self.noise = float(noise)

    def picks(self, tokens: Tensor, grid: Grid, cells: Tensor, context: Context) -> Tensor:
        unit = F.normalize(tokens.float(), dim=-1)
        # The sum over j of cos(x_i, x_j) is x_i . (the sum of all x_j): no N x N matrix.
        likeness = (unit * unit.sum(dim=1, keepdim=True)).sum(dim=-1)
        if self.noise:
            likeness = likeness + self.noise * _normal(tokens, context)
        return likeness[:, cells].argmax(dim=-1)

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        removed = self.removed_on(grid)
        body = grid.body(tokens)
        if not removed:
            return NoReduction.of(tokens)
        cells, leftover = cell_tokens(grid.shape, self.cell_on(grid), tokens.device)
        with torch.no_grad():
            picks = self.picks(body, Grid(grid.shape), cells, context or Context())
            bases, sources = split_by_pick(cells, leftover, picks)
            place, kept = _prune(body, sources, bases, removed)
            return Merge.on(grid, place, kept, self.mode)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.5, cell=2), cls(0.3, cell=2, noise=0.0)]


def _normal(tokens: Tensor, context: Context) -> Tensor:
    """Draw standard normal noise for each token of `[B, N, C]`."""
    batch, count, _ = tokens.shape
    if context.generator is not None:
        generator = context.generator
        shared = torch.randn(1, count, generator=generator, device=generator.device)
        return shared.to(tokens.device).expand(batch, -1)
    return hashed_normal(context.draw_rows(tokens), count, context.salt)


def _prune(body: Tensor, sources: Tensor, bases: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """Prune the sources most similar to a base token.

    Returns:
        Each token's place in the reduced sequence, `[B, N]`, and the kept tokens, `[B, N - removed]`.
    """
    nearness = cosine_matrix(body, sources, bases).amax(dim=-1)
    order = sources.gather(1, nearness.argsort(dim=-1, descending=True, stable=True))
    pruned, kept = order[:, :removed], torch.cat([order[:, removed:], bases], dim=1)
    substitute = cosine_matrix(body, pruned, kept).argmax(dim=-1)
    own = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape[0], -1)
    tokens, goal = torch.cat([pruned, kept], dim=1), torch.cat([substitute, own], dim=1)
    return torch.empty_like(tokens).scatter(1, tokens, goal), kept
