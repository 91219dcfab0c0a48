"""One door: whatever is no tokens, no grid or another plan's is refused in a sentence, by every reducer and scorer."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Reduction, TokenReducer

GRID = bigain.Grid((6, 6), prefix=1)
TOKENS = {
    "no rows": (torch.zeros(0, 37, 4), r"1 or more along each axis; got \[0, 37, 4\]"),
    "no tokens": (torch.zeros(2, 0, 4), r"1 or more along each axis; got \[2, 0, 4\]"),
    "no channels": (torch.zeros(2, 37, 0), r"1 or more along each axis; got \[2, 37, 0\]"),
    "numpy": (np.zeros((2, 37, 4), np.float32), r"torch tensor \[B, N, C\]; got ndarray"),
    "a list": ([[[0.0]]], "got list"),
    "complex": (torch.zeros(2, 37, 4, dtype=torch.complex64), r"floating-point.*got torch\.complex64"),
    "boolean": (torch.zeros(2, 37, 4, dtype=torch.bool), r"floating-point.*got torch\.bool"),
    "whole numbers": (torch.zeros(2, 37, 4, dtype=torch.int64), r"floating-point.*got torch\.int64"),
    "two axes": (torch.zeros(37, 4), r"shape \[B, N, C\]; got \[37, 4\]"),
}


@dataclass(frozen=True)
class Everything(Reduction):
    """A plan that leaves all checking to its base."""

    sizes: torch.Tensor

    def reduce(self, tokens):
        return tokens

    def restore(self, reduced):
        return reduced


class Borrowed:
    """A mixin with a plan of its own."""

    def plan(self, tokens, grid, context=None):
        return Everything(torch.ones(len(tokens), grid.tokens))


class Mine(Borrowed, TokenReducer):
    """As a plugin's author may write it, without a check."""

    def reduced_length(self, grid, context=None):
        return grid.tokens


REDUCERS = {
    f"{name}-{number}": example
    for name in bigain.available("reducers")
    for number, example in enumerate(bigain.registry.get("reducers", name).examples())
} | {"mine": Mine()}
SCORERS = {name: bigain.build_scorer(name) for name in bigain.available("scorers")}
every_reducer = pytest.mark.parametrize("reducer", REDUCERS.values(), ids=REDUCERS)
every_wrong = pytest.mark.parametrize(("tokens", "said"), TOKENS.values(), ids=TOKENS)


@every_reducer
@every_wrong
def test_no_reducer_plans_for_what_is_no_tokens(reducer, tokens, said):
    with pytest.raises(SettingError, match=said):
        reducer.plan(tokens, GRID)


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
@every_wrong
def test_no_scorer_scores_what_is_no_tokens(scorer, tokens, said):
    with pytest.raises(SettingError, match=said):
        scorer(tokens, GRID)


@every_reducer
@pytest.mark.parametrize("grid", [(6, 6), [6, 6], None, 36], ids=str)
def test_a_shape_is_no_grid(reducer, grid):
    for call in (lambda: reducer.plan(torch.zeros(2, 36, 4), grid), lambda: reducer.reduced_length(grid)):
        with pytest.raises(SettingError, match=r"grid is a bigain\.Grid, such as .*; got"):
            call()


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_a_shape_is_no_grid_for_a_scorer(scorer):
    with pytest.raises(SettingError, match=r"got \(6, 6\)"):
        scorer(torch.zeros(2, 36, 4), (6, 6))


@every_reducer
def test_a_context_is_a_context(reducer):
    with pytest.raises(SettingError, match=r"context is a bigain\.Context or left out; got int"):
        reducer.plan(torch.zeros(2, 37, 4), GRID, 500)


@every_reducer
def test_a_plan_takes_its_own_rows_and_tokens_alone(reducer, noise):
    context = bigain.Context(timestep=torch.tensor([700, 100]))
    plan = reducer.plan(noise(2, 37, 4), GRID, context)
    short = plan.reduce(noise(2, 37, 4))
    for call, tokens in ((plan.reduce, noise(2, 37, 4)), (plan.restore, short)):
        for wrong in (tokens[:1], tokens[:0], tokens.to(torch.complex64), tokens.bool(), tokens.numpy(), tokens[0]):
            with pytest.raises(SettingError, match=r"[Tt]okens"):
                call(wrong)
    with pytest.raises(SettingError, match=rf"\[2, {short.shape[1]}, C\]"):
        plan.restore(torch.cat([short, short[:, :1]], dim=1))


def test_the_check_compiles_to_the_same_graph(noise):
    """Nothing of it is left in the graph, and nothing breaks it."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def both(tokens):
        plan = Mine().plan(tokens, GRID)
        return plan.restore(plan.reduce(tokens) * 2)

    tokens = noise(2, 37, 4)
    assert torch.equal(torch.compile(both, fullgraph=True, dynamic=False, backend=backend)(tokens), 2 * tokens)
    calls = [node.target for node in graphs[0].graph.nodes if node.op.startswith("call")]
    assert len(calls) <= 2, calls
