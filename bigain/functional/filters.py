"""Spatial filters on grids of any number of axes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.functional import kernels
from bigain.functional.precision import token_norms, without_autocast

__all__ = ["NeighbourPadding", "Padding", "laplacian", "laplacian_norm", "neighbour_cosine"]

Padding = Literal["zeros", "replicate"]

NeighbourPadding = Literal["valid", "zeros", "replicate"]


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
    filtered: Tensor = torch.ops.bigain.laplacian(tokens, shape, padding == "replicate")
    return filtered


def laplacian_norm(tokens: Tensor, shape: tuple[int, ...], padding: Padding = "zeros", order: int = 1) -> Tensor:
    """Measure the discrete Laplacian over the channels.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        padding: What lies beyond the border: zeros, or the border's own tokens.
        order: 1 for the sum of absolute values, 2 for the Euclidean norm.

    Returns:
        `[B, N]`, float32.

    References:
        BiGain, section 3.2.1 and Table 13.
    """
    needs_gradient = torch.is_grad_enabled() and tokens.requires_grad
    if kernels.usable(tokens) and not needs_gradient:
        from bigain.functional.kernels import laplacian as kernel

        if len(shape) <= kernel.MOST_AXES:
            norm: Tensor = kernel.laplacian_norm(tokens, list(shape), padding == "replicate", order == 2)
            return norm
    filtered = laplacian(tokens, shape, padding)
    return token_norms(filtered) if order == 2 else filtered.abs_().sum(dim=-1)


def _sum_of_neighbours(tokens: Tensor, shape: list[int], replicate: bool) -> Tensor:
    batch, _, channels = tokens.shape
    field = tokens.float().reshape(batch, *shape, channels)
    if tokens.device.type == "cpu" and not replicate and len(shape) <= len(_CONVOLUTIONS):
        return _convolved(field).reshape(batch, -1, channels)
    # In place, and always in float32: a convolution on a GPU would follow TF32 and autocast.
    total = field * (-2 * len(shape))
    for axis, length in enumerate(shape, start=1):
        total.narrow(axis, 0, length - 1).add_(field.narrow(axis, 1, length - 1))
        total.narrow(axis, 1, length - 1).add_(field.narrow(axis, 0, length - 1))
        if replicate:
            for border in (0, length - 1):
                total.narrow(axis, border, 1).add_(field.narrow(axis, border, 1))
    return total.reshape(batch, -1, channels)


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def _convolved(field: Tensor) -> Tensor:
    """Filter `[B, *shape, C]` on a CPU, where a channels-last convolution reads the field only once."""
    axes = field.ndim - 2
    kernel = field.new_zeros((3,) * axes)
    kernel[(1,) * axes] = -2.0 * axes
    for axis in range(axes):
        for side in (0, 2):
            kernel[tuple(side if other == axis else 1 for other in range(axes))] = 1.0
    weight = kernel.expand(field.shape[-1], 1, *kernel.shape).contiguous()
    with without_autocast(field.device):
        filtered = _CONVOLUTIONS[axes - 1](field.movedim(-1, 1), weight, padding=1, groups=field.shape[-1])
    return filtered.movedim(1, -1)


# An operator of its own, so that its operations can be counted (profiling/formulas.py). Compilers and autograd see
# the operators that it is made of.
_OPERATORS = torch.library.Library("bigain", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS.define("laplacian(Tensor tokens, SymInt[] shape, bool replicate) -> Tensor")  # type: ignore[no-untyped-call]
_OPERATORS.impl("laplacian", _sum_of_neighbours, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


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
        # Each pair is computed once and counts for both of its tokens.
        cosine = (field.narrow(*after) * field.narrow(*before)).sum(dim=-1)
        cosine = cosine / divisor.narrow(*after) / divisor.narrow(*before)
        total = total + _both_sides(cosine, cosine, axis, border)
        count = count + _both_sides(present.narrow(*after), present.narrow(*before), axis, None)
    mean = total / (count if padding == "valid" else 2 * len(shape))
    return mean.reshape(batch, -1)


def _both_sides(after: Tensor, before: Tensor, axis: int, border: Tensor | None) -> Tensor:
    """Add what lies after and before each token along `axis`.

    Args:
        after: For each token but the last, what comes after it.
        before: For each token but the first, what comes before it.
        axis: The axis.
        border: For each token, what lies beyond the border next to it; None for zeros.
    """
    if border is None:
        return _pad(after, axis, 0, 1) + _pad(before, axis, 1, 0)
    first, last = border.narrow(axis, 0, 1), border.narrow(axis, border.shape[axis] - 1, 1)
    return torch.cat([after, last], dim=axis) + torch.cat([first, before], dim=axis)


def _pad(field: Tensor, axis: int, before: int, after: int) -> Tensor:
    # F.pad counts axes from the last.
    zeros = [0, 0] * (field.ndim - 1 - axis)
    return F.pad(field, [*zeros, before, after])
