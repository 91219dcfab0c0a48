"""Facility location within tiles, and the merge by soft assignment."""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.functional.matching import take
from bigain.functional.precision import without_autocast
from bigain.grid import Grid
from bigain.reducers.base import Reduction
from bigain_toma.tiles import Tiling

__all__ = ["SoftMerge", "select_facilities"]

_NEARLY = 1e-5


@dataclass(frozen=True)
class SoftMerge(Reduction):
    """Tokens shared out among the destinations of their tile.

    With A the shares, `[m, k]` in each tile, columns of which sum to one: reducing
    is y = (A x) / (A 1), restoring is A^T y. That is the transpose, not an inverse:
    what is restored is the mean of destinations, weighted by a token's shares.

    Args:
        shares: A, float32, `[B, T, m, k]`, zero where a tile is filled up.
        destinations: int64, `[B, M]`: the token each place is named after, among all N.
        sizes: Sums of the shares, float32, `[B, M]`.
        grid: How the N tokens lie.
        tiling: Its tiles.
    """

    shares: Tensor
    destinations: Tensor
    sizes: Tensor
    grid: Grid
    tiling: Tiling

    soft = True

    @classmethod
    def on(cls, grid: Grid, tiling: Tiling, tokens: Tensor, scale: float) -> Self:
        """Merge the tokens on a grid, and leave its prefix and suffix as they are.

        Args:
            grid: How the tokens lie.
            tiling: Its tiles.
            tokens: `[B, N, C]`.
            scale: What similarities are multiplied by before the softmax.
        """
        similarity = _similarities(tiling, grid.body(tokens))
        picks = select_facilities(similarity, tiling.real, tiling.places.shape[1])
        shares = _share_out(tiling, scale * similarity.gather(-2, _wide(picks, similarity.shape[-1])))
        sizes = tiling.unfold_reduced(shares.sum(dim=-1, keepdim=True))[..., 0]
        named = tiling.tokens.expand(*picks.shape[:2], -1).gather(-1, picks)
        named = tiling.unfold_reduced(named[..., None]) + grid.prefix
        every = torch.arange(grid.tokens, device=tokens.device).expand(tokens.shape[0], -1)
        destinations = grid.with_body(every[..., None], named)[..., 0]
        return cls(shares, destinations, F.pad(sizes, (grid.prefix, grid.suffix), value=1.0), grid, tiling)

    def reduce(self, tokens: Tensor) -> Tensor:
        tiles = self.tiling.fold(self.grid.body(tokens)).float()
        with without_autocast(tokens.device):
            total = self.tiling.unfold_reduced(self.shares @ tiles)
        body = total / self._short.body(self.sizes[..., None])
        return self.grid.with_body(tokens, body.to(tokens.dtype))

    def restore(self, reduced: Tensor) -> Tensor:
        tiles = self.tiling.fold_reduced(self._short.body(reduced)).float()
        with without_autocast(reduced.device):
            body = self.tiling.unfold(self.shares.transpose(-1, -2) @ tiles)
        return self._short.with_body(reduced, body.to(reduced.dtype))

    def places(self) -> Tensor:
        """Return the place with the largest share in each token, a destination's own for itself, int64 `[B, N]`."""
        best = self.shares.argmax(dim=-2)
        body = self.tiling.places.expand(*best.shape[:2], -1).gather(-1, best)
        body = self.tiling.unfold(body[..., None]) + self.grid.prefix
        every = torch.arange(self.sizes.shape[1], device=body.device).expand(body.shape[0], -1)
        places = self._short.with_body(every[..., None], body)[..., 0]
        return places.scatter(1, self.destinations, every)

    def place_positions(self, values: Tensor) -> Tensor:
        return take(values, self.destinations)

    @property
    def _short(self) -> Grid:
        """The reduced tokens between prefix and suffix."""
        fixed = self.grid.prefix + self.grid.suffix
        return Grid((self.sizes.shape[1] - fixed,), self.grid.prefix, self.grid.suffix)


def select_facilities(similarity: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Choose tokens that between them are similar to all, greedily.

    The first has the largest sum of similarities. Each next one, v, adds the most to
    what the tokens have in their best facility: sum_i relu(S_vi - m_i), where m_i is
    the largest similarity of i to those chosen. None is chosen twice. Of tokens that add
    nearly as much as any (to 1e-5) it is the first: two tokens more similar to each other than to all
    chosen ones add exactly the same, and rounding must not decide.

    Args:
        similarity: S, `[..., k, k]`; zero in columns of tokens that do not count.
        candidates: bool, `[..., k]`, broadcastable: which may be chosen.
        count: How many. Where there are fewer candidates, the rest means nothing.

    Returns:
        int64, `[..., count]`, in the order in which they were chosen.

    References:
        An analysis of approximations for maximizing submodular set functions
        (Nemhauser, Wolsey and Fisher, 1978).
    """
    barred = (~candidates).expand(similarity.shape[:-1])
    gains, covered, picks = similarity.sum(dim=-1), None, []
    for _ in range(count):
        if covered is not None:
            gains = (similarity - covered).relu().sum(dim=-1)
        gains = gains.masked_fill(barred, -math.inf)
        best = gains >= gains.amax(dim=-1, keepdim=True) - _NEARLY
        pick = best.byte().argmax(dim=-1, keepdim=True)
        row = similarity.gather(-2, _wide(pick, similarity.shape[-1]))
        covered = row if covered is None else torch.maximum(covered, row)
        barred = barred.scatter(-1, pick, True)
        picks.append(pick)
    return torch.cat(picks, dim=-1)


def _similarities(tiling: Tiling, body: Tensor) -> Tensor:
    """Compare the tokens of each tile: `[B, N, C]` to cosines, float32 `[B, T, k, k]`."""
    # In float32 whatever the input, also under autocast: in half precision, ties decide.
    unit = F.normalize(body.float(), dim=-1)
    # What fills up a tile is similar to nothing.
    tiles = tiling.fold(unit) * tiling.real[..., None]
    with without_autocast(body.device):
        return tiles @ tiles.transpose(-1, -2)


def _share_out(tiling: Tiling, logits: Tensor) -> Tensor:
    """Share each token out among the destinations of its tile: logits and shares `[B, T, m, k]`."""
    shares = logits.masked_fill(~tiling.taken[..., None], -math.inf).softmax(dim=-2)
    return shares * tiling.real[:, None]


def _wide(rows: Tensor, width: int) -> Tensor:
    """Make an index of whole rows, `[..., m, width]`, of `[..., m]`."""
    return rows[..., None].expand(*rows.shape, width)
