"""Tables that depend on shapes alone, made once for all blocks of a forward pass."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch

from bigain.reducers.base import Context

__all__ = ["once_a_pass"]

Made = TypeVar("Made")
Given = TypeVarTuple("Given")


def once_a_pass(context: Context | None, make: Callable[[*Given], Made], *given: *Given) -> Made:
    """Return `make(*given)`, the same object to all that ask with the same context.

    Launching the kernels of a small table takes longer than they run. The context's cache
    lives for one pass, so that nothing outlives an inference mode, and nothing is kept in
    compiled code or in a CUDA graph that is being captured, which launch no kernels one by one.

    Args:
        context: The moment; none is a moment by itself.
        make: Makes tensors that nobody writes to. What it closes over must not change.
        given: Hashable: shapes, settings and the device.
    """
    if context is None or torch.compiler.is_compiling() or _captured():
        return make(*given)
    key = (make, *given)
    if key not in context.cache:
        context.cache[key] = make(*given)
    found: Made = context.cache[key]
    return found


def _captured() -> bool:
    """Say whether work on the GPU is being captured: the graph's memory may go to others when it is done."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()
