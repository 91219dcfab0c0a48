"""One self-attention by itself: norm, projections, attention, projection, residual; a reducer around the attention."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigain.benchmark.floors import Sliced, first_merging, removed_share
from bigain.benchmark.peers import Merging, tomesd_matching
from bigain.benchmark.timed_cases import Case, Kind, Pass
from bigain.benchmark.written_out import written_out_attention
from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.profiling.operations import META, count_pass, on_meta
from bigain.reducers.base import Reduction, TokenReducer

__all__ = ["SelfAttention", "attention_cases", "made_up_tokens"]


class SelfAttention(nn.Module):
    """A block's self-attention, with three separate projections without bias, as in most networks.

    Args:
        channels: C.
        heads: Attention heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def attend(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attend from normed tokens `[B, M, C]` to `[B, K, C]`."""
        query, key, value = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, queries), (self.to_k, keys), (self.to_v, keys))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast("Tensor", self.to_out(mixed.transpose(1, 2).flatten(2)))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        return tokens + self.attend(normed, normed)

    def reduced(self, tokens: Tensor, reducer: TokenReducer, grid: Grid) -> Tensor:
        """Run on reduced tokens, as in U-Nets: planned from the block's input, reduced behind the norm."""
        plan = reducer.plan(tokens, grid)
        normed = self.norm(tokens)
        short = plan.reduce(normed)
        if plan.kind == "kv":
            return tokens + self.attend(normed, short)
        return tokens + plan.restore(self.attend(short, short))

    def merged(self, tokens: Tensor, matching: Callable[[Tensor], Merging]) -> Tensor:
        """Run on tokens that another package merges."""
        merge, unmerge = matching(tokens)
        short = merge(self.norm(tokens))
        return tokens + unmerge(self.attend(short, short))

    def without(self, tokens: Tensor) -> Tensor:
        """Run without attention and projections: the norm's output is added to the input."""
        return tokens + cast("Tensor", self.norm(tokens))


def made_up_tokens(rows: int, grid: Grid, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make tokens `[B, N, C]` that vary slowly over the grid, with noise, so that neighbours are similar."""
    coarse = [max(1, length // 8) for length in grid.shape]
    field = torch.randn(rows, channels, *coarse, device=device)
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    smooth = F.interpolate(field, size=grid.shape, mode=modes[grid.axes]).flatten(2).transpose(1, 2)
    noise = torch.randn(rows, grid.size, channels, device=device)
    return (smooth + 0.3 * noise).to(dtype).contiguous()


def attention_cases(
    block: SelfAttention,
    tokens: Tensor,
    grid: Grid,
    baseline: str,
    reducers: dict[str, TokenReducer],
    beside: Sequence[str],
) -> list[Case]:
    """List the cases to time of one self-attention.

    Args:
        block: The block, on its device.
        tokens: Its input, `[B, N, C]`.
        grid: How they lie.
        baseline: Name of no reduction.
        reducers: The methods.
        beside: What is timed beside them: `floors`, `peers`, `written_out`.
    """
    made = partial(_case, block, tokens)
    cases = [made(baseline, "none", lambda b, x: b(x))]
    cases += [made(name, "method", partial(_reduced, one, grid), repr(one)) for name, one in reducers.items()]
    merging = first_merging(reducers)
    if "floors" in beside and merging is not None:
        share = removed_share(merging[1], grid)
        sliced = Sliced(merging[1])
        cases.append(made(f"floor: sliced {share:.0%}", "floor", partial(_reduced, sliced, grid), repr(sliced)))
    if "floors" in beside:
        cases.append(made("floor: no self-attention", "floor", lambda b, x: b.without(x)))
    matching = None if merging is None else tomesd_matching(grid, removed_share(merging[1], grid))
    if "peers" in beside and matching is not None:
        case = made("peer: tomesd", "peer", lambda b, x: b.merged(x, matching), "fixed destinations")
        cases += [case, *_tomesd_parts(tokens, matching)]
    if "written_out" in beside:
        cases += _written_out(made, grid, merging)
    for name, reducer in reducers.items():
        cases += _parts(name, reducer, tokens, grid)
    return cases


def _reduced(reducer: TokenReducer, grid: Grid, block: SelfAttention, tokens: Tensor) -> Tensor:
    return block.reduced(tokens, reducer, grid)


def _written_out(made: Callable[..., Case], grid: Grid, merging: tuple[str, TokenReducer] | None) -> list[Case]:
    around = {"around": written_out_attention}
    cases = [made("baseline: written-out attention", "baseline", lambda b, x: b(x), **around)]
    if merging is not None:
        name, reducer = merging
        title = f"baseline: {name}, written out"
        cases.append(made(title, "baseline", partial(_reduced, reducer, grid), repr(reducer), **around))
    return cases


def _case(
    block: SelfAttention,
    tokens: Tensor,
    name: str,
    kind: Kind,
    evaluate: Callable[[SelfAttention, Tensor], Any],
    settings: str = "",
    **others: Any,
) -> Case:
    @contextmanager
    def build() -> Iterator[Pass]:
        yield Pass.whole(lambda: evaluate(block, tokens), breaks=kind == "peer")

    shadow, shape = on_meta(block), tokens.shape[1:]

    def on_shapes(rows: int) -> Any:
        return evaluate(shadow, torch.empty(rows, *shape, device=META, dtype=tokens.dtype))

    counter = count_pass(on_shapes, 1, f"{name} cannot be counted without values")
    return Case(name, kind, build, settings, float(counter.get_total_flops()), **others)


def _parts(name: str, reducer: TokenReducer, tokens: Tensor, grid: Grid) -> list[Case]:
    """List plan, reduce and restore, each by itself; the inputs of reduce and restore are computed beforehand."""
    with torch.inference_mode():
        plan = reducer.plan(tokens, grid)
        short = plan.reduce(tokens)
    if plan.padded:
        raise SettingError(f"{name} pads its tokens, which a self-attention by itself does not mask: {reducer!r}.")
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("plan", lambda: tensors_of(reducer.plan(tokens, grid))),
        ("reduce", lambda: plan.reduce(tokens)),
    ]
    if plan.kind == "merge":
        steps.append(("restore", lambda: plan.restore(short)))
    return [_part(f"{name}: {step}", run) for step, run in steps]


def _tomesd_parts(tokens: Tensor, matching: Callable[[Tensor], Merging]) -> list[Case]:
    with torch.inference_mode():
        merge, unmerge = matching(tokens)
        short = merge(tokens)

    def all_three() -> Tensor:
        merge, unmerge = matching(tokens)
        return unmerge(merge(tokens))

    steps = (("merge", lambda: merge(tokens)), ("unmerge", lambda: unmerge(short)), ("plan, merge, unmerge", all_three))
    return [_part(f"tomesd: {step}", run, breaks=True) for step, run in steps]


def _part(name: str, run: Callable[[], Any], breaks: bool = False) -> Case:
    @contextmanager
    def build() -> Iterator[Pass]:
        yield Pass.whole(run, breaks)

    return Case(name, "part", build)


def tensors_of(plan: Reduction) -> list[Tensor]:
    """List the tensors of a plan, so that a compiler cannot drop any as unused."""
    found: list[Tensor] = []
    for item in fields(cast("Any", plan)):
        value = getattr(plan, item.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Reduction):
            found += tensors_of(value)
    return found
