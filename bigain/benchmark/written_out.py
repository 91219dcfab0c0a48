"""Attention written out: the paper's own baseline, whose logits are a tensor in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["written_out_attention"]


@torch.library.custom_op("bigain::written_out_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attend by three operations, each with its result in memory: a product, a softmax, a product.

    An operator of its own: inductor would recognise the pattern and fuse it. Everything is in
    the type of the inputs, as in code from before fused attention; torch's own
    `SDPBackend.MATH` computes half precision in float32, which takes longer still.
    """
    logits = (query * scale) @ key.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ value


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _instead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Replace `F.scaled_dot_product_attention`, for the arguments that image and video networks pass."""
    if is_causal or enable_gqa or dropout_p:
        raise SettingError("Written-out attention knows no causal masks, grouped queries and dropout.")
    found: Any = _attend(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, attn_mask)
    return found  # type: ignore[no-any-return]


@contextmanager
def written_out_attention() -> Iterator[None]:
    """Make `F.scaled_dot_product_attention` write its logits to memory, also in code compiled within."""
    with patch.object(F, "scaled_dot_product_attention", _instead):
        yield
