"""The Haar transform over a grid, and the scorer that measures its detail bands."""

from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.resample import copy_to_cells
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer
from bigain_wavelet.norm import Norm, checked_norm, magnitude

__all__ = ["HaarHighBand", "haar_bands"]


class HaarHighBand(TokenScorer):
    """Magnitude of the Haar detail bands in the cell where a token lies.

    One level cuts a grid of d axes into cells of two tokens along each axis and gives
    each cell 2^d bands: its mean, and 2^d - 1 details. With w the coefficients of the
    orthonormal transform, n the tokens of a cell and the sum over all details and
    channels, the score is `sum |w| / sqrt(n)` (l1) or `sqrt(sum w^2 / n)` (l2): by
    `1 / sqrt(n)` a band changes each token of its cell. The next level does the same to
    the means, in cells of twice the side, and adds its own part (l2: in squares). All tokens
    of a cell of the first level score the same. Detail is high; 0 and up.

    With l2 on whole cells, the first level is the root mean square distance of the
    cell's tokens from their mean, and over the tokens the squared scores add up to the
    energy of all detail bands.

    Args:
        levels: How many times the transform is applied.
        norm: `l1` or `l2`, over channels, bands and levels.

    Raises:
        SettingError: `levels` is no whole number of at least 1, or an unknown norm; on
            scoring, more levels than it takes to make the grid one cell.

    References:
        A theory for multiresolution signal decomposition: the wavelet representation
        (Mallat, 1989).
    """

    def __init__(self, levels: int = 1, norm: Norm = "l1") -> None:
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
            raise SettingError(f"levels is a whole number of at least 1; got {levels!r}.")
        self.levels = levels
        self.norm: Norm = checked_norm(norm)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(norm="l2"), cls(levels=2, norm="l2")]

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        self._check_depth(grid)
        batch, _, channels = tokens.shape
        field = tokens.float().reshape(batch, *grid.shape, channels)
        parts = []
        for level in range(1, self.levels + 1):
            field, details = haar_bands(field)
            size = magnitude(details, self.norm).reshape(batch, -1, 1)
            parts.append(copy_to_cells(size, grid.shape, (2**level,) * grid.axes))
        return magnitude(torch.cat(parts, dim=-1), self.norm)

    def _check_depth(self, grid: Grid) -> None:
        """Refuse levels that have one cell to look at; the first is always possible."""
        most = max(1, (max(grid.shape) - 1).bit_length())
        if self.levels > most:
            raise SettingError(
                f"HaarHighBand with levels={self.levels} got a grid of {grid.shape}, which is one cell "
                f"after {most}; give at most that many."
            )


def haar_bands(field: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one level of the Haar transform along every axis of a grid.

    A pair (a, b) along an axis gives (a + b) / 2 and (a - b) / 2: the coefficients of the
    orthonormal transform, divided by the square root of a cell's tokens. Where an axis
    has an odd length, its last entry is paired with itself: no detail along that axis.

    Args:
        field: `[B, n_1, ..., n_d, C]`.

    Returns:
        The means, `[B, ceil(n_1 / 2), ..., ceil(n_d / 2), C]`, and the details of all
        bands side by side, the same with `(2^d - 1) * C` channels.
    """
    bands = [field]
    for axis in range(1, field.ndim - 1):
        bands = [half for band in bands for half in _halves(band, axis)]
    mean, *details = bands
    return mean, torch.cat(details, dim=-1)


def _halves(band: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return half the sum and half the difference of each pair along `axis`."""
    length = band.shape[axis]
    if length % 2:
        band = torch.cat([band, band.narrow(axis, length - 1, 1)], dim=axis)
    first, second = torch.unflatten(band, axis, (-1, 2)).unbind(axis + 1)
    return (first + second) / 2, (first - second) / 2
