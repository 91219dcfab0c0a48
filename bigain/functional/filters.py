"""Spatial filters on grids of any number of axes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.functional.precision import token_norms

__all__ = ["NeighbourPadding", "Padding", "laplacian", "neighbour_cosine"]

Padding = Literal["zeros", "replicate"]

NeighbourPadding = Literal["valid", "zeros", "replicate"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""By the number of axes."""


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
        BiGain, section 3.2.1.
    """
    batch, _, channels = tokens.shape
    field = tokens.float().reshape(batch, *shape, channels)
    if field.is_meta and len(shape) in _CONVOLUTIONS:
        # On meta, nothing is computed and operations are counted: there the filter is the
        # convolution that its definition says, which counters know. Elsewhere sums of shifted
        # fields stay in float32, where a convolution may take TF32 or what autocast says.
        return _counted(field)
    border = field if padding == "replicate" else None
    total = field * (-2 * len(shape))
    for axis, length in enumerate(shape, start=1):
        after, before = field.narrow(axis, 1, length - 1), field.narrow(axis, 0, length - 1)
        total = total + _both_sides(after, before, axis, border)
    return total.reshape(batch, -1, channels)


def neighbour_cosine(tokens: Tensor, shape: tuple[int, ...], padding: NeighbourPadding = "valid") -> Tensor:
    """Average the cosine between each token and the two next to it along every axis.

    A token of zeros has cosine 0 with all others and with itself. Beside its input, one
    tensor of the input's size is alive at a time (two where the input is not float32).

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        padding: What a neighbour beyond the border counts as. `valid`: nothing, the mean
            is over the neighbours on the grid, and 1 for a token that has none. `zeros`:
            cosine 0. `replicate`: the token itself.

    Returns:
        `[B, N]`, float32, in [-1, 1] up to rounding.

    References:
        BiGain, Table 13.
    """
    if padding == "valid" and all(length == 1 for length in shape):
        return torch.ones_like(tokens[..., 0], dtype=torch.float32)
    batch, _, channels = tokens.shape
    field = tokens.float().reshape(batch, *shape, channels)
    norms = token_norms(field)
    divisor = norms.clamp_min(1e-12)
    border = (norms / divisor).square() if padding == "replicate" else None  # a token's cosine with itself
    present = norms.new_ones(1, *shape)
    total, count = torch.zeros_like(norms), torch.zeros_like(present)
    for axis, length in enumerate(shape, start=1):
        after, before = (axis, 1, length - 1), (axis, 0, length - 1)
        # Each pair is computed once, and counts for both of its tokens.
        cosine = (field.narrow(*after) * field.narrow(*before)).sum(dim=-1)
        cosine = cosine / divisor.narrow(*after) / divisor.narrow(*before)
        total = total + _both_sides(cosine, cosine, axis, border)
        count = count + _both_sides(present.narrow(*after), present.narrow(*before), axis, None)
    mean = total / (count if padding == "valid" else 2 * len(shape))
    return mean.reshape(batch, -1)


def _counted(field: Tensor) -> Tensor:
    """Apply a kernel of 3 taps an axis to each channel of `field`, `[B, *shape, C]`, on the meta device."""
    axes, channels = field.ndim - 2, field.shape[-1]
    kernel = field.new_empty(channels, 1, *[3] * axes)
    filtered = _CONVOLUTIONS[axes](field.movedim(-1, 1), kernel, padding=1, groups=channels)
    return filtered.movedim(1, -1).reshape(len(field), -1, channels)


def _both_sides(after: Tensor, before: Tensor, axis: int, border: Tensor | None) -> Tensor:
    """Add what lies after and before each token along `axis`.

    Args:
        after: For each token but the last, what comes after it.
        before: For each token but the first, what comes before it.
        axis: Along which they lie.
        border: For each token, what it has beyond the border; None for zeros.
    """
    if border is None:
        return _pad(after, axis, 0, 1) + _pad(before, axis, 1, 0)
    first, last = border.narrow(axis, 0, 1), border.narrow(axis, border.shape[axis] - 1, 1)
    return torch.cat([after, last], dim=axis) + torch.cat([first, before], dim=axis)


def _pad(field: Tensor, axis: int, before: int, after: int) -> Tensor:
    # F.pad counts axes from the last.
    zeros = [0, 0] * (field.ndim - 1 - axis)
    return F.pad(field, [*zeros, before, after])
