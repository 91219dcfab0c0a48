"""How image tokens lie, read from the positions that a model is given for them."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["layout_of", "read_positions"]

ImageLayout = tuple[tuple[int, int], int]
"""Rows and columns of the first image, and how many tokens of further images come behind it."""

_READ: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Layouts read from tensors that are still alive, each with the tensor's version at the time."""


def read_positions(ids: Tensor) -> ImageLayout | None:
    """Read how tokens lie from their positions, once for each tensor.

    Args:
        ids: Image, row and column of each token, `[N, 3]` or `[1, N, 3]`.

    Returns:
        What `layout_of` returns, or `None` where values cannot be read: in a pass that is
        being compiled, captured in a CUDA graph, or run on the meta device.
    """
    if torch.compiler.is_compiling() or ids.is_meta:
        return None
    version = None if ids.is_inference() else ids._version  # noqa: SLF001 the only way to notice a write in place
    if ids in _READ and _READ[ids][0] == version:
        found: ImageLayout | None = _READ[ids][1]
        return found
    if ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    found = layout_of(ids.detach().reshape(-1, *ids.shape[-2:])[0].double().cpu())
    _READ[ids] = (version, found)
    return found


def layout_of(ids: Tensor) -> ImageLayout | None:
    """Return how the tokens of the first image lie.

    Args:
        ids: Image, row and column of each token, `[N, 3]`, on the host.

    Returns:
        Its rows and columns, and the number of tokens behind it; `None` if its tokens do not
        come row by row, or their positions do not tell them apart.
    """
    if ids.ndim != 2 or ids.shape[1] != 3 or not len(ids):
        return None
    image, rows, columns = ids.unbind(dim=1)
    count = _leading(image)
    width = _leading(rows[:count])
    if count % width:
        return None
    rows, columns = rows[:count].reshape(-1, width), columns[:count].reshape(-1, width)
    regular = bool((rows == rows[:, :1]).all() and (columns == columns[:1]).all())
    apart = bool((rows[1:, 0] > rows[:-1, 0]).all() and (columns[0, 1:] > columns[0, :-1]).all())
    return ((count // width, width), len(ids) - count) if regular and apart else None


def _leading(values: Tensor) -> int:
    """Count the values at the start that equal the first."""
    other = (values != values[0]).nonzero()
    return int(other[0]) if len(other) else len(values)
