"""What hooks that reduce and restore the tokens of a module share."""

from typing import Any

from torch import Tensor

from bigain.adapters.base import Planner
from bigain.reducers.base import Reduction

__all__ = ["ReducedCall"]


class ReducedCall:
    """The plan of a module's call, from the hook that shortens its tokens to the one that restores them.

    A subclass shortens them in a forward pre-hook of its own, which sets `plan`.

    Args:
        planner: Plans for the block.

    Attributes:
        plan: The plan of the call in progress; `None` where its tokens stay as they are.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.plan: Reduction | None = None
        planner.forgetting.append(self.forget)

    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Restore the tokens, or the first of several outputs, in a forward hook; forget the plan."""
        plan, self.plan = self.plan, None
        if plan is None or plan.kind == "kv" or output is None:  # no output: after an exception
            return output
        if isinstance(output, tuple):
            return (self.restored(plan, output[0]), *output[1:])
        return self.restored(plan, output)

    def restored(self, plan: Reduction, tokens: Tensor) -> Tensor:
        """Restore the module's output on reduced tokens."""
        return self.turned(plan.restore(self.turned(tokens)))

    def turned(self, tokens: Tensor) -> Tensor:
        """Bring tokens to `[B, N, C]`, or back: torch's own modules may take `[N, B, C]`."""
        return tokens if self.planner.site.batch_first else tokens.transpose(0, 1)

    def forget(self) -> None:
        """Clear per-call state after an exception in the block."""
        self.plan = None
