"""The seam of attention in vision transformers: modules that project, attend and project back by themselves.

Merging needs only module hooks: tokens are shortened before the call and restored
behind it. Hooks cannot shorten keys and values alone. Neither timm nor transformers has
a public seam between projections and attention, and both shape keys by the number of
queries. So where keys and values shrink, an attention of the project's own replaces the
module's `forward`, on that one module and until detaching; it uses the module's
projections, norms and backend. It knows the libraries' own attention classes; any other
is refused.
"""

import inspect
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigain.adapters.base import Part, Planner, Seam, Site, Undo
from bigain.adapters.hooks.reduced import ReducedCall
from bigain.adapters.hooks.rotary import shorten_table
from bigain.adapters.recompute import in_backward
from bigain.errors import SiteError
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer

__all__ = ["Call", "ViTAttentionSeam", "additive_mask", "author", "shorten_rope"]


@dataclass(frozen=True)
class Call:
    """The arguments of an attention with fewer keys than queries.

    Args:
        queries: What queries are projected from, `[B, N, C]`.
        keys: What keys and values are projected from, `[B, M, C]`.
        mask: Added to the logits, `[B, 1, 1, M]`.
        rope: Rotary tables of queries and of keys, where the module takes one.
        others: Whatever else the module was called with.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None
    rope: tuple[Tensor, Tensor] | None
    others: dict[str, Any]


@dataclass(frozen=True)
class ViTAttentionSeam(Seam):
    """An attention module: `forward(tokens, ...)` returns the tokens, or a tuple that begins with them.

    Attention weights, where it returns them too, are those between reduced tokens.

    Args:
        module: Its path in the block.
        norm: Name of the module that takes the block's input, where the library checkpoints
            the inside of a block: its hooks run again during backward, the block's do not.

    Attributes:
        library: The library.
        known: Its attention classes that `attend` can replace.
        mask: Name of the argument that is added to the logits.
        rope: Name of the argument for rotary positions, sines and cosines side by side.
        key: Name of the module that outputs the keys.
    """

    module: str
    norm: str | None = None

    library: ClassVar[str]
    known: ClassVar[tuple[str, ...]]
    mask: ClassVar[str]
    rope: ClassVar[str] = ""
    key: ClassVar[str]

    @abstractmethod
    def attend(self, attention: Any, call: Call) -> Any:
        """Let all queries attend to fewer keys, as the module would; return what it returns."""

    @abstractmethod
    def mean_key(self, attention: Any, output: Tensor) -> Tensor:
        """Average keys over the heads, `[B, N, D]`, from the output of the module `key`."""

    def check_mask(self, path: str, attention: Any) -> None:
        """Refuse a backend that cannot add to the logits.

        Raises:
            SiteError: The backend cannot weight keys.
        """

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        attention, path = site.module(part), site.path(part)
        kinds = reducer.kinds_at(Context(layer=site.layer, stage=site.stage))
        if "kv" in kinds and author(attention, self.library) not in self.known:
            raise SiteError(
                f"{reducer!r} shrinks keys and values, and nothing is known of how {path}, a "
                f"{type(attention).__name__}, makes them: known are {', '.join(self.known)}, with {self.library}'s "
                "forward. Take a merging reducer."
            )
        if proportional:
            self.check_mask(path, attention)

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        site, attachment = planner.site, planner.attachment
        attention, norm = site.module(part), site.block.get_submodule(self.norm or "")
        work = ReducedViTAttention(self, attention, planner, part, proportional)
        attachment.watch(site.name, site.block, self.module)
        undo: Undo = [
            attention.register_forward_pre_hook(work.before, with_kwargs=True).remove,
            attention.register_forward_hook(work.after, always_call=True).remove,
        ]
        if self.norm is not None:
            undo.append(norm.register_forward_pre_hook(Repeating(planner).before).remove)
        if "kv" in attachment.reducer.kinds_at(Context(layer=site.layer, stage=site.stage)):
            attention.forward = OwnForward(work, attention)
            undo.append(partial(_take_off, attention, attention.forward))
            attachment.watch(site.path(part), attention, "forward")
        return undo


class ReducedViTAttention(ReducedCall):
    """Lets an attention module run on reduced tokens, or on reduced keys and values.

    Args:
        seam: The module's seam.
        attention: The module.
        planner: Plans for its block.
        part: Which part of the block it is.
        proportional: Whether keys are weighted by how many tokens they stand for.
    """

    def __init__(
        self, seam: ViTAttentionSeam, attention: nn.Module, planner: Planner, part: Part, proportional: bool
    ) -> None:
        super().__init__(planner)
        self.seam, self._path, self._proportional = seam, planner.site.path(part), proportional
        self.names = tuple(inspect.signature(type(attention).forward).parameters)[1:]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten the tokens of a call; keep the plan until its output."""
        given = bound(self.names, args, kwargs)
        refuse_masks(self._path, self.seam, given)
        self.plan = None
        tokens: Tensor = given.pop(self.names[0])
        plan = self.planner(tokens)
        if isinstance(plan, NoReduction):
            return None
        self.plan = plan
        if self._proportional or plan.padded:
            self.seam.check_mask(self._path, module)
            given[self.seam.mask] = additive_mask(plan, tokens.dtype, self._proportional)
        if plan.kind == "kv":
            return (tokens,), given
        if given.get(self.seam.rope) is not None:
            given[self.seam.rope] = self.short_rope(given[self.seam.rope], plan)
        return (plan.reduce(tokens),), given

    def short_rope(self, table: Tensor, plan: Reduction) -> Tensor:
        """Give each reduced token its position."""
        return shorten_rope(table, plan, self.planner.grid.prefix)


class OwnForward:
    """Replaces an attention's `forward` where keys and values are fewer than queries.

    Args:
        work: The attention's hooks, which have the plan.
        attention: The module.
    """

    def __init__(self, work: ReducedViTAttention, attention: nn.Module) -> None:
        self._work, self._attention, self._inner = work, attention, attention.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Attend as the module does."""
        work, plan = self._work, self._work.plan
        if plan is None or plan.kind == "merge":
            return self._inner(*args, **kwargs)
        seam, given = work.seam, bound(work.names, args, kwargs)
        tokens: Tensor = given.pop(work.names[0])
        mask, table = given.pop(seam.mask, None), given.pop(seam.rope, None)
        rope = None if table is None else (table, work.short_rope(table, plan))
        return seam.attend(self._attention, Call(tokens, plan.reduce(tokens), mask, rope, given))


class Repeating:
    """Finds a block's plan when backward recomputes the inside of the block without calling the block.

    Args:
        planner: Plans for the block.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Enter the block, since `args` are its input."""
        if in_backward():
            self._planner.enter(module, args, {})


def bound(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call."""
    return dict(zip(names, args, strict=False)) | kwargs


def refuse_masks(path: str, seam: ViTAttentionSeam, given: dict[str, Any]) -> None:
    """Refuse masks, which describe the tokens before merging.

    Raises:
        SiteError: The attention was called with one.
    """
    if given.get(seam.mask) is not None or given.get("is_causal", False):
        name = seam.mask if given.get(seam.mask) is not None else "is_causal"
        raise SiteError(
            f"{path} was called with {name}, which says nothing of merged tokens: a reducer works in attention of "
            "all tokens to all tokens. Leave masks out of the call."
        )


def additive_mask(plan: Reduction, dtype: torch.dtype, weighted: bool) -> Tensor:
    """Return the bias for the logits of reduced keys, `[B, 1, 1, M]`.

    Args:
        plan: The reduction.
        dtype: Type of the tokens.
        weighted: Add log(size); otherwise only leave out places that stand for no token.
    """
    bias = (plan.sizes.clamp_min(1e-9).log() if weighted else torch.zeros_like(plan.sizes)).to(dtype)
    if plan.padded:
        bias = bias.masked_fill(plan.sizes == 0, torch.finfo(dtype).min)
    return bias[:, None, None]


def shorten_rope(table: Tensor, plan: Reduction, prefix: int) -> Tensor:
    """Give each reduced token its position in a table of sines and cosines side by side.

    Args:
        table: Without the prefix, `[N, 2D]`, one for each head `[H, N, 2D]`, or `[B, H or 1, N, 2D]`.
        plan: The reduction of prefix and N tokens.
        prefix: Tokens before the grid, which have no position.

    Returns:
        `[B, H or 1, M, 2D]`, without the prefix.
    """
    wide = table if table.ndim == 4 else table.reshape(1, -1, *table.shape[-2:])
    heads = wide.shape[1]
    sines, cosines = wide.transpose(1, 2).chunk(2, dim=-1)
    before = (0, 0, prefix, 0)  # angle 0 for the prefix
    pair = nn.functional.pad(cosines.flatten(2), before, value=1.0), nn.functional.pad(sines.flatten(2), before)
    cosines, sines = (torch.unflatten(part[:, prefix:], 2, (heads, -1)) for part in shorten_table(pair, plan))
    return torch.cat([sines, cosines], dim=-1).transpose(1, 2)


def _take_off(attention: nn.Module, ours: OwnForward) -> None:
    """Give a module its class's `forward` back, even if a wrapper was put around ours."""
    own: dict[str, Any] = vars(attention)
    if own.get("forward") is ours:
        del attention.forward
    elif own.get("_old_forward") is ours:  # accelerate restores this one when it detaches
        own["_old_forward"] = type(attention).forward.__get__(attention)


def author(module: nn.Module, library: str) -> str | None:
    """Return the name of the library's class that defines the module's `forward`; `None` if no class of it does."""
    if "forward" in vars(module):
        return None
    written = inspect.unwrap(type(module).forward)
    return written.__qualname__.rpartition(".")[0] if written.__module__.partition(".")[0] == library else None
