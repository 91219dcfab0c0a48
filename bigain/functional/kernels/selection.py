"""Which sources merge, and where every token goes, in one pass: a selection instead of a sort."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigain.functional.kernels import on_device_of, wrap_triton

__all__ = ["LARGEST", "place_merged"]

LARGEST = 16_384
"""Sources of a row, at most: they lie in the registers of one block. Beyond, a sort is faster."""


@triton.jit
def _place(
    best,
    partner,
    sources,
    destinations,
    place,
    representatives,
    source_count,
    destination_count,
    removed,
    BLOCK: tl.constexpr,
    BLOCK_DESTINATIONS: tl.constexpr,
):
    """One row. A search over the cosines' bits finds the removed-th largest; of its equals, the first ones merge."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK)
    there = number < source_count
    # -0 becomes 0, since both are equal and their bits are not. Then the bits, as an integer, are in the values' order.
    bits = (tl.load(best + row * source_count + number, mask=there, other=0.0) + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low = tl.min(tl.where(there, key, 2147483647)).to(tl.int64)
    high = tl.max(tl.where(there, key, -2147483648)).to(tl.int64)
    key = tl.where(there, key, -2147483648)  # below every bound that is tried
    while low < high:
        # Three bounds at once: a sum over the block costs the same for one count and for three in one number.
        step = (high - low) // 4 + 1
        first = low + step
        second = tl.minimum(first + step, high)
        third = tl.minimum(second + step, high)
        counts = tl.sum(
            (key >= first.to(tl.int32)).to(tl.int64)
            + ((key >= second.to(tl.int32)).to(tl.int64) << 20)
            + ((key >= third.to(tl.int32)).to(tl.int64) << 40)
        )
        one, two, three = counts & 0xFFFFF, (counts >> 20) & 0xFFFFF, counts >> 40
        below = tl.where(one >= removed, second - 1, first - 1)
        below = tl.where(three >= removed, high, tl.where(two >= removed, third - 1, below))
        low = tl.where(one >= removed, tl.where(two >= removed, tl.where(three >= removed, third, second), first), low)
        # A bound that just so many cosines reach parts them as well as the removed-th largest.
        high = tl.where((one == removed) | (two == removed) | (three == removed), low, below)
    bound = low.to(tl.int32)
    above = there & (key > bound)
    equal = (there & (key == bound)).to(tl.int32)
    wanted = removed - tl.sum(above.to(tl.int32))
    merged = above | ((equal > 0) & (tl.cumsum(equal, 0) <= wanted))
    stays = there & (merged == 0)
    rank = tl.cumsum(stays.to(tl.int32), 0) - 1

    staying = source_count - removed
    count, length = source_count + destination_count, staying + destination_count
    token = tl.load(sources + row * source_count + number, mask=there, other=0)
    goal = staying + tl.load(partner + row * source_count + number, mask=there, other=0)
    tl.store(place + row * count + token, tl.where(merged, goal, rank).to(tl.int64), mask=there)
    tl.store(representatives + row * length + rank, token, mask=stays)
    for first in range(0, destination_count, BLOCK_DESTINATIONS):
        goal_number = first + tl.arange(0, BLOCK_DESTINATIONS)
        is_one = goal_number < destination_count
        destination = tl.load(destinations + row * destination_count + goal_number, mask=is_one, other=0)
        tl.store(place + row * count + destination, (staying + goal_number).to(tl.int64), mask=is_one)
        tl.store(representatives + row * length + staying + goal_number, destination, mask=is_one)


@torch.library.triton_op("bigain::place_merged", mutates_args={})
def place_merged(
    best: Tensor, partner: Tensor, sources: Tensor, destinations: Tensor, removed: int
) -> tuple[Tensor, Tensor]:
    """Do what `functional.matching.place_merged` does, for at most `LARGEST` sources and at least one removed."""
    (batch, source_count), destination_count = best.shape, destinations.shape[1]
    count = source_count + destination_count
    place = sources.new_empty((batch, count))
    representatives = sources.new_empty((batch, count - removed))
    block = triton.next_power_of_2(source_count)
    with on_device_of(best):
        wrap_triton(_place)[(batch,)](
            best.contiguous(), partner.contiguous(), sources.contiguous(), destinations.contiguous(), place,
            representatives, source_count, destination_count, removed, BLOCK=block,
            BLOCK_DESTINATIONS=min(4096, triton.next_power_of_2(destination_count)),
            num_warps=8 if block <= 4096 else 16,
        )  # fmt: skip
    return place, representatives
