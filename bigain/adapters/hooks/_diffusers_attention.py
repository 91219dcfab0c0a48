"""The hooks of attention as in diffusers: they reduce, restore, and rotate."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Part, Planner
from bigain.adapters.hooks.reduced import ReducedCall
from bigain.adapters.hooks.rotary import Layout, Rotary, Tables, rotate
from bigain.adapters.hooks.tokens import plan_behind, reduce_behind, restore_behind
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import NoReduction, Reduction

__all__ = ["ReducedAttention", "Rotation"]


class ReducedAttention(ReducedCall):
    """Lets an attention module run on reduced tokens.

    Args:
        attention: The module.
        path: Its path in the model.
        planner: Plans for its block.
        part: Which part of the block it is.
        joint: Whether text tokens join in the attention.
        rotary: How it takes rotary positions, if it does.
        keys: Names of the projections of keys and values.
    """

    def __init__(
        self,
        attention: nn.Module,
        path: str,
        planner: Planner,
        part: Part,
        joint: bool,
        rotary: Rotary | None,
        keys: tuple[str, ...],
    ) -> None:
        super().__init__(planner)
        self.path, self.part = path, part
        self._joint, self._rotary, self._keys = joint, rotary, keys
        self._names = tuple(inspect.signature(type(attention).forward).parameters)[1:]
        self.tables: Tables | None = None
        self._count, self._waiting = 0, 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten the tokens of a call."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        tokens: Tensor = given["hidden_states"]
        plan = self.planner(tokens)
        if isinstance(plan, NoReduction) or (self.part == "cross" and plan.kind == "kv"):
            self.plan = self.tables = None
            return None  # kv: a composite at a block where it leaves queries alone
        self._count = tokens.shape[1]
        self._begin(plan, given, module)
        if self.part == "cross":
            self._check_cross(given)
        elif not self._joint:
            self._prepare(given, plan, tokens)
        if plan.kind == "merge":
            given["hidden_states"] = plan.reduce(tokens)
        return (), given

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Restore what the call gave: the tokens, and what an image adapter adds to them."""
        self._check_used()
        plan, self.tables = self.plan, None
        whole = super().after(module, args, output)
        if plan is None or plan.kind == "kv" or not isinstance(output, tuple):
            return whole
        # Behind the text's output is an image adapter's, for every token.
        return (*whole[:2], *(plan.restore(added) for added in whole[2:]))

    def forget(self) -> None:
        super().forget()
        self.tables, self._waiting = None, 0

    def open_region(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Shorten what a norm gave, text first."""
        tokens, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        self.plan, self._count = plan_behind(self.planner, tokens)
        if isinstance(self.plan, NoReduction):
            self.plan = None
            return output
        short = tokens if self.plan.kind == "kv" else reduce_behind(self.plan, tokens, self._count)
        return short if rest is None else (short, *rest)

    def inside_region(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the positions out of the attention's call; its tokens are short already."""
        if self.plan is None:
            return None
        given = dict(zip(self._names, args, strict=False)) | kwargs
        self._begin(self.plan, given, module)
        return (), given

    def close_region(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Restore what a projection gave, text first."""
        self._check_used()
        plan, self.plan, self.tables = self.plan, None, None
        return output if plan is None or plan.kind == "kv" else restore_behind(plan, output)

    def shorten(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Give the projection of keys or values fewer tokens."""
        if self.plan is None or self.plan.kind != "kv":
            return None
        self._waiting -= 1
        tokens, *rest = args
        return reduce_behind(self.plan, tokens, self._count), *rest

    def _begin(self, plan: Reduction, given: dict[str, Any], module: nn.Module) -> None:
        """Keep the plan for the call, and take the positions out of it."""
        self.plan, self.tables = plan, None
        self._check_processor(plan, module)
        if self._joint:
            self._check_joint(plan)
        self._waiting = len(self._keys) if self._joint and plan.kind == "kv" else 0
        if self._joint and given.get("attention_mask") is not None:
            given["attention_mask"] = self._shorten_mask(given["attention_mask"], plan)
        rotary = self._rotary
        if rotary is not None and given.get(rotary.argument) is not None:
            self.tables = Tables.of(given[rotary.argument], plan, self._count, rotary.text is not None)
            given[rotary.argument] = None

    def _check_joint(self, plan: Reduction) -> None:
        if plan.padded:
            raise SettingError(
                f"At {self.planner.site.name} the rows of one batch would be reduced to different lengths, which the "
                "attention over text and image there cannot mask. Give all rows one timestep: report.at(timestep)."
            )

    def _check_processor(self, plan: Reduction, module: nn.Module) -> None:
        """Refuse processors that leave the keys they are given aside, or know places among them."""
        kind = type(getattr(module, "processor", None)).__name__
        if plan.kind == "kv" and kind.startswith("PAG"):
            raise SettingError(
                f"{self.path} has a {kind}, which attends to the image's own tokens alone, so that keys cannot be "
                "fewer than queries; take a merging reducer."
            )

    def _shorten_mask(self, mask: Tensor, plan: Reduction) -> Tensor:
        """Give a mask over text and grid, `[B, H, Q, K]`, the rows and columns of reduced tokens."""
        if mask.ndim != 4:
            raise SettingError(f"{self.path} was given a mask of shape {list(mask.shape)}; accepted is [B, H, Q, K].")
        short = mask.expand(plan.sizes.shape[0], -1, -1, -1).float()
        for axis in (3,) if plan.kind == "kv" or mask.shape[2] == 1 else (3, 2):
            moved = short.movedim(axis, 1)
            lead, rest = torch.split(moved.flatten(2), [moved.shape[1] - self._count, self._count], dim=1)
            # As with positions: what holds for a merged token's destination.
            joined = torch.cat([lead, plan.place_positions(rest)], dim=1)
            short = joined.reshape(*joined.shape[:2], *moved.shape[2:]).movedim(1, axis)
        return short > 0 if mask.dtype == torch.bool else short.to(mask.dtype)

    def _prepare(self, given: dict[str, Any], plan: Reduction, tokens: Tensor) -> None:
        """Give self-attention without text its keys, and mask those that stand for no token."""
        if given.get("encoder_hidden_states") is not None or given.get("attention_mask") is not None:
            raise SiteError(f"{self.path} is reduced as self-attention, but was called with encoder states or a mask.")
        if plan.padded:
            given["attention_mask"] = _mask(plan, tokens.dtype)
        if plan.kind == "kv":
            given["encoder_hidden_states"] = plan.reduce(tokens)

    def _check_cross(self, given: dict[str, Any]) -> None:
        if given.get("ip_adapter_masks") is not None:
            raise SiteError(
                f"{self.path} was given masks of an IP-Adapter for every token; leave `cross` out of the parts."
            )

    def _check_used(self) -> None:
        if self._waiting:
            raise SiteError(
                f"{self.path} did not use {' and '.join(self._keys)}, so that keys and "
                "values were not reduced: were its projections fused after attaching? Detach, and attach again."
            )


class Rotation:
    """Rotates queries or keys behind a module, while the attention is at work on reduced tokens.

    Args:
        work: The attention's hooks, which hold the table.
        of: Which of the tables: `queries`, `keys` or `text`.
        layout: How the module's output lies.
        halves: Which channels are paired.
        attention: The attention module.
    """

    def __init__(self, work: ReducedAttention, of: str, layout: Layout, halves: bool, attention: Any) -> None:
        self._work, self._of, self._layout, self._halves = work, of, layout, halves
        self._width: int = attention.inner_dim // attention.heads

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Rotate, in a forward hook."""
        tables = self._work.tables
        if tables is None:
            return output
        return rotate(output, getattr(tables, self._of), self._layout, self._width, self._halves)


def _mask(reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """Leave out places that stand for no token, as an additive mask `[B, 1, M]`."""
    empty = (reduction.sizes == 0)[:, None]
    return torch.zeros_like(empty, dtype=dtype).masked_fill(empty, torch.finfo(dtype).min)
