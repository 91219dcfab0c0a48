"""The seams of attention modules as in diffusers."""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import nn

from bigain.adapters.base import Part, Planner, Seam, Site, Undo
from bigain.adapters.hooks._diffusers_attention import ReducedAttention, Rotation
from bigain.adapters.hooks.proportional import ProportionalProcessor, check_proportional
from bigain.adapters.hooks.rotary import Rotary
from bigain.errors import SiteError
from bigain.reducers.base import TokenReducer

__all__ = ["AttentionSeam", "RegionSeam", "UnitedSeam"]


@dataclass(frozen=True)
class AttentionSeam(Seam):
    """An attention module of diffusers: `forward(hidden_states, encoder_hidden_states, ...)`, a processor inside.

    Tokens are reduced before the call and restored behind it, whatever the processor and
    backend inside. Where only keys and values shrink, they are passed as
    `encoder_hidden_states`; where text joins the attention and may have that argument,
    the inputs of the projections of keys and values are shortened.

    Args:
        module: Its path in the block.
        joint: Text tokens join in the attention. They are never reduced.
        rotary: How it takes rotary positions, if it does.
        keys: Names of the projections of keys and values.
    """

    module: str
    joint: bool = False
    rotary: Rotary | None = None
    keys: tuple[str, ...] = ("to_k", "to_v")

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        path, module = site.inside(self.module), cast("Any", site.block.get_submodule(self.module))
        if part != "self":
            return
        if "kv" in reducer.kinds and _fused(module):
            raise SiteError(
                f"{path} projects queries, keys and values at once, so that keys and values cannot be "
                "fewer; undo that with unfuse_qkv_projections(), or take a merging reducer."
            )
        if proportional and (self.joint or self.rotary):
            raise SiteError(f"Proportional attention does not know the text and positions inside {path}.")
        if proportional:
            check_proportional(path, module, module.processor)

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        block, path, watch = planner.site.block, planner.site.inside(self.module), planner.attachment.watch
        attention: Any = block.get_submodule(self.module)
        watch(planner.site.name, block, self.module)
        work = ReducedAttention(attention, path, planner, part, self.joint, self.rotary, self.keys)
        undo = self.around(work, attention, block)
        if part == "self" and "kv" in planner.attachment.reducer.kinds and hasattr(attention, "fused_projections"):
            watch(path, attention, "fused_projections")
        if part == "self" and self.joint and "kv" in planner.attachment.reducer.kinds:
            for name in self.keys:
                watch(path, attention, name)
                undo.append(getattr(attention, name).register_forward_pre_hook(work.shorten).remove)
        if self.rotary is not None:
            undo += _rotating(self.rotary, attention, work)
        if proportional and part == "self":
            before = attention.processor
            attention.processor = ProportionalProcessor(before, work)
            watch(path, attention, "processor")
            undo.append(partial(setattr, attention, "processor", before))
        return undo

    def around(self, work: ReducedAttention, attention: nn.Module, block: nn.Module) -> Undo:
        """Reduce before the attention module, and restore behind it."""
        return [
            attention.register_forward_pre_hook(work.before, with_kwargs=True).remove,
            attention.register_forward_hook(work.after).remove,
        ]


@dataclass(frozen=True)
class RegionSeam(AttentionSeam):
    """Attention and an MLP beside it, between one norm and one projection: a single block of FLUX.

    The norm's output, text first, is reduced; the projection's output is restored. The
    MLP in between shrinks with the attention.

    Args:
        norm: Name of the norm; its output, or the first of its outputs, are the tokens.
        projection: Name of the projection.
        beside: Names of the MLP's own modules.
    """

    joint: bool = True
    norm: str = "norm"
    projection: str = "proj_out"
    beside: tuple[str, ...] = ("proj_mlp",)

    @property
    def covers(self) -> tuple[str, ...]:
        return (self.module, *self.beside, self.projection)

    def around(self, work: ReducedAttention, attention: nn.Module, block: nn.Module) -> Undo:
        for name in (self.norm, self.projection):
            work.planner.attachment.watch(work.planner.site.name, block, name)
        return [
            block.get_submodule(self.norm).register_forward_hook(work.open_region).remove,
            attention.register_forward_pre_hook(work.inside_region, with_kwargs=True).remove,
            block.get_submodule(self.projection).register_forward_hook(work.close_region).remove,
        ]


@dataclass(frozen=True)
class UnitedSeam(Seam):
    """Several modules that are one part of a block and follow one plan: the two attentions of a block of SD3.5.

    Args:
        seams: Their seams, in order of execution. The part has the path of the first.
    """

    seams: tuple[Seam, ...]

    @property
    def module(self) -> str:  # type: ignore[override]  # a setting in the others
        return self.seams[0].module

    @property
    def covers(self) -> tuple[str, ...]:
        return tuple(path for seam in self.seams for path in seam.covers)

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        for seam in self.seams:
            seam.check(site, part, reducer, proportional)

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        return [undo for seam in self.seams for undo in seam.install(planner, part, proportional)]


def _fused(attention: Any) -> bool:
    """Say whether queries, keys and values are projected at once."""
    if hasattr(attention, "unfuse_projections"):
        return bool(attention.fused_projections)
    # diffusers' older Attention still says fused after unfusing: only the processor tells.
    return type(getattr(attention, "processor", None)).__name__.startswith("Fused")


def _rotating(rotary: Rotary, attention: Any, work: ReducedAttention) -> Undo:
    """Put hooks where queries and keys are rotated; the keys of cross-attention are not rotated."""
    watch, path = work.planner.attachment.watch, work.path
    undo: Undo = []
    for of, number in (("queries", 0), ("keys", 1)):
        if of == "keys" and work.part == "cross":
            continue
        name, layout = rotary.behind(attention, number)
        watch(path, attention, name)
        turn = Rotation(work, of, layout, rotary.halves, attention)
        undo.append(getattr(attention, name).register_forward_hook(turn.after).remove)
    for name in rotary.text or ():
        if getattr(attention, name, None) is not None:
            turn = Rotation(work, "text", rotary.layout, rotary.halves, attention)
            undo.append(getattr(attention, name).register_forward_hook(turn.after).remove)
    return undo
