"""Tiles of cells, within which tokens are compared: cost grows with N instead of its square."""

import math

import torch
from torch import Tensor

from bigain.functional.matching import most_similar

__all__ = ["most_similar_within", "tile_members", "tile_slots"]


def most_similar_within(
    tokens: Tensor,
    sources: Tensor,
    destinations: Tensor,
    shape: tuple[int, ...],
    cell: tuple[int, ...],
    window: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Find the most cosine-similar destination for each source, within its tile of cells.

    Args:
        tokens: `[B, N, C]`, row-major on `shape`.
        sources: int64, `[B, S]`.
        destinations: int64, `[B, D]`: one of each whole cell, in the cells' order.
        shape: Tokens along each axis.
        cell: Tokens of a cell along each axis.
        window: Cells of a tile along each axis.

    Returns:
        The cosines and the places in `destinations`, both `[B, S]`.
    """
    members, cells = tile_members(shape, cell, window, tokens.device)
    best, partner = most_similar(tokens, members.expand(len(tokens), -1, -1), destinations[:, cells])
    tile, inside = tile_slots(sources, shape, cell, window)
    slot = tile * members.shape[1] + inside
    best, partner = best.flatten(1).gather(1, slot), partner.flatten(1).gather(1, slot)
    return best, cells.flatten()[tile * cells.shape[1] + partner]


def tile_members(
    shape: tuple[int, ...], cell: tuple[int, ...], window: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """List the tokens and the cells of every tile.

    Tiles cover the whole cells, from the first one on. Tokens that no whole cell covers belong to the last tile
    along their axis; every tile has room for them. Beyond the grid a tile repeats the last token and the last
    whole cell: `tile_slots` says which place is a token's own.

    Args:
        shape: Tokens along each axis.
        cell: Tokens of a cell along each axis, at least one of which fits.
        window: Cells of a tile along each axis.
        device: Where the indices are wanted.

    Returns:
        Tokens `[T, P]` and cells `[T, Q]`, both row-major indices.
    """
    tokens = torch.zeros((), dtype=torch.int64, device=device)
    cells = torch.zeros((), dtype=torch.int64, device=device)
    for length, side, wide in zip(shape, cell, window, strict=True):
        whole, number, room = _tiling(length, side, wide)
        start = torch.arange(number, device=device)[:, None] * wide
        token = (start * side + torch.arange(room, device=device)).clamp_max(length - 1)
        box = (start + torch.arange(wide, device=device)).clamp_max(whole - 1)
        tokens = tokens[..., None, None] * length + token
        cells = cells[..., None, None] * whole + box
    order = [*range(0, 2 * len(shape), 2), *range(1, 2 * len(shape), 2)]
    tiles = math.prod(tokens.shape[::2])
    return tokens.permute(order).reshape(tiles, -1), cells.permute(order).reshape(tiles, -1)


def tile_slots(
    tokens: Tensor, shape: tuple[int, ...], cell: tuple[int, ...], window: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the tile of each token and its place in the tile, both in the shape of `tokens`.

    Args:
        tokens: int64, any shape, row-major indices on the grid.
        shape: Tokens along each axis.
        cell: Tokens of a cell along each axis.
        window: Cells of a tile along each axis.
    """
    tile, inside = torch.zeros_like(tokens), torch.zeros_like(tokens)
    stride = math.prod(shape)
    for length, side, wide in zip(shape, cell, window, strict=True):
        _, number, room = _tiling(length, side, wide)
        stride //= length
        at = tokens // stride % length
        own = (at // (side * wide)).clamp_max(number - 1)
        tile = tile * number + own
        inside = inside * room + at - own * side * wide
    return tile, inside


def _tiling(length: int, side: int, wide: int) -> tuple[int, int, int]:
    """Return, along an axis, the number of whole cells, of tiles, and of tokens that a tile has room for."""
    whole = length // side
    return whole, -(-whole // wide), side * wide + length % side
