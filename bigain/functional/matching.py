"""Bipartite matching of tokens, and merging by an assignment."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.functional import kernels
from bigain.functional.precision import token_norms, without_autocast

__all__ = [
    "MergeMode",
    "assign_to_most_similar",
    "cosine_matrix",
    "group_mean",
    "group_order",
    "group_sizes",
    "merge",
    "most_similar",
    "place_merged",
    "restore",
    "take",
]

MergeMode = Literal["mean", "prune", "mlerp"]

_HALVES = (torch.float16, torch.bfloat16)

_SCORES_AT_ONCE = 2**27
"""Scores in memory at a time: half a GiB of float32."""


def assign_to_most_similar(
    tokens: Tensor, sources: Tensor, destinations: Tensor, removed: int
) -> tuple[Tensor, Tensor]:
    """Merge the best-matched sources into their most cosine-similar destinations.

    Args:
        tokens: `[B, N, C]`.
        sources: int64, `[B, S]`.
        destinations: int64, `[B, D]`; with the sources, every token once.
        removed: How many sources are merged, at most S.

    Returns:
        What `place_merged` returns.

    References:
        Token Merging for Fast Stable Diffusion (Bolya and Hoffman, 2023), section 3.
    """
    best, partner = most_similar(tokens, sources, destinations)
    return place_merged(best, partner, sources, destinations, removed)


def most_similar(tokens: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Find the most cosine-similar column token for each row token; of equals, the first.

    Args:
        tokens: `[B, N, C]`.
        rows: int64, `[B, R]`, or `[B, T, R]` in T tiles.
        columns: int64, `[B, K]`, or `[B, T, K]`, what a tile's rows are compared with.

    Returns:
        The cosines, in the type of `cosine_matrix`, and the places in `columns`, int64; both in the shape of `rows`.
    """
    if tokens.dtype in _HALVES and kernels.usable(tokens) and not _needs_gradient(tokens):
        from bigain.functional.kernels.match import most_similar as matched

        tiled = (rows, columns) if rows.ndim == 3 else (rows[:, None], columns[:, None])
        best, partner = matched(tokens, token_norms(tokens).clamp_min(1e-12).reciprocal(), *tiled)
        return best.reshape(rows.shape), partner.reshape(rows.shape).long()
    found = [_best_of(tokens, part, columns) for part in torch.split(rows, _rows_at_once(rows, columns), dim=-1)]
    best, partner = (torch.cat(values, dim=-1) for values in zip(*found, strict=True))
    return best, partner


def _rows_at_once(rows: Tensor, columns: Tensor) -> int:
    tiles = rows.shape[:-1].numel()
    return max(1, _SCORES_AT_ONCE // max(1, tiles * columns.shape[-1]))


def _best_of(tokens: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    best, partner = cosine_matrix(tokens, rows, columns).max(dim=-1)
    return best, partner


def cosine_matrix(tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compare each row token with each column token.

    Args:
        tokens: `[B, N, C]`.
        rows: int64, `[B, R]`, tokens by their indices, or `[B, T, R]` in T tiles.
        columns: int64, `[B, K]` or `[B, T, K]`.

    Returns:
        Cosine similarities, float32, or float64 for tokens in it, `[B, R, K]` or `[B, T, R, K]`.
    """
    # At least float32, also under autocast: in half precision many cosines tie, and ties would decide.
    with without_autocast(tokens.device):
        if tokens.dtype not in _HALVES or not tokens.is_cuda:
            unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
            return _listed(unit, rows) @ _listed(unit, columns).transpose(-1, -2)
        # Products of halves are exact in float32, in which they are summed: float32's decisions at half its cost.
        left, right = (_listed(tokens, index).flatten(0, -3) for index in (rows, columns))
        product: Tensor = torch.bmm(left, right.transpose(1, 2), out_dtype=torch.float32)
        product = product.reshape(*rows.shape, columns.shape[-1])
        inverse = token_norms(tokens).clamp_min(1e-12).reciprocal()[..., None]
        return product * _listed(inverse, rows) * _listed(inverse, columns).transpose(-1, -2)


def _listed(tokens: Tensor, index: Tensor) -> Tensor:
    """Take tokens `[B, N, C]` by an index of any shape that begins with B: `[*index, C]`."""
    return take(tokens, index.flatten(1)).reshape(*index.shape, tokens.shape[2])


def _needs_gradient(tokens: Tensor) -> bool:
    return torch.is_grad_enabled() and tokens.requires_grad


def place_merged(
    best: Tensor, partner: Tensor, sources: Tensor, destinations: Tensor, removed: int
) -> tuple[Tensor, Tensor]:
    """Merge the best-matched sources: of equally good ones, the first.

    The reduced sequence has the sources that stay, then the destinations, both in the order given.

    Args:
        best: How well each source matches, `[B, S]`.
        partner: Which destination it would merge into, int64, `[B, S]`.
        sources: int64, `[B, S]`.
        destinations: int64, `[B, D]`; with the sources, every token once.
        removed: How many sources are merged, at most S.

    Returns:
        The assignment `[B, N]`, each token's place in the reduced sequence, and the
        representatives `[B, N - removed]`, the token that each place stands for.
    """
    batch, stay = len(sources), sources.shape[1] - removed
    if removed and kernels.usable(best) and best.dtype == torch.float32:
        from bigain.functional.kernels import selection

        if sources.shape[1] <= selection.LARGEST:
            placed: tuple[Tensor, Tensor] = selection.place_merged(best, partner, sources, destinations, removed)
            return placed
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :removed]
    merged = torch.zeros_like(best, dtype=torch.bool).scatter(1, chosen, True)
    rank = (~merged).cumsum(dim=1) - 1
    # Merged sources share a place beyond the last, which is cut off.
    unmerged = sources.new_empty(batch, stay + 1).scatter(1, torch.where(merged, stay, rank), sources)[:, :stay]
    ends = (torch.arange(destinations.shape[1], device=best.device) + stay).expand(batch, -1)
    place = sources.new_empty(batch, sources.shape[1] + destinations.shape[1])
    place = place.scatter(1, sources, torch.where(merged, partner + stay, rank)).scatter(1, destinations, ends)
    return place, torch.cat([unmerged, destinations], dim=1)


def group_order(place: Tensor, length: int) -> Tensor | None:
    """Sort tokens by their place, where kernels run: they sum each group in order, without atomics.

    Args:
        place: int64, `[B, N]`.
        length: M, the length of the reduced sequence.

    Returns:
        int64, `[B, N]`; `None` where it is not needed.
    """
    if not kernels.usable(place):
        return None
    # Narrow keys sort faster.
    return place.to(torch.int16 if length < 2**15 else torch.int32).argsort(dim=1, stable=True)


def merge(
    tokens: Tensor,
    place: Tensor,
    representatives: Tensor,
    mode: MergeMode = "mean",
    order: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Reduce tokens by an assignment.

    Args:
        tokens: `[B, N, C]`.
        place: int64, `[B, N]`, each token's place in the reduced sequence.
        representatives: int64, `[B, M]`, the token that each place stands for.
        mode: `mean`: equal-weight mean of the group. `prune`: the representative
            alone. `mlerp`: the mean, rescaled to the largest norm in the group.
        order: What `group_order` returns; `None` for a sum in any order, which on a GPU
            differs in its last digits from run to run.
        sizes: What `group_sizes` returns, if it is known.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """
    if mode == "prune":
        return take(tokens, representatives)
    sizes = group_sizes(place, representatives.shape[1]) if sizes is None else sizes
    if mode == "mean":
        return group_mean(tokens, place, sizes, order)
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    norms = token_norms(wide)
    largest = norms.new_zeros(sizes.shape).scatter_reduce(1, place, norms, "amax")
    mean = group_mean(wide, place, sizes, order)
    return (F.normalize(mean, dim=-1) * largest[..., None]).to(tokens.dtype)


def group_mean(tokens: Tensor, place: Tensor, sizes: Tensor, order: Tensor | None = None) -> Tensor:
    """Average the tokens at each place of the reduced sequence.

    Args:
        tokens: `[B, N, C]`.
        place: int64, `[B, N]`.
        sizes: Tokens at each place, `[B, M]`.
        order: As in `merge`.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """
    if order is not None and kernels.usable(tokens):
        from bigain.functional.kernels.groups import group_mean as in_order

        averaged: Tensor = in_order(tokens, place, order, sizes)
        return averaged
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    total = wide.new_zeros(*sizes.shape, tokens.shape[2])
    total = total.scatter_add(1, place[..., None].expand(-1, -1, tokens.shape[2]), wide)
    return (total / sizes[..., None]).to(tokens.dtype)


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
    # gather has a fast path for an expanded index, several times faster than take_along_dim.
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
