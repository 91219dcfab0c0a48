"""Arithmetic that must not run in half precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["token_norms", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products keep the type of their inputs.

    Autocast would compute similarities in half precision, where ties decide.

    Args:
        device: Where the tensors are; the meta device, which has no autocast, is accepted.
    """
    # Turning autocast off takes longer than a small matrix product.
    is_off = device.type == "meta" or not torch.is_autocast_enabled(device.type)
    return nullcontext() if is_off else torch.autocast(device.type, enabled=False)


def token_norms(values: Tensor) -> Tensor:
    """Take the Euclidean norm over the last axis, `[..., C]` to `[...]`; half precision gives float32."""
    # torch 2.11 forgets to drop an axis of length 1 on the meta device and in compiled code.
    wide = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=wide)[..., 0]
    return norms
