"""Arithmetic that half precision must not touch."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["token_norms", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products keep the types they are given.

    Autocast would turn similarities into half precision, where ties decide.

    Args:
        device: Where the tensors are; on the meta device, which knows no autocast, too.
    """
    # Where none is on, there is nothing to turn off, which takes longer than a small matrix product.
    idle = device.type == "meta" or not torch.is_autocast_enabled(device.type)
    return nullcontext() if idle else torch.autocast(device.type, enabled=False)


def token_norms(values: Tensor) -> Tensor:
    """Take the Euclidean norm over the last axis, `[..., C]` to `[...]`; of halves in float32."""
    # torch 2.11 forgets to drop an axis of length 1 on the meta device and in compiled code.
    wide = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=wide)[..., 0]
    return norms
