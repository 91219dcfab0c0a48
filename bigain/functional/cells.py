"""Cut a grid into cells, pick one token of each, and draw numbers without a generator."""

import math

import torch
from torch import Tensor

__all__ = ["cell_tokens", "hashed_normal", "hashed_picks", "hashed_uniform", "split_by_pick"]


def cell_tokens(shape: tuple[int, ...], cell: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """List the tokens of every cell that fits, and the tokens left over.

    Args:
        shape: Tokens along each axis.
        cell: Tokens of a cell along each axis.
        device: Where the indices are wanted.

    Returns:
        `[cells, tokens a cell]`, row-major in both, and `[leftover]`: the tokens
        of the rows and columns that no whole cell covers.
    """
    axes = len(shape)
    index = torch.arange(math.prod(shape), device=device).reshape(shape)
    leftover = []
    for axis, (length, side) in enumerate(zip(shape, cell, strict=True)):
        covered = length // side * side
        # Earlier axes are already cut to what cells cover, so that no token is listed twice.
        leftover.append(index.narrow(axis, covered, length - covered).flatten())
        index = index.narrow(axis, 0, covered)
    folded = index.reshape([n for length, side in zip(shape, cell, strict=True) for n in (length // side, side)])
    cells = folded.permute(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2))
    return cells.reshape(-1, math.prod(cell)), torch.cat(leftover)


def hashed_picks(rows: Tensor, cells: int, choices: int, salt: int) -> Tensor:
    """Draw one of `choices` for each cell, as a pure function of its arguments.

    A counter-based draw needs no generator state: it is the same on every device,
    under `torch.compile`, in a CUDA graph, and in whatever batch a row stands.

    Args:
        rows: int64, `[B]`: what a row's draw may depend on; equal values, equal draws.
        cells: Number of draws a row.
        choices: Exclusive upper bound.
        salt: Separates seeds and layers.

    Returns:
        int64, `[B, cells]`.

    References:
        The 32-bit finaliser of MurmurHash3 (Appleby, 2011), applied three times.
    """
    return _hashed(rows, cells, salt) % choices


def hashed_uniform(rows: Tensor, count: int, salt: int) -> Tensor:
    """Draw uniform numbers, as a pure function of the arguments.

    The same bits on every device and in whatever batch a row stands; number i does
    not depend on `count`.

    Args:
        rows: int64, `[B]`: what a row's numbers may depend on; equal values, equal numbers.
        count: Numbers a row.
        salt: Separates seeds and layers; its lowest 32 bits count.

    Returns:
        float32, `[B, count]`, in [0, 1), multiples of 2^-24.
    """
    # float32 holds 24 bits exactly: all 32 could round up to 1.
    return (_hashed(rows, count, salt) >> 8).float() * 2.0**-24


def hashed_normal(rows: Tensor, count: int, salt: int) -> Tensor:
    """Draw standard normal numbers, as a pure function of the arguments.

    Number i comes from the uniform numbers 2i and 2i + 1, so that it does not depend
    on `count`. Devices agree up to the rounding of their logarithm and cosine.

    Args:
        rows: int64, `[B]`: what a row's numbers may depend on; equal values, equal numbers.
        count: Numbers a row.
        salt: Separates seeds and layers; its lowest 32 bits count. The numbers are not
            independent of `hashed_uniform`'s or `hashed_picks`' at equal rows and salt.

    Returns:
        float32, `[B, count]`, within ±5.77.

    References:
        A note on the generation of random normal deviates (Box and Muller, 1958).
    """
    pairs = hashed_uniform(rows, 2 * count, salt).reshape(len(rows), count, 2)
    # 1 - u lies in (0, 1], where the logarithm is finite.
    radius = (-2 * torch.log(1 - pairs[..., 0])).sqrt()
    return radius * torch.cos(2 * math.pi * pairs[..., 1])


def _hashed(rows: Tensor, count: int, salt: int) -> Tensor:
    """Hash salt, row and counter to 32 bits each: int64, `[B, count]`."""
    counter = torch.arange(count, device=rows.device, dtype=torch.int64)
    mixed = _mix(torch.full_like(counter, salt & 0xFFFFFFFF))
    mixed = _mix(mixed[None] ^ (rows.to(torch.int64)[:, None] & 0xFFFFFFFF))
    return _mix(mixed ^ counter[None])


def _mix(value: Tensor) -> Tensor:
    mask = 0xFFFFFFFF
    value = (value + 0x9E3779B9) & mask
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & mask
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & mask
    return value ^ (value >> 16)


def split_by_pick(cells: Tensor, leftover: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    """Split tokens into the one picked of each cell and all the others, without a sort.

    Args:
        cells: `[D, k]` from `cell_tokens`.
        leftover: `[L]` from `cell_tokens`.
        pick: int64, `[B, D]`, which token of each cell is picked.

    Returns:
        Picked `[B, D]`, and the others `[B, D * (k - 1) + L]`.
    """
    batch, (count, size) = pick.shape[0], cells.shape
    table = cells.expand(batch, count, size)
    turn = (pick[..., None] + torch.arange(size, device=pick.device)) % size
    turned = table.gather(2, turn)
    others = turned[..., 1:].reshape(batch, -1)
    return turned[..., 0], torch.cat([others, leftover.expand(batch, -1)], dim=1)
