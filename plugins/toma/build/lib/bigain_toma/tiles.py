"""Cut a grid into tiles of nearly one size, and share the reduced tokens out among them."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Tiling", "smallest_tile"]


@dataclass(frozen=True)
class Tiling:
    """The N tokens of a grid in T tiles of at most k, and M reduced tokens in T tiles of at most m.

    An axis of n tokens and a side s gives ceil(n / s) pieces of floor or ceil of the
    mean length. Tile t has floor(e M / N) - floor(b M / N) reduced tokens, where b and
    e count the tokens of the tiles before it, without and with its own.

    Args:
        tokens: int64, `[T, k]`: the tokens of each tile, row-major.
        real: bool, `[T, k]`: which of them there are; smaller tiles are filled up.
        home: int64, `[N]`: where each token stands in the flattened `[T * k]`.
        places: int64, `[T, m]`: the reduced tokens of each tile.
        taken: bool, `[T, m]`: which of them there are.
        slots: int64, `[M]`: where each reduced token stands in the flattened `[T * m]`.
    """

    tokens: Tensor
    real: Tensor
    home: Tensor
    places: Tensor
    taken: Tensor
    slots: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], tile: tuple[int, ...], length: int, device: torch.device) -> Self:
        """Cut a grid.

        Args:
            shape: Tokens along each axis.
            tile: Longest sides of a tile.
            length: M, such that every tile has a reduced token.
            device: Where the indices are wanted.
        """
        tokens, real, home = _cut(shape, tile, device)
        size = math.prod(shape)
        ends = real.sum(dim=1).cumsum(dim=0) * length // size
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        # floor(a + b) - floor(a) is at most ceil(b): known without reading `ends`.
        most = -(-tokens.shape[1] * length // size)
        turn = torch.arange(most, device=device)
        places = starts[:, None] + turn
        taken = places < ends[:, None]
        number = torch.arange(length, device=device)
        owner = torch.searchsorted(ends, number, right=True)
        return cls(tokens, real, home, places.clamp(max=length - 1), taken, owner * most + number - starts[owner])

    def fold(self, tokens: Tensor) -> Tensor:
        """Bring `[B, N, C]` to tiles, `[B, T, k, C]`; what fills up a tile is some token of the grid."""
        return torch.unflatten(tokens.index_select(1, self.tokens.flatten()), 1, tuple(self.tokens.shape))

    def unfold(self, tiles: Tensor) -> Tensor:
        """Bring `[B, T, k, C]` back to `[B, N, C]`."""
        return tiles.flatten(1, 2).index_select(1, self.home)

    def fold_reduced(self, reduced: Tensor) -> Tensor:
        """Bring `[B, M, C]` to tiles, `[B, T, m, C]`."""
        return torch.unflatten(reduced.index_select(1, self.places.flatten()), 1, tuple(self.places.shape))

    def unfold_reduced(self, tiles: Tensor) -> Tensor:
        """Bring `[B, T, m, C]` back to `[B, M, C]`."""
        return tiles.flatten(1, 2).index_select(1, self.slots)


def smallest_tile(shape: tuple[int, ...], tile: tuple[int, ...]) -> int:
    """Count the tokens of the smallest tile of a grid."""
    # A list, since dynamo does not trace a generator into math.prod.
    return math.prod([length // -(-length // side) for length, side in zip(shape, tile, strict=True)])


def _cut(shape: tuple[int, ...], tile: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return `tokens`, `real` and `home` of a `Tiling`."""
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=device)
    real = torch.ones(1, 1, dtype=torch.bool, device=device)
    # Tile and turn within it of every token, over the axes so far.
    owner = turn = torch.zeros(1, dtype=torch.int64, device=device)
    for length, side in zip(shape, tile, strict=True):
        count = -(-length // side)
        width = -(-length // count)
        number = torch.arange(count, device=device)
        starts, ends = number * length // count, (number + 1) * length // count
        pieces = starts[:, None] + torch.arange(width, device=device)
        inside = pieces < ends[:, None]
        tokens = _cross(tokens[:, None, :, None] * length + pieces.clamp(max=length - 1)[None, :, None, :])
        real = _cross(real[:, None, :, None] & inside[None, :, None, :])
        position = torch.arange(length, device=device)
        # Looked up, not reckoned: reckoned, it becomes a part of index expressions that inductor fails to solve.
        piece = torch.searchsorted(ends, position, right=True)
        owner = (owner[:, None] * count + piece).flatten()
        turn = (turn[:, None] * width + position - starts[piece]).flatten()
    return tokens, real, owner * tokens.shape[1] + turn


def _cross(table: Tensor) -> Tensor:
    """Flatten `[tiles, pieces, tokens, width]` to `[tiles * pieces, tokens * width]`."""
    return table.flatten(2).flatten(0, 1)
