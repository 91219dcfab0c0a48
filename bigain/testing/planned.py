"""A plan, with the views that checks of reducers take of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.reducers.base import Reduction, TokenReducer
from bigain.testing.cases import Case
from bigain.testing.comparing import expect, markers, same

__all__ = ["Planned", "planned_for"]


@dataclass(frozen=True)
class Planned:
    """A reduction, and where it puts each token.

    Args:
        reduction: The plan.
        tokens: The tokens it was planned on.
        weights: The weights that restoring gives each place, float32 `[B, N, M]`.
        places: int64, `[B, N]`: the place of largest weight.
        length: M.
    """

    reduction: Reduction
    tokens: Tensor
    weights: Tensor
    places: Tensor
    length: int

    def group_sums(self, values: Tensor) -> Tensor:
        """Add up `[B, N, C]` over the tokens of each place, by their weights: `[B, M, C]`."""
        return self.weights.transpose(1, 2) @ values

    def filled(self) -> Tensor:
        """Say which places stand for a token, bool `[B, M, 1]`."""
        return self.group_sums(torch.ones_like(self.tokens[..., :1])) > 0

    def noise(self, length: int, channels: int, seed: int) -> Tensor:
        """Make noise `[B, length, channels]`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(self.tokens), length, channels, generator=generator).to(self.tokens.device)


def planned_for(reducer: TokenReducer, case: Case) -> Planned:
    """Plan for a case, and check that each token is restored from one place, or from several if the plan is soft.

    Raises:
        AssertionError: Restoring is not what the reduction says it is.
    """
    tokens = case.tokens()
    reduction = reducer.plan(tokens, case.grid, case.context())
    length, weights = reduction.sizes.shape[1], reduction.weights()
    if reduction.soft:
        expect(bool((weights >= 0).all()), "a token is restored from a place with a negative weight")
        same(weights.sum(dim=2), torch.ones_like(tokens[..., 0]), "the weights that a token is restored with, summed")
        return Planned(reduction, tokens, weights, weights.argmax(dim=2), length)
    marks = markers(reduction)
    wrong = ~((marks == marks.round()) & (marks >= 1) & (marks <= length))
    if wrong.any():
        row, token = wrong.nonzero()[0].tolist()
        given = f"{marks[row, token].item():g} to token {token} of row {row}"
        raise AssertionError(f"restoring the numbers 1 to {length} gives {given}, which is not one of them")
    return Planned(reduction, tokens, weights, marks.long() - 1, length)
