"""Merging and averaging of tokens that already stand for several."""

import torch
from torch import Tensor

from bigain.functional.matching import group_order, group_sizes

__all__ = ["mean_by_size", "merge_by_size"]


def merge_by_size(tokens: Tensor, sizes: Tensor, place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Merge tokens by an assignment, each weighted by its size.

    Args:
        tokens: `[B, N, C]`.
        sizes: How many tokens each stands for, `[B, N]`.
        place: int64, `[B, N]`: each token's place in the reduced sequence; no place is empty.
        length: M, the length of the reduced sequence.

    Returns:
        The merged tokens, sum(s x) / sum(s) of each group, `[B, M, C]` in the type of
        `tokens`, and sum(s), `[B, M]`.

    References:
        Token Merging: Your ViT but Faster (Bolya et al., 2023), section 3.
    """
    merged = sizes.new_zeros(sizes.shape[0], length).scatter_add(1, place, sizes)
    order = group_order(place, length)
    if order is not None:
        from bigain.functional.kernels.groups import group_mean

        return group_mean(tokens, place, order, group_sizes(place, length), sizes), merged
    wide = tokens.to(_wide(tokens)) * sizes[..., None]
    index = place[..., None].expand_as(tokens)
    total = wide.new_zeros(tokens.shape[0], length, tokens.shape[2]).scatter_add(1, index, wide)
    return (total / merged[..., None]).to(tokens.dtype), merged


def mean_by_size(tokens: Tensor, sizes: Tensor) -> Tensor:
    """Average tokens, each weighted by its size.

    Args:
        tokens: `[B, N, C]`.
        sizes: How many tokens each stands for, `[B, N]`.

    Returns:
        `[B, C]`, in the type of `tokens`.
    """
    total = (tokens.to(_wide(tokens)) * sizes[..., None]).sum(dim=1)
    return (total / sizes.sum(dim=1, keepdim=True)).to(tokens.dtype)


def _wide(tokens: Tensor) -> torch.dtype:
    # Sums of half-precision numbers lose their last bits.
    return torch.promote_types(tokens.dtype, torch.float32)
