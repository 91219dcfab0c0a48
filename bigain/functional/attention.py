"""Attention in which a key counts once for each token that it stands for."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["proportional_attention"]

_MULTIPLE = 8
"""Fused kernels take head dimensions that are multiples of this."""

_EMPTY = -1e4
"""Log-weight of a key that stands for no token; finite in half precision, and its exponential is zero."""


def proportional_attention(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    """Attend with log(size) added to each key's logit, as if there were `size` copies of the key.

    Two extra channels of query and key add it, so that no bias is materialised and
    fused kernels (flash among them) apply. A key of size 0 is left out.

    Args:
        query: `[B, H, N, D]`.
        key: `[B, H, M, D]`.
        value: `[B, H, M, D]`.
        sizes: How many tokens each key stands for, `[B, M]`.

    Returns:
        `[B, H, N, D]`.

    References:
        Token Merging: Your ViT but Faster (Bolya et al., 2023), section 3.
    """
    width, device = query.shape[-1], query.device.type
    # Under autocast, attention rounds its inputs once more.
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else query.dtype
    # The published form is one channel: sqrt(D) in the query, log(size) in the key. In half
    # precision both would be rounded; a power of two in the query is exact, and the key's
    # rounding error goes into a second channel, which the padding has room for.
    factor = 2.0 ** round(math.log2(math.sqrt(width)))
    weight = torch.where(sizes > 0, sizes.float().clamp_min(1e-9).log(), _EMPTY) * (math.sqrt(width) / factor)
    coarse = weight.to(dtype)
    extra = torch.stack([coarse, (weight - coarse.float()).to(dtype)], dim=-1).to(key.dtype)
    extra = extra[:, None].expand(-1, key.shape[1], -1, -1)
    pad = -(width + 2) % _MULTIPLE
    query = F.pad(torch.cat([query, query.new_full((*query.shape[:-1], 2), factor)], dim=-1), (0, pad))
    key = F.pad(torch.cat([key, extra], dim=-1), (0, pad))
    value = F.pad(value, (0, 2 + pad))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1 / math.sqrt(width))
    return mixed[..., :width]
