"""How tests compare what was computed twice."""

from collections.abc import Sequence

import torch
from torch import Tensor

BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""Shares of the largest value; in double precision, parts of several models still work in single."""


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Fail unless two results agree up to rounding: products seldom give the same bits in other places of memory."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not found.is_floating_point():
        assert torch.equal(found, expected)
        return
    assert found.isfinite().all()
    far = (found.double() - expected.double()).abs().max()
    assert far <= BOUNDS[found.dtype] * expected.double().abs().max()


def assert_same_gradients(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare gradients against the largest of all: some are zero but for rounding."""
    assert [gradient.shape for gradient in found] == [gradient.shape for gradient in expected]
    assert_same(*(torch.cat([gradient.flatten() for gradient in given]) for given in (found, expected)))


def reducing_hooks(module):
    """The pre-hooks that a reducer has in a module; not the one by which compilers tell others apart."""
    return [hook for hook in module._forward_pre_hooks.values() if hasattr(hook, "__self__")]
