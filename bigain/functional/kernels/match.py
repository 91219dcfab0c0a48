"""Bipartite matching on tensor cores: a running best, and no matrix of scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigain.functional.kernels import multiprocessors, on_device_of, shared_memory, wrap_triton

__all__ = ["most_similar"]

_CLASSES = 8  # columns that lie as many apart are compared within one thread: no shuffle until the end


@triton.jit
def _first_of_largest(left_value, left_index, right_value, right_index):
    stays = left_value >= right_value
    return tl.where(stays, left_value, right_value), tl.where(stays, left_index, right_index)


@triton.jit
def _match(
    tokens,
    norms,
    rows,
    columns,
    column_norms,
    best_out,
    partner_out,
    token_stride,
    batch_stride,
    count,
    tiles,
    row_count,
    column_count,
    channels,
    span,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One block of rows against one span of columns.

    Products of halves are exact in float32, in which they are summed; norms are applied
    behind the sum. So decisions are those of float32.
    """
    tile = tl.program_id(2).to(tl.int64)
    batch = tile // tiles
    # Rows and columns beyond the last repeat it: a maximum does not mind, and nothing needs a mask.
    row = tl.minimum(tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), row_count - 1)
    token = tl.load(rows + tile * row_count + row)
    channel = tl.arange(0, BLOCK_CHANNELS)
    row_at = tokens + batch * batch_stride + token[:, None] * token_stride + channel[None, :]
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, column_count)
    best = tl.full((BLOCK_ROWS, CLASSES), -float("inf"), tl.float32)
    partner = tl.zeros((BLOCK_ROWS, CLASSES), tl.int32)
    step = tl.broadcast_to(
        tl.arange(0, BLOCK_COLUMNS // CLASSES)[None, :, None], (BLOCK_ROWS, BLOCK_COLUMNS // CLASSES, CLASSES)
    )
    for first in tl.range(start, end, BLOCK_COLUMNS, flatten=True):
        column = tl.minimum(first + tl.arange(0, BLOCK_COLUMNS), end - 1)
        column_at = columns + (tile * column_count + column[None, :]) * channels + channel[:, None]
        product = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for at in range(0, channels, BLOCK_CHANNELS):
            if EVEN:
                left = tl.load(row_at + at)
                right = tl.load(column_at + at)
            else:
                left = tl.load(row_at + at, mask=at + channel[None, :] < channels, other=0.0)
                right = tl.load(column_at + at, mask=at + channel[:, None] < channels, other=0.0)
            product = tl.dot(left, right, product)
        cosine = product * tl.load(column_norms + tile * column_count + column)[None, :]
        cosine = tl.reshape(cosine, (BLOCK_ROWS, BLOCK_COLUMNS // CLASSES, CLASSES))
        value, index = tl.reduce((cosine, step), 1, _first_of_largest)
        better = value > best
        partner = tl.where(better, first + index * CLASSES, partner)
        best = tl.where(better, value, best)
    partner = tl.minimum(partner + tl.arange(0, CLASSES)[None, :], end - 1)
    largest = tl.max(best, 1)
    lowest = tl.min(tl.where(best == largest[:, None], partner, 2147483647), 1)
    out = (tl.program_id(1) * tl.num_programs(2) + tile) * row_count + row
    tl.store(best_out + out, largest * tl.load(norms + batch * count + token))
    tl.store(partner_out + out, lowest)


@torch.library.triton_op("bigain::most_similar", mutates_args={})
def most_similar(tokens: Tensor, norms: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Find the column of largest cosine for every row, the lowest among equals.

    Args:
        tokens: float16 or bfloat16, `[B, N, C]`.
        norms: 1 / norm of each token, float32, `[B, N]`.
        rows: int64, `[B, T, P]`: tokens by their indices, in T tiles.
        columns: int64, `[B, T, Q]`: those that a tile's rows are compared with.

    Returns:
        The cosines, float32 `[B, T, P]`, and the columns by their places in `columns`, int32 `[B, T, P]`.
    """
    batch, count, channels = tokens.shape
    tiles, row_count, column_count = rows.shape[1], rows.shape[2], columns.shape[2]
    if tokens.stride(2) != 1:
        tokens = tokens.contiguous()
    chosen = columns.reshape(batch, -1)
    column_tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, channels))
    block_rows, block_columns, warps, stages = _blocks(batch * tiles, row_count, column_count, tokens.device)
    row_blocks, column_blocks = -(-row_count // block_rows), -(-column_count // block_columns)
    splits = _splits(row_blocks * batch * tiles, column_blocks, multiprocessors(tokens.device))
    span = -(-column_blocks // splits) * block_columns
    splits = -(-column_count // span)
    best = tokens.new_empty((splits, batch, tiles, row_count), dtype=torch.float32)
    partner = tokens.new_empty((splits, batch, tiles, row_count), dtype=torch.int32)
    with on_device_of(tokens):
        wrap_triton(_match)[(row_blocks, splits, batch * tiles)](
            tokens, norms, rows.contiguous(), column_tokens, norms.gather(1, chosen), best, partner,
            tokens.stride(1), tokens.stride(0), count, tiles, row_count, column_count, channels, span,
            BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns, BLOCK_CHANNELS=64, CLASSES=_CLASSES,
            EVEN=channels % 64 == 0, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    if splits == 1:
        return best[0], partner[0]
    largest, split = best.max(dim=0)
    return largest, partner.gather(0, split[None])[0]


def _blocks(programs: int, rows: int, columns: int, device: torch.device) -> tuple[int, int, int, int]:
    """Choose rows and columns of a block, warps and stages; measured on an H100 (docs/performance.md)."""
    if columns <= 64 or shared_memory(device) < 160_000:
        return 64, 64, 4, 3
    if columns <= 128:
        return 128, 128, 4, 3
    few = -(-rows // 128) * programs * -(-columns // 256) * 2 <= multiprocessors(device)
    return (64, 256, 4, 3) if few else (128, 256, 8, 3)


def _splits(programs: int, column_blocks: int, processors: int) -> int:
    """Cut the columns into so many spans that no processor idles long, each with programs of its own."""

    def cost(splits: int) -> float:
        turns = -(-programs * splits // processors)
        return turns * -(-column_blocks // splits) + 0.1 * splits

    return min(range(1, min(column_blocks, 8) + 1), key=cost)
