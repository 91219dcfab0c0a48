"""Tables that depend on shapes alone: made once a pass, and never kept beyond it."""

import pytest
import torch

import bigain
from bigain.functional.cells import cell_tokens
from bigain.reducers.abm import ABM
from bigain.reducers.base import Context
from bigain.reducers.once import once_a_pass
from bigain.reducers.todo import ToDo

GRID = bigain.Grid((6, 6), prefix=1)


@pytest.fixture
def made():
    """What is made, in order; `make` makes it."""
    return []


@pytest.fixture
def make(made):
    def table(length, device):
        made.append((length, device))
        return torch.arange(length, device=device)

    return table


def test_all_blocks_of_a_pass_share_what_is_made_for_the_same_shapes(made, make):
    cpu, meta, context = torch.device("cpu"), torch.device("meta"), Context()
    later = Context(layer=3, cache=context.cache)
    assert once_a_pass(context, make, 4, cpu) is once_a_pass(later, make, 4, cpu)
    assert once_a_pass(context, make, 4, meta).is_meta
    assert len(once_a_pass(later, make, 5, cpu)) == 5
    assert made == [(4, cpu), (4, meta), (5, cpu)]


def test_nothing_outlives_a_pass(made, make):
    for context in (Context(), Context(), None, None):
        once_a_pass(context, make, 4, torch.device("cpu"))
    assert len(made) == 4


def test_nothing_is_kept_in_compiled_code_or_a_captured_graph(made, make, monkeypatch):
    context = Context()
    for module, name in ((torch.compiler, "is_compiling"), (torch.cuda, "is_current_stream_capturing")):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            patch.setattr(module, name, lambda: True)
            once_a_pass(context, make, 4, torch.device("cpu"))
    assert len(made) == 2
    assert not context.cache


@pytest.mark.parametrize("reducer", [ABM(0.4), ABM(0.3, cell=3), ToDo(4)], ids=repr)
def test_a_second_block_plans_as_it_would_alone(reducer, noise):
    context = Context()
    for seed in range(3):
        tokens = noise(2 + seed, 37, 8, seed=seed)
        found, alone = reducer.plan(tokens, GRID, context), reducer.plan(tokens, GRID)
        assert torch.equal(found.reduce(tokens), alone.reduce(tokens))
        assert torch.equal(found.places(), alone.places())
        assert torch.equal(found.sizes, alone.sizes)
    assert len(context.cache) == 1


def test_a_pass_in_inference_mode_leaves_nothing_that_autograd_could_meet(noise):
    reducer, tokens = ABM(0.4), noise(2, 37, 8).requires_grad_()
    with torch.inference_mode():
        reducer.plan(tokens, GRID, Context())
    reducer.plan(tokens, GRID, Context()).reduce(tokens).sum().backward()
    assert tokens.grad.isfinite().all()


def test_tables_are_those_of_the_functions():
    context, device = Context(), torch.device("cpu")
    for one, other in zip(
        once_a_pass(context, cell_tokens, (5, 4), (2, 2), device), cell_tokens((5, 4), (2, 2), device), strict=True
    ):
        assert torch.equal(one, other)
