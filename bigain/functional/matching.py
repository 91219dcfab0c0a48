"""Bipartite matching of tokens, and merging by an assignment."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.functional.precision import token_norms, without_autocast

__all__ = ["MergeMode", "assign_to_most_similar", "cosine_matrix", "group_sizes", "merge", "restore", "take"]

MergeMode = Literal["mean", "prune", "mlerp"]


def assign_to_most_similar(
    tokens: Tensor, sources: Tensor, destinations: Tensor, removed: int
) -> tuple[Tensor, Tensor]:
    """Merge the best-matched sources into their most cosine-similar destinations.

    The reduced sequence holds the sources that stay, then the destinations.

    Args:
        tokens: `[B, N, C]`.
        sources: int64, `[B, S]`.
        destinations: int64, `[B, D]`; with the sources, every token once.
        removed: How many sources are merged, at most S.

    Returns:
        The assignment `[B, N]`, each token's place in the reduced sequence, and
        the representatives `[B, N - removed]`, the token whose place it was.

    References:
        Token Merging for Fast Stable Diffusion (Bolya and Hoffman, 2023), section 3.
    """
    batch, count, _ = tokens.shape
    best, partner = cosine_matrix(tokens, sources, destinations).max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :removed], order[:, removed:]
    stay = kept.shape[1]

    place = torch.empty(batch, count, dtype=torch.int64, device=tokens.device)
    kept_tokens = sources.gather(1, kept)
    place = place.scatter(1, kept_tokens, _range(stay, place).expand(batch, -1))
    place = place.scatter(1, destinations, (_range(destinations.shape[1], place) + stay).expand(batch, -1))
    place = place.scatter(1, sources.gather(1, merged), partner.gather(1, merged) + stay)
    return place, torch.cat([kept_tokens, destinations], dim=1)


def cosine_matrix(tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compare tokens with tokens.

    Args:
        tokens: `[B, N, C]`.
        rows: int64, `[B, R]`, tokens by their indices.
        columns: int64, `[B, K]`.

    Returns:
        Cosine similarities, float32, or float64 for tokens in it, `[B, R, K]`.
    """
    # No less than float32, also under autocast: in half precision, ties decide.
    unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    with without_autocast(tokens.device):
        return take(unit, rows) @ take(unit, columns).transpose(1, 2)


def merge(tokens: Tensor, place: Tensor, representatives: Tensor, mode: MergeMode = "mean") -> Tensor:
    """Reduce tokens by an assignment.

    Args:
        tokens: `[B, N, C]`.
        place: int64, `[B, N]`, each token's place in the reduced sequence.
        representatives: int64, `[B, M]`, the token that each place stands for.
        mode: `mean`: equal-weight mean of the group. `prune`: the representative
            alone. `mlerp`: the mean, rescaled to the largest norm in the group.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """
    if mode == "prune":
        return take(tokens, representatives)
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    batch, length, channels = *representatives.shape, tokens.shape[2]
    index = place[..., None].expand(-1, -1, channels)
    total = wide.new_zeros(batch, length, channels).scatter_add(1, index, wide)
    mean = total / group_sizes(place, length)[..., None]
    if mode == "mlerp":
        norms = token_norms(wide)
        largest = norms.new_zeros(batch, length).scatter_reduce(1, place, norms, "amax")
        mean = F.normalize(mean, dim=-1) * largest[..., None]
    return mean.to(tokens.dtype)


def restore(reduced: Tensor, place: Tensor) -> Tensor:
    """Copy each reduced token to every token that was merged into it.

    Args:
        reduced: `[B, M, C]`.
        place: int64, `[B, N]`.

    Returns:
        `[B, N, C]`.
    """
    return take(reduced, place)


def group_sizes(place: Tensor, length: int) -> Tensor:
    """Count the tokens at each place of the reduced sequence.

    Args:
        place: int64, `[B, N]`.
        length: M, the length of the reduced sequence.

    Returns:
        float32, `[B, M]`.
    """
    ones = torch.ones_like(place, dtype=torch.float32)
    return ones.new_zeros(place.shape[0], length).scatter_add(1, place, ones)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Take each row's own choice of tokens.

    Args:
        tokens: `[B, N, C]`.
        index: int64, `[B, K]`.

    Returns:
        `[B, K, C]`.
    """
    # An expanded index has a path of its own in gather, several times faster than take_along_dim.
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def _range(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype)
