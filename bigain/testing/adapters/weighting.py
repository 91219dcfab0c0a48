"""Reducers of keys and values, padding, and keys weighted by the tokens they stand for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bigain.errors import BigainError, SiteError
from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, Reduction, TokenReducer
from bigain.reducers.wrapping import Wrapping
from bigain.testing.adapters.bench import Bench, distance
from bigain.testing.adapters.reductions import merging
from bigain.testing.comparing import expect
from bigain.testing.failures import NotApplicable

__all__ = ["check_padding_is_left_out", "check_queries_stay_whole", "check_sizes_weight_keys"]

_PADDING, _LOUD = 3, 50.0
"""How many places that stand for no token are added, and their value."""


def check_queries_stay_whole(bench: Bench) -> None:
    """Where only keys and values shrink, every query stays: restoring an output would mean that queries were lost."""
    if "self" not in bench.parts:
        raise NotApplicable("the model has no self-attention")
    inputs = bench.inputs(2)
    with bench.attach(_Keys(doubled=False, restorable=False)):
        bench.run(inputs)


def check_padding_is_left_out(bench: Bench) -> None:
    """Rows of one batch may have different numbers of tokens: padding of the shorter must not be attended to."""
    if "self" not in bench.parts:
        raise NotApplicable("the model has no self-attention")
    inputs, reducer = bench.inputs(2), merging(bench)
    with bench.attach(reducer):
        expected = bench.run(inputs)
    try:
        with bench.attach(_Padding(reducer)):
            found = bench.run(inputs)
    except BigainError as error:
        raise NotApplicable(f"refused in words: {error}") from error
    bench.same(found, expected, "with places of size 0 behind the merged tokens, against without")


def check_sizes_weight_keys(bench: Bench) -> None:
    """A key that stands for two tokens has to draw as much attention as two equal keys."""
    if "self" not in bench.parts:
        raise NotApplicable("the model has no self-attention")
    inputs = bench.inputs(2)
    try:
        with bench.attach(_Keys(doubled=True), proportional=True):
            twice = bench.run(inputs)
        with bench.attach(_Keys(doubled=False), proportional=True):
            weighted = bench.run(inputs)
    except SiteError as error:
        raise NotApplicable(f"refused in words: {error}") from error
    bench.same(weighted, twice, "a key of size 2 against the same key twice")
    with bench.attach(_Keys(doubled=False)):
        plain = bench.run(inputs)
    off = max(distance(one, other) for one, other in zip(weighted, plain, strict=True))
    expect(off > 1e-7, "proportional attention takes no notice of sizes")


@dataclass(frozen=True)
class _Chosen(Reduction):
    """Some of the tokens, as keys and values.

    Args:
        index: int64, `[B, M]`: the chosen tokens.
        sizes: How many tokens each stands for, `[B, M]`.
        restorable: Whether restoring is allowed.
    """

    index: Tensor
    sizes: Tensor
    restorable: bool = True

    kind: ClassVar[Kind] = "kv"  # type: ignore[misc]

    def reduce(self, tokens: Tensor) -> Tensor:
        return tokens.gather(1, self.index[..., None].expand(-1, -1, tokens.shape[2]))

    def restore(self, reduced: Tensor) -> Tensor:
        expect(self.restorable, "the output of attention was restored, though only keys and values were reduced")
        return reduced[:, :1].expand(-1, self.index.shape[1], -1)


class _Keys(TokenReducer):
    """Leaves the grid's first token out of keys and values, and lets its second stand for both.

    Args:
        doubled: Whether the second appears twice, rather than with the size 2.
        restorable: Whether restoring is allowed.
    """

    kind: ClassVar[Kind] = "kv"

    def __init__(self, doubled: bool, restorable: bool = True) -> None:
        self.doubled, self.restorable = doubled, restorable

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        first = grid.prefix
        every = torch.arange(grid.tokens, device=tokens.device)
        sizes = torch.ones(grid.tokens, device=tokens.device)
        if self.doubled:
            index = torch.cat([every[:first], every[first + 1 : first + 2], every[first + 1 :]])
        else:
            index = torch.cat([every[:first], every[first + 1 :]])
            sizes = torch.cat([sizes[:first], 2 * sizes[:1], sizes[first + 2 :]])
        rows = tokens.shape[0]
        return _Chosen(index.expand(rows, -1), sizes.expand(rows, -1), self.restorable)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens - (not self.doubled)


@dataclass(frozen=True)
class _Padded(Reduction):
    """A merge, and behind it places that stand for no token, with values that would be noticed.

    Args:
        inner: The merge.
        sizes: Its sizes, then zeros.
    """

    inner: Reduction
    sizes: Tensor
    padded: bool = True

    def reduce(self, tokens: Tensor) -> Tensor:
        short = self.inner.reduce(tokens)
        return torch.cat([short, short.new_full((len(short), _PADDING, short.shape[2]), _LOUD)], dim=1)

    def restore(self, reduced: Tensor) -> Tensor:
        return self.inner.restore(reduced[:, : reduced.shape[1] - _PADDING])

    def place_positions(self, values: Tensor) -> Tensor:
        short = self.inner.place_positions(values)
        return torch.cat([short, short[:, :1].expand(-1, _PADDING, -1)], dim=1)


class _Padding(Wrapping):
    """Adds places that stand for no token to a merge.

    Args:
        reducer: The merging reducer.
    """

    kind: ClassVar[Kind] = "merge"

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        inner = self.reducer.plan(tokens, grid, context)
        return _Padded(inner, torch.cat([inner.sizes, inner.sizes.new_zeros(len(tokens), _PADDING)], dim=1))

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return self.reducer.reduced_length(grid, context) + _PADDING
