"""Blocks whose tokens merge between attention and MLP, and stay merged."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.attachment import Attachment
from bigain.adapters.base import Site, Undo
from bigain.adapters.hooks.vit import Repeating, ViTAttentionSeam, bound, refuse_masks, shorten_rope
from bigain.adapters.pass_state import BlockPlanner
from bigain.adapters.progressive.pools import Progress
from bigain.adapters.recompute import Visit, in_backward
from bigain.errors import SettingError, SiteError
from bigain.functional.weighted import merge_by_size
from bigain.grid import Grid
from bigain.reducers.base import NoReduction, Reduction, TokenReducer

__all__ = ["Branch", "MergingBlock", "Step"]


@dataclass(frozen=True)
class Branch:
    """The second residual branch of a block, x + last(...(first(x))).

    Args:
        first: Name of the module that takes x.
        last: Name of the module whose output is added to it. It may be called before, too.
    """

    first: str
    last: str


@dataclass(frozen=True)
class Step:
    """What one block does to the sequence.

    Args:
        site: The block.
        branch: Where its tokens merge.
        reducer: The reducer; `None` in a block that merges nothing itself but sees merged tokens.
        removed: How many tokens it removes; `None` for the reducer's own ratio.
        prefix: Tokens before the grid.
        before: Grid tokens before the block, at the size attached for.
        after: Grid tokens behind the block.
    """

    site: Site
    branch: Branch
    reducer: TokenReducer | None
    removed: int | None
    prefix: int
    before: int
    after: int


@dataclass
class Passing(Visit):
    """One run of a block on tokens that stay merged.

    Args:
        sizes: How many tokens each input token stands for, `[B, N]`.
        plans: The reductions before the block.
        source: What the plan is made from, if that is the block's input or the mean of its keys.
        merged: How many tokens each output token stands for, `[B, M]`.
    """

    sizes: Tensor | None = None
    plans: tuple[Reduction, ...] = ()
    source: Tensor | None = None
    merged: Tensor | None = None


class MergingBlock(BlockPlanner):
    """Lets a block run on merged tokens, and merge them further before its MLP.

    x becomes x' = merge(x + attention(x)) where the MLP's branch begins, and the block returns
    x' + MLP(x'). The library would add the branch to the unmerged x; so the branch's last
    module returns a zero to it, and the sum is taken behind the block.

    Args:
        attachment: The reducer's attachment to the model.
        step: What the block does to the sequence.
        progress: What blocks pass on to the next.
        source: What plans are made from: `keys`, the block's input (`block`), or what is merged (`part`).
        weighted: Whether keys are weighted by size.
        starts: Whether it is the first block that merges.
    """

    def __init__(
        self, attachment: Attachment, step: Step, progress: Progress, source: str, weighted: bool, starts: bool
    ) -> None:
        super().__init__(attachment, step.site, False, tuple(step.site.parts))
        seam = step.site.parts["self"]
        assert isinstance(seam, ViTAttentionSeam)
        self._step, self._seam, self._progress = step, seam, progress
        self._source, self._weighted, self._starts = source, weighted, starts
        names = inspect.signature(type(step.site.module("self")).forward).parameters
        self._names, self._ends = tuple(names)[1:], (step.branch.first, step.branch.last)
        self._count = step.before
        self._short: Tensor | None = None
        self._branch: Tensor | None = None

    def install(self) -> Undo:
        """Register the hooks; return what undoes it."""
        step, block, attention = self._step, self.site.block, self.site.module("self")
        first, last, mlp = (block.get_submodule(name) for name in (*self._ends, self.site.parts["mlp"].module))
        key, norm = attention.get_submodule(self._seam.key), block.get_submodule(self._seam.norm or "")
        for name in (self._seam.module, *self._ends):
            self.attachment.watch(self.site.name, block, name)
        undo: Undo = [
            block.register_forward_pre_hook(self.enter, with_kwargs=True).remove,
            # Before any other hook that looks at the block's output.
            block.register_forward_hook(self.leave, always_call=True, prepend=True).remove,
            attention.register_forward_pre_hook(self.attend, with_kwargs=True).remove,
        ]
        if self._seam.norm is not None:
            undo.append(norm.register_forward_pre_hook(Repeating(self).before).remove)
        if step.reducer is None:
            return undo
        if self._source == "keys":
            undo.append(key.register_forward_hook(self.take_keys).remove)
        undo.append(first.register_forward_pre_hook(self.merge).remove)
        undo.append(mlp.register_forward_pre_hook(self.check_short).remove)
        undo.append(last.register_forward_hook(self.close).remove)
        return undo

    @property
    def grid(self) -> Grid:
        """The tokens in a row: after the first merge they lie on no other grid."""
        return Grid((self._count,), self._step.prefix)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a run with what the blocks before pass on."""
        self._short = self._branch = None
        outside = self.attachment.moment is None and not in_backward()
        if outside and self._starts:
            self._progress.clear()  # as a call of the model would
        super().enter(module, args, kwargs)
        if outside:
            self._visit = self._visiting(args[0] if args else kwargs[self.site.tokens])

    def _visiting(self, tokens: Tensor) -> Passing:
        progress = self._progress
        source = tokens.detach() if self._source == "block" else None
        return Passing(self.attachment.moment, None, progress.sizes_of(tokens), progress.plans, source)

    def attend(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Weight keys by how many tokens they stand for, and give each token its position."""
        given, visit = bound(self._names, args, kwargs), self._passing
        refuse_masks(self.site.path("self"), self._seam, given)
        if visit is None or visit.sizes is None:
            return None
        tokens: Tensor = given.pop(self._names[0])
        if self._weighted:
            self._seam.check_mask(self.site.path("self"), module)
            given[self._seam.mask] = visit.sizes.log().to(tokens.dtype)[:, None, None]
        if given.get(self._seam.rope) is not None:
            for plan in visit.plans:
                given[self._seam.rope] = shorten_rope(given[self._seam.rope], plan, self._step.prefix)
        return (tokens,), given

    def take_keys(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Keep the mean of the heads' keys, to plan from."""
        visit = self._passing
        if visit is not None and visit.plan is None:
            visit.source = self._seam.mean_key(self.site.module("self"), output.detach())

    def merge(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Merge the tokens where the MLP's branch begins."""
        visit, reducer = self._passing, self._step.reducer
        if visit is None:
            return None
        tokens: Tensor = args[0]
        if visit.plan is None:
            visit.plan = self._make(tokens if visit.source is None else visit.source)
            visit.source = None
        plan = visit.plan
        if isinstance(plan, NoReduction):
            return None
        sizes = torch.ones_like(tokens[..., 0], dtype=torch.float32) if visit.sizes is None else visit.sizes
        assert reducer is not None
        if plan.soft:
            self._short, visit.merged = _share_by_size(tokens, sizes, plan)
            return self._short, *args[1:]
        short, visit.merged = merge_by_size(tokens, sizes, plan.places(), plan.sizes.shape[1])
        # Reducers that do not average (prune, mlerp) have a rule of their own.
        self._short = short if reducer.averages else plan.reduce(tokens)
        return self._short, *args[1:]

    def check_short(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Refuse an MLP that does not get the merged tokens."""
        if self._short is not None and args[0].shape[1] != self._short.shape[1]:
            raise SiteError(f"{self.site.path('mlp')} was not given what {self._step.branch.first} had been.")

    def close(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Keep the branch, and let the library add zero."""
        if self._short is None:
            return output
        self._branch = output
        return output.new_zeros(())

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the merged tokens with the branch added; forget the run, also after an exception."""
        visit, short, branch = self._passing, self._short, self._branch
        self._visit = self._short = self._branch = None
        if output is None or visit is None or visit.plan is None or short is None:
            return output
        if branch is None:
            raise SiteError(f"{self.site.name} did not run its {self._step.branch.last}; its tokens cannot be merged.")
        if not torch.compiler.is_compiling() and output.requires_grad and not short.requires_grad:
            raise SiteError(
                f"{self.site.name} is checkpointed in the reentrant way, through which no gradient would reach merged "
                'tokens; give it {"use_reentrant": False}.'
            )
        if not in_backward():
            self._progress.sizes, self._progress.plans = visit.merged, (*visit.plans, visit.plan)
        return short + branch

    def _make(self, tokens: Tensor) -> Reduction:
        self._count = tokens.shape[1] - self._step.prefix
        return super()._make(tokens)

    def _planned(self, tokens: Tensor, grid: Grid) -> Reduction:
        step = self._step
        try:
            plan = super()._planned(tokens, grid)
        except SettingError as error:
            raise SettingError(f"At {self.site.name}, which is given {self._count} tokens in a row: {error}") from error
        if plan.padded:
            raise SettingError(
                f"At {self.site.name} the rows of one batch would be reduced to different lengths, which later blocks "
                "could not tell apart; in progressive placements all rows follow one rule."
            )
        if step.removed is not None and self._count + step.prefix - plan.sizes.shape[1] != step.removed:
            raise SettingError(f"At {self.site.name} {step.reducer!r} cannot remove {step.removed} of {self._count}.")
        return plan

    def _reducer(self) -> TokenReducer:
        reducer, removed = self._step.reducer, self._step.removed
        assert reducer is not None
        if removed is not None:
            set_removed(reducer, removed, self._count)
        return reducer

    @property
    def _passing(self) -> Passing | None:
        return self._visit if isinstance(self._visit, Passing) else None


def set_removed(reducer: TokenReducer, removed: int, count: int) -> None:
    """Set a reducer's ratio so that floor(count * ratio) is `removed`; the reducer is a block's own copy."""
    # A reducer may be a frozen dataclass, whose own __setattr__ refuses.
    object.__setattr__(reducer, "ratio", (removed + 0.5) / count)


def _share_by_size(tokens: Tensor, sizes: Tensor, plan: Reduction) -> tuple[Tensor, Tensor]:
    """Merge by shares, each token weighted by its size: R^T (s x) / R^T s, and R^T s."""
    mean = plan.reduce(sizes[..., None])
    short = plan.reduce(tokens.float() * sizes[..., None]) / mean
    return short.to(tokens.dtype), mean[..., 0] * plan.sizes
