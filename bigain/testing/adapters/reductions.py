"""Reducers that checks attach: plain ones that fit a grid's axes, and some that record or shuffle."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, Reduction, TokenReducer
from bigain.reducers.cached import Cached
from bigain.reducers.lgtm import LGTM
from bigain.reducers.pooling import Pooling
from bigain.reducers.tome import ToMe
from bigain.reducers.wrapping import Wrapping
from bigain.testing.adapters.bench import Bench

__all__ = ["Recording", "Shuffle", "ShuffleKeys", "cell_for", "merging", "sharing", "working"]


def cell_for(axes: int) -> tuple[int, ...]:
    """Return a cell of two tokens along the last two axes and one along others, so that video frames stay apart."""
    return (2,) if axes == 1 else (*(1,) * (axes - 2), 2, 2)


def merging(bench: Bench) -> TokenReducer:
    """Return a deterministic merge of half of the tokens."""
    return ToMe(0.5, randomize=False, cell=cell_for(bench.axes))


def working(bench: Bench) -> dict[str, TokenReducer]:
    """Return a merge, and a reducer of keys and values where there is self-attention."""
    shrinking = {"kv": Pooling(cell_for(bench.axes))} if "self" in bench.parts else {}
    return {"merge": merging(bench), **shrinking}


def sharing(bench: Bench) -> TokenReducer:
    """Return a merge whose plan blocks share."""
    return Cached(LGTM(0.4, cell=cell_for(bench.axes)))


@dataclass(frozen=True)
class Shuffled(Reduction):
    """Tokens in another order.

    Args:
        order: int64, `[B, N]`: the token at each place.
        sizes: Ones, `[B, N]`.
        kind: What is shuffled.
    """

    order: Tensor
    sizes: Tensor
    kind: Kind = "merge"

    def reduce(self, tokens: Tensor) -> Tensor:
        return tokens.gather(1, self.order[..., None].expand_as(tokens))

    def restore(self, reduced: Tensor) -> Tensor:
        return reduced.gather(1, self.order.argsort(dim=1)[..., None].expand_as(reduced))


class Shuffle(TokenReducer):
    """Reduces nothing: shuffles the grid's tokens, each row in its own order, and restores them.

    Attention ignores the order of its tokens, so a model's output stays the same if tokens
    are restored to where they were and positions follow them.
    """

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        grid.check(tokens)
        generator = torch.Generator().manual_seed(0)
        draws = torch.rand(tokens.shape[0], grid.size, generator=generator).argsort(dim=1).to(tokens.device)
        fixed = torch.arange(grid.tokens, device=tokens.device).expand(tokens.shape[0], -1)
        body = slice(grid.prefix, grid.prefix + grid.size)
        order = torch.cat([fixed[:, : body.start], draws + grid.prefix, fixed[:, body.stop :]], dim=1)
        return Shuffled(order, torch.ones(order.shape, dtype=torch.float32, device=tokens.device), self.kind)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens


class ShuffleKeys(Shuffle):
    """Shuffles keys and values alone."""

    kind: ClassVar[Kind] = "kv"


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `plan`.

    Args:
        tokens: `[B, N, C]`.
        grid: How they lie.
        context: Where and when.
    """

    tokens: Tensor
    grid: Grid
    context: Context = field(repr=False)


class Recording(Wrapping):
    """Records the arguments of another reducer's plans.

    Args:
        reducer: The other reducer.
    """

    kind: ClassVar[Kind] = "merge"

    def __init__(self, reducer: TokenReducer) -> None:
        super().__init__(reducer)
        self.calls: list[Call] = []

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        self.calls.append(Call(tokens.detach().clone(), grid, context or Context()))
        return self.reducer.plan(tokens, grid, context)
