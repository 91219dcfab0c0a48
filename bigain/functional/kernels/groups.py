"""Means of groups without atomics: every group is summed by one program, in the tokens' order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigain.functional.kernels import on_device_of, wrap_triton

__all__ = ["group_mean"]


@triton.jit
def _mean(
    tokens,
    weights,
    order,
    ends,
    sizes,
    out,
    token_stride,
    batch_stride,
    count,
    groups,
    channels,
    WEIGHTED: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    row = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(sizes + row * groups + group)
    end = tl.load(ends + row * groups + group).to(tl.int32)
    wide = tl.float64 if tokens.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK,), wide)
    weight = tl.zeros((), wide)
    for first in range(end - size.to(tl.int32), end, TOGETHER):
        member = first + tl.arange(0, TOGETHER)
        token = tl.load(order + row * count + member, mask=member < end, other=0)
        there = (member < end)[:, None] & (channel < channels)[None, :]
        at = tokens + row * batch_stride + token[:, None] * token_stride + channel[None, :]
        values = tl.load(at, mask=there, other=0.0).to(wide)
        if WEIGHTED:
            share = tl.load(weights + row * count + token, mask=member < end, other=0.0).to(wide)
            weight += tl.sum(share, 0)
            values *= share[:, None]
        total += tl.sum(values, 0)
    divisor = weight if WEIGHTED else size.to(wide)
    at = out + (row * groups + group) * channels + channel
    tl.store(at, (total / divisor).to(out.dtype.element_ty), mask=channel < channels)


@torch.library.triton_op("bigain::group_mean", mutates_args={})
def group_mean(tokens: Tensor, place: Tensor, order: Tensor, sizes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the tokens of each group, in float32 or, for float64, in that.

    Args:
        tokens: `[B, N, C]`.
        place: int64, `[B, N]`: each token's group.
        order: int64, `[B, N]`: the tokens sorted by group, those of one group as they lie.
        sizes: Tokens of each group, float32 `[B, M]`, none of them 0.
        weights: How often each token counts, float32 `[B, N]`; `None` for once.

    Returns:
        `[B, M, C]`, in the type of `tokens`.
    """
    (batch, count, channels), groups = tokens.shape, sizes.shape[1]
    if tokens.stride(2) != 1:
        tokens = tokens.contiguous()
    out = tokens.new_empty((batch, groups, channels))
    block = min(1024, triton.next_power_of_2(channels))
    with on_device_of(tokens):
        wrap_triton(_mean)[(groups, -(-channels // block), batch)](
            tokens, sizes if weights is None else weights.contiguous(), order.contiguous(), sizes.cumsum(dim=1),
            sizes.contiguous(), out, tokens.stride(1), tokens.stride(0), count, groups, channels,
            WEIGHTED=weights is not None, TOGETHER=2, BLOCK=block, num_warps=2,
        )  # fmt: skip
    return out


def _remember(ctx, inputs, output) -> None:
    _, place, _, sizes, weights = inputs
    if weights is not None:
        sizes = weights.new_zeros(sizes.shape).scatter_add(1, place, weights)
    ctx.save_for_backward(place, sizes, *([weights] if weights is not None else []))


def _backward(ctx, gradient: Tensor):
    place, sizes, *weights = ctx.saved_tensors
    share = (gradient / sizes[..., None]).gather(1, place[..., None].expand(-1, -1, gradient.shape[2]))
    if weights:
        share = share * weights[0][..., None]
    return share.to(gradient.dtype), None, None, None, None


group_mean.register_autograd(_backward, setup_context=_remember)
