"""Proportional attention in diffusers' `Attention` modules."""

from typing import Any

from torch import Tensor, nn

from bigain.adapters.hooks._diffusers_attention import ReducedAttention
from bigain.errors import SiteError
from bigain.functional.attention import proportional_attention

__all__ = ["ProportionalProcessor", "attend_proportionally", "check_proportional"]

_REPLACEABLE = ("AttnProcessor", "AttnProcessor2_0")
"""Processors that only project and attend, so that ours can replace them."""


def check_proportional(name: str, attention: nn.Module, processor: Any) -> None:
    """Refuse an attention module that does more than `attend_proportionally`.

    Raises:
        SiteError: The processor is a special one, or the module has norms and residuals of its own.
    """
    kind = type(processor).__name__
    if kind not in _REPLACEABLE:
        raise SiteError(
            f"Proportional attention takes the place of {' and '.join(_REPLACEABLE)}; "
            f"the processor of {name} is a {kind}. Set a plain one, or leave proportional off."
        )
    module: Any = attention
    extras = [item for item in ("spatial_norm", "group_norm") if getattr(module, item, None) is not None]
    if extras or module.residual_connection or module.rescale_output_factor != 1:
        raise SiteError(f"Proportional attention does not know the norms and residuals inside {name}.")


def attend_proportionally(attention: nn.Module, queries: Tensor, keys: Tensor, sizes: Tensor) -> Tensor:
    """Do what the plain processor does, each key weighted by how many tokens it stands for.

    Args:
        attention: diffusers' `Attention`.
        queries: `[B, N, C]`.
        keys: What keys and values are projected from, `[B, M, C]`.
        sizes: How many tokens each key stands for, `[B, M]`.

    Returns:
        `[B, N, C]`.
    """
    module: Any = attention

    def heads(tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], module.heads, -1).transpose(1, 2)

    query, key, value = heads(module.to_q(queries)), heads(module.to_k(keys)), heads(module.to_v(keys))
    query = query if module.norm_q is None else module.norm_q(query)
    key = key if module.norm_k is None else module.norm_k(key)
    mixed = proportional_attention(query, key, value, sizes).transpose(1, 2).flatten(2)
    projection, dropout = module.to_out
    output: Tensor = dropout(projection(mixed))
    return output


class ProportionalProcessor:
    """Replaces a plain processor, and weights each key by how many tokens it stands for.

    Args:
        inner: The processor it replaces.
        work: The hooks around the attention, which have the plan.
    """

    def __init__(self, inner: Any, work: ReducedAttention) -> None:
        self.inner, self._work = inner, work

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        plan = self._work.plan
        if plan is None:
            plain: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        # No mask is needed: places that stand for no token have size 0.
        return attend_proportionally(attn, hidden_states, keys, plan.sizes)
