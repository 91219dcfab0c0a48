"""Triton twins of what is slow on a GPU when it is written in torch, each tested against that.

A twin is an operator of its own, `torch.ops.bigain.*`, so that compilers take it into their graph. It chooses its
tiles by sizes and device alone, never by the clock: the same input gives the same digits.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["multiprocessors", "on_device_of", "shared_memory", "usable", "wrap_triton"]

_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def usable(tensor: Tensor) -> bool:
    """Say whether kernels run where a tensor is: on a GPU that Triton knows, or on a CPU that interprets them."""
    return _INSTALLED and (tensor.is_cuda or (_INTERPRETED and tensor.device.type == "cpu"))


def wrap_triton(kernel: Any) -> Any:
    """Return a kernel in a form that `torch.compile` can look into; one that is interpreted as it is.

    Torch reads the source of operators for this very name, to know which kernels its cache of compiled code depends on.
    """
    return kernel if _INTERPRETED else torch.library.wrap_triton(kernel)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the current one, on which Triton launches, whichever the tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def multiprocessors(device: torch.device) -> int:
    """Count the blocks of a kernel that run at once, at least; where kernels are interpreted, as if there were some."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that one block may take."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)
