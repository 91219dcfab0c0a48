"""Scheduled: which rule holds where and when, and what is refused."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, Identity, NoReduction
from bigain.reducers.cached import Cached
from bigain.reducers.kv_merge import KVMerge
from bigain.reducers.lgtm import LGTM
from bigain.reducers.rowwise import Rowwise
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo
from bigain.reducers.tome import ToMe

GRID = bigain.Grid((4, 4))
A, B, C, D = (LGTM(ratio) for ratio in (0.25, 0.5, 0.375, 0.125))
LENGTH = {12: A, 8: B, 10: C, 14: D, 16: "identity"}
"""Reducers told apart by how many of 16 tokens they leave."""


def chosen(reducer, timestep=None, **place):
    """The reducer that a row at this place follows, found out by planning for it."""
    context = Context(None if timestep is None else torch.tensor([timestep]), **place)
    tokens = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    plan = reducer.plan(tokens, GRID, context)
    return LENGTH[int((plan.sizes > 0).sum())]


def test_the_first_rule_that_holds_is_followed():
    reducer = Scheduled([Rule(A, layers=[0, 1]), Rule(B, layers=[1, 2]), Rule(C, layers=[2])], D)
    assert [chosen(reducer, layer=layer) for layer in range(4)] == [A, A, B, D]


def test_without_another_reducer_tokens_stay_where_no_rule_holds():
    reducer = Scheduled([Rule(A, layers=[0])])
    plan = reducer.plan(torch.zeros(1, 16, 4), GRID, Context(layer=1))
    assert isinstance(plan, NoReduction)
    assert isinstance(reducer.otherwise, Identity)


def test_stages_are_names_or_beginnings_of_names():
    reducer = Scheduled(
        [Rule(A, stages=["down*", "mid_block"]), Rule(B, stages="up_blocks.1"), Rule(C, stages=["*"])], D
    )
    told = {
        "down_blocks.0": A,
        "down": A,
        "mid_block": A,
        "mid_block.x": C,
        "my_down": C,
        "up_blocks.1": B,
        "up_blocks.10": C,
        None: D,  # a model without stages
    }
    assert {stage: chosen(reducer, stage=stage) for stage in told} == told


def test_a_rule_by_stage_layer_and_timestep_needs_all_three():
    reducer = Scheduled([Rule(A, stages="down*", layers=[1, 2], timesteps=(100, 200))], D)
    where = [(stage, layer, timestep) for stage in ("down", "up") for layer in (0, 1) for timestep in (50, 150)]
    assert [w for w in where if chosen(reducer, w[2], stage=w[0], layer=w[1]) is A] == [("down", 1, 150)]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.int32])
def test_timesteps_are_from_low_up_to_but_without_high(dtype):
    reducer = Scheduled([Rule(A, timesteps=(400, 600)), Rule(B, timesteps=(500, 1000)), Rule(C, timesteps=(0, 200))], D)
    timesteps = [0, 199, 200, 399, 400, 500, 599, 600, 999, 1000]
    expected = [C, C, D, D, A, A, A, B, B, D]
    assert [chosen(reducer, torch.tensor(t, dtype=dtype).item()) for t in timesteps] == expected
    assert chosen(Scheduled([Rule(A, timesteps=(0.5, 1.5))], D), 1.0) is A


def test_each_row_follows_its_own_timestep(noise):
    reducer = Scheduled([Rule(Identity(), timesteps=(900, 1000)), Rule(A, timesteps=(500, 1000))], B)
    tokens, timesteps = noise(5, 16, 4), torch.tensor([950, 20, 500, 899, 499])
    plan = reducer.plan(tokens, GRID, Context(timesteps))
    assert isinstance(plan, Rowwise)
    assert plan.padded
    assert (plan.sizes > 0).sum(dim=1).tolist() == [16, 8, 12, 12, 8]
    found = plan.restore(plan.reduce(tokens))
    for row, own in enumerate([Identity(), B, A, A, B]):
        alone = own.plan(tokens[row : row + 1], GRID)
        assert torch.equal(found[row : row + 1], alone.restore(alone.reduce(tokens[row : row + 1])))


@pytest.mark.parametrize("timestep", [torch.tensor(700), torch.tensor(700.0), torch.tensor([700])], ids=str)
def test_one_timestep_serves_all_rows(noise, timestep):
    plan = Scheduled([Rule(A, timesteps=(500, 1000))], B).plan(noise(3, 16, 4), GRID, Context(timestep))
    assert (plan.sizes > 0).sum(dim=1).tolist() == [12] * 3


def test_what_place_alone_decides_costs_nothing_and_needs_no_timestep(noise):
    """The plan is the chosen reducer's own, and the others are not asked."""

    class Never(LGTM):
        def plan(self, tokens, grid, context=None):
            raise AssertionError("no rule leads here")

    never = Never(0.5)
    rules = [Rule(never, stages="up*"), Rule(never, layers=[3], timesteps=(0, 500)), Rule(A), Rule(never)]
    plan = Scheduled(rules, never).plan(noise(2, 16, 4), GRID, Context(stage="down", layer=1))
    assert type(plan) is type(A.plan(noise(2, 16, 4), GRID))
    assert torch.equal(plan.place, A.plan(noise(2, 16, 4), GRID).place)


def test_rules_by_timestep_need_one(noise):
    reducer = Scheduled([Rule(A, timesteps=(0, 500))], B)
    for context in (None, Context()):
        with pytest.raises(SettingError, match=r"^scheduled has rules by timestep, but there is no timestep: the m"):
            reducer.plan(noise(1, 16, 4), GRID, context)


def test_the_length_is_that_of_the_longest_reducer_which_may_apply():
    reducer = Scheduled([Rule(A, stages="down*", timesteps=(500, 1000)), Rule(B, stages="down*"), Rule(C, layers=[5])])
    assert reducer.reduced_length(GRID, Context(stage="down")) == 12
    assert reducer.reduced_length(GRID, Context(stage="up", layer=5)) == 10
    assert reducer.reduced_length(GRID, Context(stage="up")) == 16
    assert reducer.reduced_length(GRID) == 16
    for place in ({"stage": "down"}, {"stage": "up", "layer": 5}, {"stage": "up"}):
        context = Context(torch.tensor([20, 700]), **place)
        plan = reducer.plan(torch.randn(2, 16, 4), GRID, context)
        assert plan.sizes.shape[1] == reducer.reduced_length(GRID, context)


@pytest.mark.parametrize("timestep", [0, 399, 400, 599.5, 600, 999, 1500])
def test_at_a_timestep_the_same_reducer_is_followed_and_nothing_longer_is_run(timestep):
    inner = Scheduled([Rule(A, timesteps=(0, 100))], C)
    reducer = Scheduled(
        [Rule(Identity(), timesteps=(600, 1000)), Rule(A, stages="up*"), Rule(inner, timesteps=(0, 400))], B
    )
    settled = reducer.at(timestep)
    for stage in ("down", "up"):
        context = Context(torch.tensor([timestep]), stage=stage)
        tokens = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
        plan = settled.plan(tokens, GRID, Context(stage=stage))  # no timestep needed any more
        assert not isinstance(plan, Rowwise)
        assert LENGTH[plan.sizes.shape[1]] is chosen(reducer, timestep, stage=stage)
        assert settled.reduced_length(GRID, context) == plan.sizes.shape[1]


def test_settling_leaves_the_schedule_as_it_was():
    reducer = Scheduled([Rule(A, timesteps=(0, 500))], B)
    before = repr(reducer)
    assert reducer.at(700) is B
    assert reducer.at(20) is A
    assert repr(reducer) == before
    assert A.at(20) is A


@pytest.mark.parametrize(
    ("reducers", "kinds"),
    [
        ([A, B], ["merge"]),
        ([ToDo(2), Identity()], ["kv"]),
        ([Identity(), ToDo(2)], ["kv"]),
        ([A, ToDo(2)], ["kv", "merge"]),
        ([Identity(), Identity()], ["merge"]),
        ([Scheduled([Rule(A)], ToDo(2)), Identity()], ["kv", "merge"]),
    ],
    ids=str,
)
def test_kinds_are_those_of_the_reducers_that_reduce(reducers, kinds):
    first, otherwise = reducers
    assert Scheduled([Rule(first, layers=[0])], otherwise).kinds == set(kinds)


def test_it_averages_where_all_its_reducers_do():
    assert Scheduled([Rule(A)], B).averages
    assert not Scheduled([Rule(A)], LGTM(0.5, mode="prune")).averages
    assert not Scheduled([Rule(ToDo(2))], A).averages


def test_rules_and_reducers_may_be_mappings():
    built = bigain.build_reducer(
        {
            "name": "scheduled",
            "rules": [
                {"reducer": {"name": "lgtm", "ratio": 0.25}, "stages": "down*", "timesteps": [0, 500]},
                {"reducer": {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}, "layers": [3]},
                Rule("identity", layers=range(2)),
            ],
            "otherwise": {"name": "lgtm", "ratio": 0.375},
        }
    )
    by_hand = Scheduled([Rule(A, ("down*",), None, (0, 500)), Rule(B, layers=[3]), Rule(Identity(), layers=[0, 1])], C)
    assert repr(built) == repr(by_hand)
    assert [chosen(built, 700, layer=layer) for layer in (0, 2, 3)] == ["identity", C, B]
    assert chosen(built, 20, layer=3, stage="down_blocks.1") is A


BAD_RULES = [
    ([], "scheduled needs one rule or more."),
    (["lgtm"], "A rule of scheduled is a Rule or a mapping of its fields; got str."),
    ([None], "A rule of scheduled is a Rule or a mapping of its fields; got NoneType."),
    ([{"layers": [0]}], "A rule of scheduled has reducer, stages, layers and timesteps: "),
    ([{"reducer": A, "when": 3}], "A rule of scheduled has reducer, stages, layers and timesteps: "),
    ([{"reducer": "lgtn"}], "There is no reducer named 'lgtn'."),
    (
        [{"reducer": A, "timesteps": [600, 400]}],
        "timesteps of a rule are two numbers, [low, high) with low < high; got [600, 400].",
    ),
    (
        [{"reducer": A, "timesteps": [500, 500]}],
        "timesteps of a rule are two numbers, [low, high) with low < high; got [500, 500].",
    ),
    (
        [{"reducer": A, "timesteps": [0, float("nan")]}],
        "timesteps of a rule are two numbers, [low, high) with low < high; got [0, nan",
    ),
    ([{"reducer": A, "layers": 3}], "layers of a rule is a list of int, or left out; got 3."),
    ([{"reducer": A, "layers": [True]}], "layers of a rule is a list of int, or left out; got [True]."),
    ([{"reducer": A, "stages": "*blocks"}], "A stage of a rule is a name, or ends in one '*' (down*); got '*blocks'."),
    ([{"reducer": A, "stages": ["up_blocks.[12]"]}], "A stage of a rule is a name, or ends in one '*'"),
    (None, "rules of scheduled is a list of them; got NoneType."),
    ([{"reducer": A, "layers": []}], "layers of a rule is a list of int, or left out; got []."),
    ([{"reducer": A, "stages": []}], "stages of a rule is a list of str, or left out; got []."),
    ([{"reducer": A, "layers": ["down*"]}], "layers of a rule is a list of int, or left out; got ['down*']."),
    ([{"reducer": A, "layers": "down*"}], "layers of a rule is a list of int, or left out; got 'down*'."),
    ([{"reducer": A, "stages": 3}], "stages of a rule is a list of str, or left out; got 3."),
    ([{"reducer": A, "stages": [None]}], "stages of a rule is a list of str, or left out; got [None]."),
]


@pytest.mark.parametrize(("rules", "told"), BAD_RULES, ids=str)
def test_bad_rules_are_refused_in_a_sentence(rules, told):
    with pytest.raises(SettingError) as caught:
        Scheduled(rules)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("given", [500, [500], (0, 500, 1000), ("0", "500"), "ab", (None, 500)], ids=repr)
@pytest.mark.parametrize(
    "make", [Rule, lambda reducer, **more: Scheduled([{"reducer": reducer, **more}])], ids=["Rule", "mapping"]
)
def test_timesteps_that_are_no_two_numbers_are_refused_in_a_sentence(make, given):
    with pytest.raises(SettingError) as caught:
        make(A, timesteps=given)
    assert str(caught.value).startswith("timesteps of a rule are")


@pytest.mark.parametrize(("field", "given"), [("layers", 1.5), ("stages", 1.5)], ids=str)
def test_a_rule_of_no_list_is_refused_in_a_sentence(field, given):
    with pytest.raises(SettingError, match=f"^{field} of a rule is a list of"):
        Rule(A, **{field: given})


def test_a_merge_and_keys_and_values_at_one_block_are_refused_for_mixed_rows_alone(noise):
    reducer = Scheduled([Rule(ToMe(0.5), timesteps=(500, 1000))], ToDo(2))
    with pytest.raises(SettingError, match="kv_merge makes any merging reducer a kv one"):
        reducer.plan(noise(2, 16, 4), GRID, Context(torch.tensor([700, 700])))
    assert reducer.at(700).plan(noise(2, 16, 4), GRID).kind == "merge"
    assert reducer.at(20).plan(noise(2, 16, 4), GRID).kind == "kv"


def test_a_plan_repeats_for_several_rows(noise):
    tokens, context = noise(2, 16, 4), Context(torch.tensor([20, 700]))
    plan = Scheduled([Rule(A, timesteps=(500, 1000))], B).plan(tokens, GRID, context).repeat(3)
    assert (plan.sizes > 0).sum(dim=1).tolist() == [8] * 3 + [12] * 3


def test_tokens_off_the_grid_are_refused():
    with pytest.raises(SettingError, match="Got 15 tokens for a grid of 16"):
        Scheduled([Rule(A)]).plan(torch.zeros(1, 15, 4), GRID)


def test_rules_are_frozen_and_examples_are_of_the_class():
    with pytest.raises(AttributeError):
        Rule(A).layers = (1,)
    assert all(isinstance(example, Scheduled) for example in Scheduled.examples())


def test_a_rule_about_no_block_it_is_attached_to_is_refused():
    places = [Context(layer=layer, stage=stage) for layer, stage in enumerate(["down_blocks.0", "up_blocks.1"])]
    Scheduled([Rule(A, stages="down*"), Rule(A, layers=[1])]).check_places(places)
    with pytest.raises(SettingError, match=r"down_block'.*holds at none of the blocks.*down_blocks\.0, up_blocks\.1"):
        Scheduled([Rule(A, stages="down_block")]).check_places(places)
    with pytest.raises(SettingError, match="their layers 0, 1"):
        Scheduled([Rule(A, stages="down*", layers=[1])]).check_places(places)


def test_kinds_differ_by_block():
    reducer = Scheduled([Rule(ToMe(0.5), stages="down*")], ToDo(2))
    assert reducer.kinds == {"merge", "kv"}
    assert reducer.kinds_at(Context(stage="down_blocks.0")) == {"merge"}
    assert reducer.kinds_at(Context(stage="mid_block")) == {"kv"}


def test_where_nothing_shrinks_at_any_timestep_there_is_no_reduction(noise):
    idle = Scheduled([Rule(Identity(), timesteps=(500, 1000))])
    reducer = Scheduled([Rule(idle, timesteps=(200, 800))], ToDo(2))
    assert isinstance(idle.plan(noise(2, 16, 4), GRID, Context(torch.tensor([700, 3]))), NoReduction)
    assert reducer.plan(noise(2, 16, 4), GRID, Context(torch.tensor([700, 3]))).kind == "kv"


IN = Context(layer=0, stage="down_blocks.0")
OUT = Context(layer=1, stage="up_blocks.1")
NOWHERE = Scheduled([Rule(A, stages="encoder*")])


@pytest.mark.parametrize(
    "reducer",
    [KVMerge(NOWHERE), Cached(NOWHERE), Scheduled([Rule(NOWHERE)]), Scheduled([Rule(A, layers=[0])], NOWHERE)],
    ids=lambda reducer: type(reducer).__name__,
)
def test_a_rule_that_holds_nowhere_is_found_inside_others(reducer):
    with pytest.raises(SettingError, match=r"encoder\*.*holds at none of the blocks"):
        reducer.check_places([IN, OUT])


def test_a_rule_behind_one_that_always_holds_is_refused():
    with pytest.raises(SettingError, match="others always hold before it"):
        Scheduled([Rule(A), Rule(B, layers=[1])]).check_places([IN, OUT])
    Scheduled([Rule(A, timesteps=(0, 500)), Rule(B, layers=[1])]).check_places([IN, OUT])


def test_kinds_by_block_look_inside():
    inner = Scheduled([Rule(A, stages="mid*")], ToDo(2))
    assert inner.kinds == {"merge", "kv"}
    assert Scheduled([Rule(A, layers=[0])], inner).kinds_at(OUT) == {"kv"}
    assert Cached(Scheduled([Rule(A, stages="down*")], B)).kinds_at(OUT) == {"merge"}


def test_settled_rules_about_the_same_blocks_are_one():
    reducer = Scheduled([Rule(Identity(), layers=[0], timesteps=(600, 1000)), Rule(A, layers=[0])], B)
    assert repr(reducer.at(700)) == repr(Scheduled([Rule(Identity(), layers=[0])], B))
    assert repr(reducer.at(20)) == repr(Scheduled([Rule(A, layers=[0])], B))
    assert Scheduled([Rule(A, timesteps=(600, 1000)), Rule(B)]).at(700) is A
