"""A high pass by the discrete cosine transform over a grid, and the scorer that measures it."""

import math
from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.precision import without_autocast
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer
from bigain_wavelet.norm import Norm, checked_norm, magnitude

__all__ = ["DCTHighBand", "dct_high_pass"]


class DCTHighBand(TokenScorer):
    """Magnitude of what a high pass over the grid leaves of a token.

    `|x_i - (P x)_i|` over the channels, P being the projection onto the low bands of the
    orthonormal cosine transform (DCT-II) over the grid. Of the n frequencies of an axis
    the lowest `floor(cutoff * n)`, at least the constant one, are low; a band is low
    where it is low along every axis. An axis of one token has no high frequency. Detail
    is high; 0 and up.

    Args:
        cutoff: Share of the frequencies of each axis that are low, in [0, 1). With 0 only
            the constant band is, and the score is the distance from the mean token.
        norm: `l1` or `l2`, over the channels.

    Raises:
        SettingError: A cutoff outside [0, 1), or an unknown norm.

    References:
        Discrete cosine transform (Ahmed, Natarajan and Rao, 1974).
    """

    def __init__(self, cutoff: float = 0.5, norm: Norm = "l1") -> None:
        if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 <= cutoff < 1:
            raise SettingError(f"cutoff is the share of frequencies that are low, in [0, 1); got {cutoff!r}.")
        self.cutoff = float(cutoff)
        self.norm: Norm = checked_norm(norm)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(cutoff=0.3, norm="l2"), cls(cutoff=0.0)]

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return magnitude(dct_high_pass(tokens, grid.shape, self.cutoff), self.norm)


def dct_high_pass(tokens: Tensor, shape: tuple[int, ...], cutoff: float) -> Tensor:
    """Take the low bands of the cosine transform out of every channel.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        cutoff: Share of the frequencies of each axis that are low; the constant one always is.

    Returns:
        `[B, N, C]`, float32.
    """
    wide = tokens.float()
    # The mean is low in any case. Without it the difference below keeps its digits
    # where tokens have much in common.
    wide = wide - wide.mean(dim=1, keepdim=True)
    field = wide.reshape(len(wide), *shape, wide.shape[-1])
    bases = [_low_bands(length, max(1, math.floor(cutoff * length)), wide.device) for length in shape]
    with without_autocast(wide.device):
        low = field
        for axis, basis in enumerate(bases, start=1):
            low = _along(axis, basis, low)
        for axis, basis in enumerate(bases, start=1):
            low = _along(axis, basis.T, low)
    return (field - low).reshape(wide.shape)


def _low_bands(length: int, count: int, device: torch.device) -> Tensor:
    """Return the first `count` rows of the orthonormal DCT-II matrix, float32 `[count, length]`."""
    band = torch.arange(count, device=device)[:, None]
    place = torch.arange(length, device=device)
    # The cosine has period 4n in (2j + 1) k: whole numbers keep its argument exact.
    turn = (2 * place + 1) * band % (4 * length)
    wave = torch.cos(turn.float() * (math.pi / (2 * length)))
    scale = torch.where(band == 0, math.sqrt(1 / length), math.sqrt(2 / length))
    return wave * scale


def _along(axis: int, matrix: Tensor, field: Tensor) -> Tensor:
    """Multiply the vectors along `axis` by `matrix`."""
    return (matrix @ field.movedim(axis, -2)).movedim(-2, axis)
