"""Spatial filters on grids of any number of axes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Padding", "laplacian"]

Padding = Literal["zeros", "replicate"]


def laplacian(tokens: Tensor, shape: tuple[int, ...], padding: Padding = "zeros") -> Tensor:
    """Apply the discrete Laplacian: the sum of the 2d neighbours less 2d times the token.

    On an image (d = 2) the kernel is `[[0, 1, 0], [1, -4, 1], [0, 1, 0]]`.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        padding: What lies beyond the border: zeros, or the border's own tokens.

    Returns:
        `[B, N, C]`, float32.

    References:
        BiGain, section 4.1.
    """
    batch, _, channels = tokens.shape
    field = tokens.float().reshape(batch, *shape, channels)
    total = field * (-2 * len(shape))
    for axis, length in enumerate(shape, start=1):
        total = total + _neighbours(field, axis, length, padding)
    return total.reshape(batch, -1, channels)


def _neighbours(field: Tensor, axis: int, length: int, padding: Padding) -> Tensor:
    """Sum of the tokens before and after each one along `axis`."""
    after = field.narrow(axis, 1, length - 1)
    before = field.narrow(axis, 0, length - 1)
    if padding == "replicate":
        last, first = field.narrow(axis, length - 1, 1), field.narrow(axis, 0, 1)
        return torch.cat([after, last], dim=axis) + torch.cat([first, before], dim=axis)
    return _pad(after, axis, 0, 1) + _pad(before, axis, 1, 0)


def _pad(field: Tensor, axis: int, before: int, after: int) -> Tensor:
    # F.pad counts axes from the last.
    zeros = [0, 0] * (field.ndim - 1 - axis)
    return F.pad(field, [*zeros, before, after])
