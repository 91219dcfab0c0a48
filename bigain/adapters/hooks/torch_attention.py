"""The seams of torch's own transformer modules: `nn.MultiheadAttention`, and the MLP of an encoder layer."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bigain.adapters.base import Part, Planner, Seam, Undo
from bigain.adapters.hooks._paths import watch_path
from bigain.adapters.hooks.reduced import ReducedCall
from bigain.adapters.hooks.tokens import ReducedTokens
from bigain.errors import SiteError
from bigain.reducers.base import NoReduction

__all__ = ["FeedForwardSeam", "MultiheadSeam"]

_CALL = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
"""Order of the arguments of `nn.MultiheadAttention.forward`."""

_MASKS = ("key_padding_mask", "attn_mask")


@dataclass(frozen=True)
class MultiheadSeam(Seam):
    """`nn.MultiheadAttention` called as self-attention: `attn(x, x, x, need_weights=False)`.

    Tokens are reduced before the call and restored behind it; where queries, keys and
    values are merged alike, torch's fused kernel for inference stays in use.

    Args:
        module: Its path in the block.
    """

    module: str

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        attention = planner.site.module(part)
        watch_path(planner, planner.site.path(part), attention)
        work = ReducedMultihead(planner, part, proportional)
        return [
            *_guard(planner),
            attention.register_forward_pre_hook(work.before, with_kwargs=True).remove,
            attention.register_forward_hook(work.after, always_call=True).remove,
        ]


@dataclass(frozen=True)
class FeedForwardSeam(Seam):
    """The MLP of `nn.TransformerEncoderLayer`: from the input of its first projection to the output of its last.

    Args:
        module: Name of the first projection.
        last: Name of the last.
    """

    module: str = "linear1"
    last: str = "linear2"

    @property
    def covers(self) -> tuple[str, ...]:
        return (self.module, self.last)

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        block, work = planner.site.block, ReducedTokens(planner)
        for path in planner.site.covered(part):
            watch_path(planner, path, planner.attachment.model.get_submodule(path))
        return [
            *_guard(planner),
            block.get_submodule(self.module).register_forward_pre_hook(work.before).remove,
            block.get_submodule(self.last).register_forward_hook(work.after).remove,
        ]


class ReducedMultihead(ReducedCall):
    """Lets an `nn.MultiheadAttention` run on reduced tokens.

    Args:
        planner: Plans for its block.
        part: Which part of the block it is.
        proportional: Whether keys are weighted by how many tokens they stand for.
    """

    def __init__(self, planner: Planner, part: Part, proportional: bool) -> None:
        super().__init__(planner)
        self._path, self._proportional = planner.site.path(part), proportional

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten queries, keys and values, or keys and values alone."""
        given = dict(zip(_CALL, args, strict=False)) | kwargs
        self._check(given)
        tokens: Tensor = given["query"]
        plan = self.planner(self.turned(tokens))
        if isinstance(plan, NoReduction):
            return None
        short = self.turned(plan.reduce(self.turned(tokens)))
        given["query"] = short if plan.kind == "merge" else tokens
        # One object for both: torch recognises self-attention by it, and may take its fused kernel.
        given["key"] = given["value"] = short
        if self._proportional:
            # A float mask is added to the logits; log(0) leaves out places that stand for no token.
            given["key_padding_mask"] = plan.sizes.log().to(tokens.dtype)
        elif plan.padded:
            given["key_padding_mask"] = plan.sizes == 0
        self.plan = plan
        return (), given

    def _check(self, given: dict[str, Any]) -> None:
        query = given["query"]
        if query is not given["key"] or query is not given["value"]:
            raise SiteError(
                f"{self._path} is reduced as self-attention, but its query, key and value are not one tensor. Name "
                'the modules that are self-attention: adapter={"name": "modules", "attention": "layers.*.self_attn"}.'
            )
        masks = [name for name in _MASKS if given.get(name) is not None]
        if masks or given.get("is_causal", False):
            raise SiteError(
                f"{self._path} was called with {' and '.join(masks) or 'is_causal'}, which says nothing of merged "
                "tokens: a reducer works in attention of all tokens to all tokens. Leave masks out of the call."
            )
        if given.get("need_weights", True):
            raise SiteError(
                f"{self._path} was asked for attention weights, which between reduced tokens are not those between "
                "all tokens. Call it with need_weights=False (the default is True)."
            )
        if query.is_nested or query.ndim != 3:
            raise SiteError(f"{self._path} takes batches of equal length, of 3 axes, when a reducer is attached.")


class Guard:
    """Refuses calls of an encoder layer whose rows have different lengths.

    Args:
        name: Path of the layer, for the error.
    """

    def __init__(self, name: str) -> None:
        self._name = name or "The encoder layer"

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the call, in a forward pre-hook that runs before any other."""
        given = dict(zip(("src", "src_mask", "src_key_padding_mask"), args, strict=False)) | kwargs
        source = given.get("src")
        nested = isinstance(source, Tensor) and source.is_nested
        if nested or given.get("src_key_padding_mask") is not None:
            # The encoder turns a mask into a nested tensor.
            raise SiteError(
                f"{self._name} was given padded rows (src_key_padding_mask, or a nested tensor), and merging would mix "
                "padding into tokens. Cut batches to equal length, and leave the mask out."
            )


def _guard(planner: Planner) -> Undo:
    block = planner.site.block
    if not isinstance(block, nn.TransformerEncoderLayer):
        return []
    guard = Guard(planner.site.name)
    return [block.register_forward_pre_hook(guard.before, with_kwargs=True, prepend=True).remove]
