"""How several numbers become one magnitude."""

from typing import Literal

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["Norm", "checked_norm", "magnitude"]

Norm = Literal["l1", "l2"]
"""The sum of the absolute values, or the root of the sum of squares."""

_ORDERS = {"l1": 1, "l2": 2}


def checked_norm(norm: Norm) -> Norm:
    """Return `norm`, refusing what is none."""
    if norm not in ("l1", "l2"):
        raise SettingError(f"norm is 'l1' or 'l2'; got {norm!r}.")
    return norm


def magnitude(values: Tensor, norm: Norm) -> Tensor:
    """Take the norm over the last axis, `[..., K]` to `[...]`."""
    # torch 2.11 forgets to drop an axis of length 1 on the meta device and in compiled code.
    size: Tensor = torch.linalg.vector_norm(values, ord=_ORDERS[norm], dim=-1, keepdim=True)[..., 0]
    return size
