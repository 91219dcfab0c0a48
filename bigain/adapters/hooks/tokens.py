"""The seam of modules that map each token by itself, and the hooks that reduce and restore tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Part, Planner, Seam, Site, Undo
from bigain.adapters.hooks.reduced import ReducedCall
from bigain.errors import SiteError
from bigain.reducers.base import NoReduction, Reduction, TokenReducer

__all__ = ["ReducedTokens", "TokenSeam", "plan_behind", "reduce_behind", "restore_behind"]


@dataclass(frozen=True)
class TokenSeam(Seam):
    """A module that maps each token by itself, as an MLP does: `[B, N, C]` to `[B, N, C]`.

    Args:
        module: Its path in the block.
        joint: Whether text stands before the grid's tokens in the same tensor. It is never reduced.
    """

    module: str
    joint: bool = False

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        if getattr(site.block, "_chunk_size", None) is not None:
            raise SiteError(
                f"{site.name} feeds its MLP in chunks, which hold no whole grid; turn that off with "
                "disable_forward_chunking(), or leave the MLP out of the placement."
            )

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        block, work = planner.site.block, ReducedTokens(planner, self.joint)
        if hasattr(block, "_chunk_size"):
            planner.attachment.watch(planner.site.name, block, "_chunk_size")
        planner.attachment.watch(planner.site.name, block, self.module)
        module = block.get_submodule(self.module)
        return [
            module.register_forward_pre_hook(work.before).remove,
            module.register_forward_hook(work.after).remove,
        ]


def plan_behind(planner: Planner, tokens: Tensor) -> tuple[Reduction, int]:
    """Return a block's plan for the last tokens of `[B, T + N, C]`, those of the grid, and N."""
    count = planner.grid.tokens
    return planner(tokens[:, tokens.shape[1] - count :]), count


def reduce_behind(plan: Reduction, tokens: Tensor, count: int) -> Tensor:
    """Reduce the last `count` tokens of `[B, T + N, C]`; the T before them, text, stay."""
    lead = tokens.shape[1] - count
    return torch.cat([tokens[:, :lead], plan.reduce(tokens[:, lead:])], dim=1) if lead else plan.reduce(tokens)


def restore_behind(plan: Reduction, tokens: Tensor) -> Tensor:
    """Restore the last M tokens of `[B, T + M, C]`, one for each place of the plan."""
    lead = tokens.shape[1] - plan.sizes.shape[1]
    return torch.cat([tokens[:, :lead], plan.restore(tokens[:, lead:])], dim=1) if lead else plan.restore(tokens)


class ReducedTokens(ReducedCall):
    """Lets modules that map each token by itself run on reduced tokens.

    Args:
        planner: Plans for its block.
        joint: Whether text stands before the grid's tokens.
    """

    def __init__(self, planner: Planner, joint: bool = False) -> None:
        super().__init__(planner)
        self._joint = joint

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Shorten the input, in a forward pre-hook."""
        tokens = self.turned(args[0])
        plan, count = plan_behind(self.planner, tokens) if self._joint else (self.planner(tokens), tokens.shape[1])
        # A composite may leave queries alone at this block.
        self.plan = None if plan.kind == "kv" or isinstance(plan, NoReduction) else plan
        return args if self.plan is None else (self.turned(reduce_behind(plan, tokens, count)), *args[1:])

    def restored(self, plan: Reduction, tokens: Tensor) -> Tensor:
        return self.turned(restore_behind(plan, self.turned(tokens)))
