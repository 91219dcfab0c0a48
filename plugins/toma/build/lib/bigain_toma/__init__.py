"""ToMA for bigain: choose destinations by facility location, merge softly, restore by the transpose."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer
from bigain.reducers.cells import checked_ratio, sides_on
from bigain_toma.merging import SoftMerge
from bigain_toma.tiles import Tiling, smallest_tile

__all__ = ["ToMA"]

_SHARPEST = 1e6


class ToMA(TokenReducer):
    """Token merge with attention: facility location in tiles, and soft assignment.

    The grid is cut into tiles. In each, destinations are chosen greedily so that
    every token has one that is similar to it. A token is shared out among the
    destinations of its tile: the softmax of `scale` times its cosine similarities.
    A destination becomes the mean of the tile's tokens, weighted by their shares; after
    the layer, a token takes the mean of the destinations' outputs, weighted by its shares.

    Of N grid tokens floor(N * ratio) are removed. Where sides do not divide an axis of
    n tokens, it is cut into ceil(n / side) tiles as nearly equal as possible; the
    reduced tokens are shared out among tiles by their sizes.

    Args:
        ratio: Share of the tokens removed.
        tile: Most tokens of a tile along each axis; one number serves every axis.
        scale: What similarities are multiplied by: the higher, the nearer to one
            destination a token. The inverse of a temperature.

    Raises:
        SettingError: A ratio outside [0, 1), a tile that holds no two tokens, a scale
            outside (0, 1e6]; on planning, a ratio that leaves some tile no destination.

    References:
        ToMA: Token Merge with Attention for Diffusion Models (Lu et al., ICML 2025), and
        its released code.
    """

    def __init__(self, ratio: float, tile: Sequence[int] | int = (4, 4), scale: float = 1000.0) -> None:
        self.ratio = checked_ratio(ratio)
        self.tile = _checked_tile(tile)
        # Beyond, the rounding of similarities in float32 would decide.
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= _SHARPEST:
            raise SettingError(f"scale is a number above 0 and at most {_SHARPEST:g}; got {scale!r}.")
        self.scale = float(scale)

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        length = grid.size - self._removed_on(grid)
        if length == grid.size:
            return NoReduction.of(tokens)
        with torch.no_grad():
            tiling = Tiling.of(grid.shape, self._tile_on(grid), length, tokens.device)
            return SoftMerge.on(grid, tiling, tokens, self.scale)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - self._removed_on(grid)

    @classmethod
    def examples(cls) -> list[Self]:
        # Not the default scale: checks compare to 1e-5, and a thousand times a similarity's rounding error is more.
        return [cls(0.5, tile=4, scale=20.0), cls(0.3, tile=3, scale=5.0)]

    def _tile_on(self, grid: Grid) -> tuple[int, ...]:
        return sides_on(self, "tile", self.tile, grid)

    def _removed_on(self, grid: Grid) -> int:
        tile, removed = self._tile_on(grid), math.floor(grid.size * self.ratio)
        most = grid.size - -(-grid.size // smallest_tile(grid.shape, tile))
        if removed > most:
            raise SettingError(
                f"ToMA with ratio={self.ratio} would remove {removed} of {grid.size} tokens; with tiles of {tile} on a "
                f"grid of {grid.shape} it can remove at most {most}, so that each tile keeps one. Lower the ratio or "
                "enlarge the tile."
            )
        return removed


def _checked_tile(tile: Sequence[int] | int) -> tuple[int, ...]:
    sides = tuple(tile) if isinstance(tile, Sequence) else (tile,)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if not sides or not whole or min(sides) < 1 or max(sides) < 2:
        raise SettingError(f"A tile is one or more whole numbers >= 1, one of them >= 2; got {tile!r}.")
    return sides
