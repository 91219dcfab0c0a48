"""What every reducer keeps to, and the reducer that does nothing."""

import dataclasses
import inspect
import pickle

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, Identity

REDUCERS = [
    {"name": "identity"},
    {"name": "tome", "ratio": 0.5},
    {"name": "tome", "ratio": 0.3, "randomize": False, "mode": "mlerp"},
    {"name": "lgtm", "ratio": 0.5},
    {"name": "lgtm", "ratio": 0.7, "cell": 3, "scorer": {"name": "laplacian_l1", "padding": "replicate"}},
]
every_reducer = pytest.mark.parametrize("spec", REDUCERS, ids=str)
GRID = bigain.Grid((6, 6), prefix=1, suffix=2)


def outcome(reducer, tokens, context=None):
    reduction = reducer.plan(tokens, GRID, context)
    return reduction.restore(reduction.reduce(tokens))


@every_reducer
def test_a_pickled_reducer_does_the_same(noise, spec):
    reducer, tokens = bigain.build_reducer(spec), noise(2, 39, 8)
    copy = pickle.loads(pickle.dumps(reducer))
    assert repr(copy).partition("scorer")[0] == repr(reducer).partition("scorer")[0]
    assert torch.equal(outcome(copy, tokens), outcome(reducer, tokens))


@every_reducer
def test_nothing_is_kept_between_calls(noise, spec):
    reducer = bigain.build_reducer(spec)
    before = pickle.dumps(vars(reducer))
    first = outcome(reducer, noise(2, 39, 8), Context(timestep=torch.tensor([5, 9]), layer=3))
    outcome(reducer, noise(3, 39, 4, seed=1), Context(timestep=torch.tensor(700), layer=1))
    assert pickle.dumps(vars(reducer)) == before
    again = outcome(reducer, noise(2, 39, 8), Context(timestep=torch.tensor([5, 9]), layer=3))
    assert torch.equal(first, again)


@every_reducer
def test_the_input_is_not_written_to(noise, spec):
    tokens = noise(2, 39, 8)
    outcome(bigain.build_reducer(spec), tokens)
    assert torch.equal(tokens, noise(2, 39, 8))


@every_reducer
def test_shapes_sizes_and_length_agree(noise, spec):
    reducer, tokens = bigain.build_reducer(spec), noise(2, 39, 8)
    reduction = reducer.plan(tokens, GRID)
    length = reducer.reduced_length(GRID)
    assert reduction.reduce(tokens).shape == (2, length, 8)
    assert reduction.restore(reduction.reduce(tokens)).shape == tokens.shape
    assert reduction.sizes.shape == (2, length)
    assert reduction.sizes.sum(dim=1).tolist() == [39, 39]
    assert reduction.kind == "merge"


@every_reducer
def test_a_reduction_takes_any_number_of_channels(noise, spec):
    """The plan is made from the block's input and applied to whatever has its tokens."""
    reduction = bigain.build_reducer(spec).plan(noise(2, 39, 8), GRID)
    assert reduction.restore(reduction.reduce(noise(2, 39, 3))).shape == (2, 39, 3)


@every_reducer
def test_a_reduction_is_frozen(noise, spec):
    reduction = bigain.build_reducer(spec).plan(noise(2, 39, 8), GRID)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reduction.sizes = None


@every_reducer
def test_tokens_off_the_grid_are_refused(spec):
    with pytest.raises(SettingError, match="Got 36 tokens for a grid of 39"):
        bigain.build_reducer(spec).plan(torch.zeros(1, 36, 4), GRID)


@every_reducer
def test_repr_tells_the_settings(spec):
    text = repr(bigain.build_reducer(spec))
    for key in set(spec) - {"name", "scorer", "cell"}:
        assert f"{key}={spec[key]!r}" in text


def test_identity_changes_nothing(noise):
    tokens = noise(2, 39, 8)
    reduction = Identity().plan(tokens, GRID)
    assert reduction.reduce(tokens) is tokens
    assert reduction.restore(tokens) is tokens
    assert torch.equal(reduction.sizes, torch.ones(2, 39))


GIVEN = inspect.Parameter.empty
LAPLACIAN = {"scorer": "laplacian_l1"}
SIGNATURES = {
    "tome": {"ratio": GIVEN, "randomize": True, "cell": (2, 2), "mode": "mean"},
    "lgtm": {"ratio": GIVEN, **LAPLACIAN, "cell": (2, 2), "mode": "mean"},
    "lgtm_released": {"ratio": GIVEN, **LAPLACIAN, "cell": (2, 2), "mode": "mean"},
    "abm": {"ratio": GIVEN, **LAPLACIAN, "aggregation": "sum", "cell": (2, 2)},
    "cached": {"reducer": GIVEN, "per": "stage"},
    "todo": {"factor": GIVEN, "pick": "nearest-exact"},
    "pooling": {"factor": GIVEN, "pool": "average"},
    "iekvd": {"factor": GIVEN, "alpha": 0.9},
    "select": {"keep": GIVEN, **LAPLACIAN, "which": "low"},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_published_signatures(name):
    """Settings by name are public: they change only with a major version. More may follow."""
    signature = inspect.signature(bigain.registry.get("reducers", name))
    published = SIGNATURES[name]
    defaults = {key: value.default for key, value in signature.parameters.items()}
    assert list(defaults)[: len(published)] == list(published)
    assert {key: defaults[key] for key in published} == published
    assert all(defaults[key] is not GIVEN for key in set(defaults) - set(published))


@pytest.mark.parametrize("given", [{"randomize": "no"}, {"cell": (True, 2)}], ids=str)
def test_a_word_is_no_truth_value_and_a_truth_value_no_number(given):
    with pytest.raises(SettingError):
        bigain.build_reducer("tome", ratio=0.5, **given)


def test_contexts_do_not_share_a_cache():
    assert Context().cache is not Context().cache
