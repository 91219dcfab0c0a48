"""Make a grid of tokens coarser: one token for each cell, whatever the size of the grid.

Where the cells do not divide an axis, the last cell along it is smaller: every
token lies in exactly one cell, none is dropped, repeated or stretched.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cell_average", "cell_maximum", "cell_sizes", "cell_token", "coarse_shape", "copy_to_cells"]


def coarse_shape(shape: tuple[int, ...], factor: tuple[int, ...]) -> tuple[int, ...]:
    """Count the cells along each axis.

    Args:
        shape: Tokens along each axis.
        factor: Tokens of a cell along each axis.
    """
    return tuple(-(-length // side) for length, side in zip(shape, factor, strict=True))


def cell_sizes(shape: tuple[int, ...], factor: tuple[int, ...], device: torch.device) -> Tensor:
    """Count the tokens of each cell.

    Args:
        shape: Tokens along each axis.
        factor: Tokens of a cell along each axis.
        device: Where the counts are wanted.

    Returns:
        float32, `[M]`, row-major.
    """
    sizes = torch.ones(1, device=device)
    for length, side, cells in zip(shape, factor, coarse_shape(shape, factor), strict=True):
        along = (length - side * torch.arange(cells, device=device)).clamp(max=side)
        sizes = (sizes[:, None] * along).flatten()
    return sizes


def cell_average(tokens: Tensor, shape: tuple[int, ...], factor: tuple[int, ...]) -> Tensor:
    """Average each cell over the tokens it has.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        factor: Tokens of a cell along each axis.

    Returns:
        `[B, M, C]`, float32.
    """

    def average(image: Tensor, sides: tuple[int, int]) -> Tensor:
        return F.avg_pool2d(image, sides, ceil_mode=True, count_include_pad=False)

    return _pool(average, tokens.float(), shape, factor)


def cell_maximum(tokens: Tensor, shape: tuple[int, ...], factor: tuple[int, ...]) -> Tensor:
    """Take each cell's largest value, channel by channel.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        factor: Tokens of a cell along each axis.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """

    def maximum(image: Tensor, sides: tuple[int, int]) -> Tensor:
        return F.max_pool2d(image, sides, ceil_mode=True)

    return _pool(maximum, tokens, shape, factor)


def _pool(
    pool: Callable[[Tensor, tuple[int, int]], Tensor],
    tokens: Tensor,
    shape: tuple[int, ...],
    factor: tuple[int, ...],
) -> Tensor:
    """Pool two axes at a time, from the last.

    A cell is a box, so that its mean is the mean of its lines' means, and its maximum
    likewise. torch's pooling of images takes channels-last input without a copy on every
    device; for other numbers of axes it copies or is slow.
    """
    batch, _, channels = tokens.shape
    if len(shape) % 2:
        shape, factor = (1, *shape), (1, *factor)
    field, inner = tokens, channels
    for axis in range(len(shape) - 2, -1, -2):
        image = field.reshape(-1, shape[axis], shape[axis + 1], inner).permute(0, 3, 1, 2)
        field = pool(image, (factor[axis], factor[axis + 1])).permute(0, 2, 3, 1)
        inner *= field.shape[1] * field.shape[2]
    return field.reshape(batch, -1, channels)


def cell_token(tokens: Tensor, shape: tuple[int, ...], factor: tuple[int, ...], middle: bool) -> Tensor:
    """Take one token of each cell.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        shape: Tokens along each axis; their product is N.
        factor: Tokens of a cell along each axis.
        middle: Along each axis the token at `factor // 2` of the cell, or the last
            one of a smaller cell that ends before; otherwise the first.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """
    batch, _, channels = tokens.shape
    field = tokens.reshape(batch, *shape, channels)
    for axis, side in enumerate(factor, start=1):
        field = _every(field, axis, side, side // 2 if middle else 0)
    return field.reshape(batch, -1, channels)


def _every(field: Tensor, axis: int, side: int, offset: int) -> Tensor:
    """Take the token at `offset` of each run of `side` along `axis`."""
    length = field.shape[axis]
    taken = field[(slice(None),) * axis + (slice(offset, None, side),)]
    if (length - 1) % side >= offset:
        return taken
    return torch.cat([taken, field.narrow(axis, length - 1, 1)], dim=axis)


def copy_to_cells(coarse: Tensor, shape: tuple[int, ...], factor: tuple[int, ...]) -> Tensor:
    """Copy each cell's value to all of its tokens.

    Args:
        coarse: `[B, M, C]`, one token for each cell.
        shape: Tokens along each axis of the fine grid; their product is N.
        factor: Tokens of a cell along each axis.

    Returns:
        `[B, N, C]`.
    """
    batch, _, channels = coarse.shape
    cells = coarse_shape(shape, factor)
    apart = coarse.reshape(batch, *(n for count in cells for n in (count, 1)), channels)
    copied = apart.expand(batch, *(n for pair in zip(cells, factor, strict=True) for n in pair), channels)
    field = copied.reshape(batch, *(count * side for count, side in zip(cells, factor, strict=True)), channels)
    for axis, length in enumerate(shape, start=1):
        field = field.narrow(axis, 0, length)
    return field.reshape(batch, math.prod(shape), channels)
