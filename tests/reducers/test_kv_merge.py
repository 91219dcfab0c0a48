"""KVMerge: the reduction of another reducer, for keys and values alone."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, Identity
from bigain.reducers.kv_merge import KVMerge
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo

GRID = bigain.Grid((6, 6), prefix=1, suffix=2)
INNER = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "tome", "ratio": 0.3, "mode": "mlerp"},
    {"name": "abm", "ratio": 0.4},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.3}},
    {"name": "identity"},
]
every_inner = pytest.mark.parametrize("spec", INNER, ids=lambda spec: spec["name"])


@every_inner
def test_only_the_kind_differs_from_the_inner_reduction(noise, spec):
    tokens, inner = noise(3, 39, 8), bigain.build_reducer(spec)
    reducer = bigain.build_reducer("kv_merge", reducer=inner)
    context = lambda: Context(torch.tensor([5, 400, 900]), layer=2, seed=1)  # noqa: E731
    ours, expected = reducer.plan(tokens, GRID, context()), inner.plan(tokens, GRID, context())
    assert (ours.kind, expected.kind) == ("kv", "merge")
    assert reducer.kinds == {"kv"}
    assert torch.equal(ours.reduce(tokens), expected.reduce(tokens))
    assert torch.equal(ours.restore(ours.reduce(tokens)), expected.restore(expected.reduce(tokens)))
    assert torch.equal(ours.sizes, expected.sizes)
    assert ours.sizes.shape[1] == reducer.reduced_length(GRID, context()) == inner.reduced_length(GRID, context())
    assert reducer.averages == inner.averages


@every_inner
def test_a_plan_repeats_for_several_rows(noise, spec):
    tokens, reducer = noise(2, 39, 8), KVMerge(spec)
    twice = tokens.repeat_interleave(2, dim=0)
    reduction, expected = reducer.plan(tokens, GRID).repeat(2), reducer.plan(twice, GRID)
    assert reduction.kind == "kv"
    assert torch.equal(reduction.sizes, expected.sizes)
    assert torch.equal(reduction.reduce(twice), expected.reduce(twice))
    assert torch.equal(reduction.restore(reduction.reduce(twice)), expected.restore(expected.reduce(twice)))


@pytest.mark.parametrize("inner", [ToDo(2), KVMerge(LGTM(0.5)), Scheduled([Rule(ToDo(2), layers=[0])], LGTM(0.5))])
def test_reducers_of_keys_and_values_are_refused(inner):
    with pytest.raises(SettingError, match=r"^KVMerge wraps a merging reducer; .* shrinks keys and values already\.$"):
        KVMerge(inner)


def test_settings_are_shown_and_examples_are_of_the_class():
    assert repr(KVMerge({"name": "lgtm", "ratio": 0.5})) == f"KVMerge(reducer={LGTM(0.5)!r})"
    assert all(isinstance(example, KVMerge) for example in KVMerge.examples())


WARM_UP = Scheduled([Rule(Identity(), timesteps=(500, 1000))], LGTM(0.5))


def test_places_that_stand_for_no_token_are_left_out(noise):
    """A row that merges more than its neighbour is filled up; attention has to be told."""
    context = Context(torch.tensor([20, 700]))
    reduction = KVMerge(WARM_UP).plan(noise(2, 39, 8), GRID, context)
    assert (reduction.sizes == 0).sum(dim=1).tolist() == [18, 0]
    assert reduction.padded


def test_a_schedule_inside_settles_with_the_timestep():
    reducer = KVMerge(WARM_UP)
    assert [reducer.at(t).reduced_length(GRID) for t in (700, 20)] == [39, 21]
    assert reducer.at(20).kinds == {"kv"}
