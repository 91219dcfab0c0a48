"""Tables that depend on shapes alone, made once for all blocks of a forward pass."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch

from bigain.reducers.base import Context

__all__ = ["once_a_pass"]

Made = TypeVar("Made")
Given = TypeVarTuple("Given")


def once_a_pass(context: Context | None, make: Callable[[*Given], Made], *given: *Given) -> Made:
    """Return `make(*given)`, made once for all blocks that share a context.

    Launching the kernels of a small table takes longer than running them. The context's
    cache lives for one pass, so that no tensor outlives an inference mode. Compiled code and
    CUDA graphs do not launch kernels one by one: there the table is made anew for each block.

    Args:
        context: Where and when; without one, the table is made anew.
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
    """Say whether a CUDA graph is being captured, whose memory others may use afterwards."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()
