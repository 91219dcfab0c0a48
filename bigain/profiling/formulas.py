"""Operations of bigain's own operators, for `torch.utils.flop_counter`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import bigain.functional.filters  # noqa: F401 defines the operators

__all__ = ["formulas"]


def formulas() -> dict[Any, Callable[..., int]]:
    """Return the `custom_mapping` for `FlopCounterMode`: operators and their operations."""
    # The mode looks up the overload to decide whether to decompose, and the operator to count.
    return {torch.ops.bigain.laplacian: _laplacian, torch.ops.bigain.laplacian.default: _laplacian}


def _laplacian(tokens: Sequence[int], shape: Sequence[int], replicate: bool, **_: Any) -> int:
    """Count the Laplacian as the paper's convolution: a kernel of 3 taps along each axis, on each channel."""
    taps: int = 3 ** len(shape)
    return 2 * math.prod(tokens) * taps
