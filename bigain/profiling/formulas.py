"""Operations of bigain's own operators, for `torch.utils.flop_counter`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import bigain.functional.filters  # noqa: F401 defines the operators

__all__ = ["formulas"]


def formulas() -> dict[Any, Callable[..., int]]:
    """Return what `FlopCounterMode` takes as `custom_mapping`: operators and their operations."""
    # The mode asks for an overload before it takes an operator apart, and for the operator when it counts.
    return {torch.ops.bigain.laplacian: _laplacian, torch.ops.bigain.laplacian.default: _laplacian}


def _laplacian(tokens: Sequence[int], shape: Sequence[int], replicate: bool, **_: Any) -> int:
    """Count the Laplacian as the convolution that the paper writes: a kernel of 3 taps an axis on each channel."""
    taps: int = 3 ** len(shape)
    return 2 * math.prod(tokens) * taps
