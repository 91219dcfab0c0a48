"""Cached: how often it plans, and for whom a plan is good."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context
from bigain.reducers.cached import Cached
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo

GRID = bigain.Grid((6, 6), prefix=1)


class Counting(LGTM):
    def __init__(self, ratio=0.5):
        super().__init__(ratio, cell=2)
        self.layers = []

    def plan(self, tokens, grid, context=None):
        self.layers.append(context.layer)
        return super().plan(tokens, grid, context)


@pytest.fixture
def tokens(noise):
    return lambda seed=0, rows=2: noise(rows, GRID.tokens, 8, seed=seed)


def blocks(stages, cache):
    """Contexts of one forward pass through blocks of these stages."""
    return [Context(layer=layer, stage=stage, cache=cache) for layer, stage in enumerate(stages)]


@pytest.mark.parametrize(
    ("per", "stages", "planned"),
    [
        ("stage", ["down", "down", "mid", "up", "up", "up"], [0, 2, 3]),
        ("stage", ["down", "up", "down"], [0, 1]),
        ("stage", [None, None, None], [0]),
        ("forward", ["down", "down", "mid", "up"], [0]),
        ("forward", [None, None], [0]),
    ],
    ids=str,
)
def test_the_first_block_plans_and_the_others_reuse_its_plan(tokens, per, stages, planned):
    inner = Counting()
    reducer = Cached(inner, per)
    for _ in range(2):  # two forward passes
        plans = [reducer.plan(tokens(c.layer), GRID, c) for c in blocks(stages, {})]
        assert inner.layers == planned
        inner.layers.clear()
        for stage, plan, layer in zip(stages, plans, range(len(stages)), strict=True):
            first = planned[0] if per == "forward" else stages.index(stage)
            assert plan is plans[first]
            assert torch.equal(plan.place, LGTM(0.5).plan(tokens(first), GRID).place)
            assert (layer in planned) == (layer == first)


def test_nothing_crosses_from_one_context_to_another(tokens):
    reducer = Cached(LGTM(0.5))
    for seed in (0, 1):
        for context in (Context(), None):
            plan = reducer.plan(tokens(seed), GRID, context)
            assert torch.equal(plan.place, LGTM(0.5).plan(tokens(seed), GRID).place)
    assert set(vars(reducer)) == {"reducer", "per"}


@pytest.mark.parametrize("per", ["stage", "forward"])
def test_blocks_of_other_grids_or_rows_plan_for_themselves(noise, per):
    inner, cache = Counting(), {}
    reducer = Cached(inner, per)
    for number, (grid, rows) in enumerate(
        [
            (bigain.Grid((4, 6)), 2),
            (bigain.Grid((6, 4)), 2),  # as many tokens, lying otherwise
            (bigain.Grid((4, 6)), 3),
            (bigain.Grid((24,)), 2),
            (bigain.Grid((2, 10), prefix=4), 2),
            (bigain.Grid((2, 10), suffix=4), 2),
        ]
    ):
        reducer.plan(noise(rows, 24, 8), grid, Context(cache=cache))
        assert len(inner.layers) == number + 1
        reducer.plan(noise(rows, 24, 4, seed=1), grid, Context(cache=cache))  # channels are free
        assert len(inner.layers) == number + 1


def test_two_reducers_in_one_pass_do_not_meet_each_others_plans(tokens):
    cache = {}
    plans = [reducer.plan(tokens(), GRID, Context(cache=cache)) for reducer in (Cached(LGTM(0.5)), Cached(LGTM(0.25)))]
    assert [plan.sizes.shape[1] for plan in plans] == [19, 28]


def test_tokens_off_the_grid_are_refused_also_where_a_plan_is_held(tokens, noise):
    reducer, context = Cached(LGTM(0.5)), Context()
    reducer.plan(tokens(), GRID, context)
    with pytest.raises(SettingError, match="Got 36 tokens for a grid of 37"):
        reducer.plan(noise(2, 36, 8), GRID, context)


@pytest.mark.parametrize(
    "inner",
    [{"name": "todo", "factor": 2}, Scheduled([Rule(ToDo(2), layers=[0])], LGTM(0.5))],
    ids=["todo", "composite"],
)
def test_reducers_of_keys_and_values_are_refused(inner):
    with pytest.raises(SettingError, match=r"^Cached wraps a merging reducer; .* shrinks keys and values already\.$"):
        Cached(inner)


@pytest.mark.parametrize("per", ["block", None, 3])
def test_an_unknown_scope_is_refused(per):
    with pytest.raises(SettingError, match=f"^per is one of stage, forward; got {per!r}\\.$"):
        Cached(LGTM(0.5), per)


@pytest.mark.parametrize("inner", ["identity", {"name": "abm", "ratio": 0.4}, LGTM(0.3)], ids=str)
def test_length_kind_and_averages_are_the_inner_ones(inner):
    reducer, alone = bigain.build_reducer("cached", reducer=inner), bigain.build_reducer(inner)
    assert reducer.reduced_length(GRID) == alone.reduced_length(GRID)
    assert reducer.kinds == {"merge"}
    assert reducer.averages is alone.averages is True
    assert not Cached(LGTM(0.5, mode="prune")).averages


def test_it_is_built_from_a_mapping_and_shows_its_settings():
    reducer = bigain.build_reducer(
        {"name": "cached", "reducer": {"name": "lgtm", "init_args": {"ratio": 0.5}}, "per": "forward"}
    )
    assert repr(reducer) == f"Cached(reducer={LGTM(0.5)!r}, per='forward')"
    assert all(isinstance(example, Cached) for example in Cached.examples())


def test_a_schedule_inside_settles_with_the_timestep():
    reducer = Cached(Scheduled([Rule(LGTM(0.25), timesteps=(500, 1000))], LGTM(0.5)))
    assert reducer.reduced_length(GRID) == 28
    assert [reducer.at(t).reduced_length(GRID) for t in (700, 20)] == [28, 19]


@pytest.mark.parametrize(
    ("per", "rule"),
    [("stage", {"layers": [0]}), ("forward", {"layers": [0]}), ("forward", {"stages": ["down*"]})],
    ids=str,
)
def test_a_schedule_by_block_inside_is_refused(per, rule):
    """A block's plan must not serve one for which the schedule has another reducer."""
    with pytest.raises(SettingError, match="put cached into the rules instead"):
        Cached(Scheduled([Rule(LGTM(0.5), **rule)], LGTM(0.25)), per=per)


def test_a_schedule_by_stage_inside_is_as_long_as_it_says(tokens):
    reducer, cache = Cached(Scheduled([Rule(LGTM(0.5), stages=["down"])], LGTM(0.25))), {}
    for context in blocks(["down", "down", "up"], cache):
        plan = reducer.plan(tokens(), GRID, context)
        assert plan.sizes.shape[1] == reducer.reduced_length(GRID, context)


def test_a_schedule_by_block_deep_inside_is_refused_too():
    by_layer = Scheduled([Rule(Scheduled([Rule(LGTM(0.5), layers=[0])]))])
    by_stage = Cached(Scheduled([Rule(LGTM(0.5), stages=["down*"])], LGTM(0.25)))
    for make in (lambda: Cached(by_layer), lambda: Cached(by_stage, per="forward")):
        with pytest.raises(SettingError, match="put cached into the rules instead"):
            make()
