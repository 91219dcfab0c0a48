"""A norm of the Laplacian over the channels: the tokens are read once, and no field is written."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigain.functional.kernels import on_device_of, wrap_triton

__all__ = ["MOST_AXES", "laplacian_norm"]

MOST_AXES = 3


@triton.jit
def _neighbour(at, offset, there, value, REPLICATE: tl.constexpr):
    found = tl.load(at + offset, mask=there, other=0.0).to(tl.float32)
    if REPLICATE:
        found = tl.where(there, found, value)
    return found


@triton.jit
def _norm(
    tokens,
    out,
    token_stride,
    batch_stride,
    count,
    channels,
    depth,
    height,
    width,
    AXES: tl.constexpr,
    SQUARED: tl.constexpr,
    REPLICATE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    here = token < count
    x, y, z = token % width, (token // width) % height, token // (width * height)
    base = tokens + row * batch_stride + token.to(tl.int64) * token_stride
    total = tl.zeros((BLOCK_TOKENS,), tl.float32)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        there = here[:, None] & (channel < channels)[None, :]
        at = base[:, None] + channel[None, :]
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        around = _neighbour(at, -token_stride, there & (x > 0)[:, None], value, REPLICATE)
        around += _neighbour(at, token_stride, there & (x < width - 1)[:, None], value, REPLICATE)
        if AXES > 1:
            line = width * token_stride
            around += _neighbour(at, -line, there & (y > 0)[:, None], value, REPLICATE)
            around += _neighbour(at, line, there & (y < height - 1)[:, None], value, REPLICATE)
        if AXES > 2:
            sheet = width * height * token_stride
            around += _neighbour(at, -sheet, there & (z > 0)[:, None], value, REPLICATE)
            around += _neighbour(at, sheet, there & (z < depth - 1)[:, None], value, REPLICATE)
        filtered = around - 2 * AXES * value
        total += tl.sum(filtered * filtered if SQUARED else tl.abs(filtered), 1)
    tl.store(out + row * count + token, tl.sqrt(total) if SQUARED else total, mask=here)


@torch.library.triton_op("bigain::laplacian_norm", mutates_args={})
def laplacian_norm(tokens: Tensor, shape: list[int], replicate: bool, squared: bool) -> Tensor:
    """Do what `functional.filters.laplacian_norm` does, on grids of at most `MOST_AXES` axes."""
    batch, count, channels = tokens.shape
    if tokens.stride(2) != 1:
        tokens = tokens.contiguous()
    out = tokens.new_empty((batch, count), dtype=torch.float32)
    depth, height, width = [1] * (MOST_AXES - len(shape)) + list(shape)
    # Wide tokens: fewer of them a block, so that there are blocks enough.
    block_tokens, block = (8, 128) if channels > 1024 else (16, 64)
    with on_device_of(tokens):
        wrap_triton(_norm)[(-(-count // block_tokens), batch)](
            tokens, out, tokens.stride(1), tokens.stride(0), count, channels, depth, height, width, AXES=len(shape),
            SQUARED=squared, REPLICATE=replicate, BLOCK_TOKENS=block_tokens, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out
