"""Shared plans, timesteps that the host knows, and rows of one batch at different timesteps."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from tests.comparing import assert_same

ALL = ("self", "cross", "mlp")


class StopError(Exception):
    pass


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def differ(found, other):
    assert not torch.allclose(found, other, atol=2e-4)


def rows_of(batch, rows):
    return {key: value[rows] for key, value in batch.items()}


@pytest.fixture(params=["dit", "unet"])
def case(request, dit, unet, batch, latents):
    """A model, six rows, where to attach, and from what plans are made there."""
    if request.param == "dit":
        six = {key: torch.cat([value, value.flip(0)]) for key, value in batch.items()}
        six["hidden_states"] = six["hidden_states"].double() + torch.arange(6).view(6, 1, 1, 1) / 7
        return dit.double(), six, {"parts": ("self", "mlp"), "layers": 2}, [0, 1], "part"
    six = latents(6, (9, 12))
    six["timestep"] = torch.tensor([20, 500, 980, 20, 500, 980])
    return unet, six, {"parts": ALL}, [0, 5, 6], "block"


def in_groups(batch, size):
    """Let rows of a group be at one timestep, as in a diffusion classifier."""
    first = torch.arange(6) // size * size
    return {**batch, "timestep": batch["timestep"][first]}


SHARED = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "abm", "ratio": 0.4},
    {"name": "tome", "ratio": 0.3},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}},
    {
        "name": "scheduled",
        "rules": [{"reducer": {"name": "lgtm", "ratio": 0.25}, "timesteps": [400, 1000]}],
        "otherwise": {"name": "abm", "ratio": 0.5},
    },
]
KEYS_AND_VALUES = [
    {"name": "iekvd", "factor": 2, "alpha": {"start": 0.2, "end": 1.3}},
    {"name": "select", "keep": 0.25},
    {"name": "kv_merge", "reducer": {"name": "lgtm", "ratio": 0.5}},
]


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("spec", SHARED, ids=lambda spec: spec["name"])
@torch.no_grad()
def test_a_group_follows_the_plan_made_from_its_mean(case, by_hand, spec, size):
    model, batch, placement, layers, plan_from = case
    batch, reducer = in_groups(batch, size), bigain.build_reducer(spec)
    expected = by_hand(
        model, batch, dict.fromkeys(placement["parts"], reducer), layers, plan_from=plan_from, share=size
    )
    with bigain.attach(model, reducer, placement=placement) as report:
        alone = model(**batch).sample
        with report.shared(size):
            shared = model(**batch).sample
    close(shared, expected, atol=2e-5)
    differ(shared, alone)


@pytest.mark.parametrize("spec", KEYS_AND_VALUES, ids=lambda spec: spec["name"])
@torch.no_grad()
def test_plans_of_keys_and_values_are_shared_as_well(case, by_hand, spec):
    model, batch, _, layers, plan_from = case
    batch, reducer = in_groups(batch, 3), bigain.build_reducer(spec)
    expected = by_hand(model, batch, {"self": reducer}, layers, plan_from=plan_from, share=3)
    with bigain.attach(model, reducer, layers=layers) as report, report.shared(3):
        close(model(**batch).sample, expected, atol=2e-5)


@torch.no_grad()
def test_rows_of_other_groups_do_not_matter(case):
    model, batch, placement, *_ = case
    batch = in_groups(batch, 2)
    with bigain.attach(model, "lgtm", ratio=0.5, placement=placement) as report, report.shared(2):
        together = model(**batch).sample
        for first in (0, 2, 4):
            pair = slice(first, first + 2)
            close(model(**rows_of(batch, pair)).sample, together[pair])
        within = rows_of(batch, [0, 3])  # in other company, a row may follow another plan
        differ(model(**within).sample[0], together[0])


@torch.no_grad()
def test_a_group_of_one_is_the_plain_behaviour(case):
    model, batch, placement, *_ = case
    with bigain.attach(model, "lgtm", ratio=0.5, placement=placement) as report:
        plain = model(**batch).sample
        with report.shared(1):
            assert_same(model(**batch).sample, plain)


def test_rows_that_make_no_whole_groups_are_refused(case):
    model, batch, placement, *_ = case
    with torch.no_grad(), bigain.attach(model, "lgtm", ratio=0.5, placement=placement) as report:
        plain = model(**batch).sample
        with report.shared(4), pytest.raises(SettingError, match=r"^6 rows cannot share plans 4 by 4\.$"):
            model(**batch)
        assert_same(model(**batch).sample, plain)
        for rows in (0, -2, 2.5):
            with pytest.raises(SettingError, match=rf"a whole number, 1 or more; got {rows}\."), report.shared(rows):
                pass
        assert_same(model(**batch).sample, plain)


def fail_while_shared(report, rows, check):
    with report.shared(rows):
        check()
        raise StopError


@torch.no_grad()
def test_sharing_ends_with_its_block_also_after_an_exception(case):
    model, batch, placement, *_ = case
    with bigain.attach(model, "lgtm", ratio=0.5, placement=placement) as report:
        plain = model(**batch).sample
        with report.shared(3):
            by_three = model(**batch).sample
            with pytest.raises(StopError):
                fail_while_shared(report, 2, lambda: differ(model(**batch).sample, by_three))
            assert_same(model(**batch).sample, by_three)
        assert_same(model(**batch).sample, plain)


class Places(TokenReducer):
    """L-GTM that shows its plans."""

    def __init__(self):
        self.inner, self.seen = LGTM(0.5), []

    def plan(self, tokens, grid, context=None):
        self.seen.append((tuple(tokens.shape), context.timestep.tolist()))
        return self.inner.plan(tokens, grid, context)

    def reduced_length(self, grid, context=None):
        return self.inner.reduced_length(grid, context)


@torch.no_grad()
def test_the_classes_of_one_noise_merge_the_same_tokens(dit, batch):
    """Class embeddings differ, so that without sharing each class merges others."""
    noisy = batch["hidden_states"][:2].repeat_interleave(5, dim=0)
    rows = {
        "hidden_states": noisy,
        "timestep": torch.tensor([300, 800]).repeat_interleave(5),
        "class_labels": torch.arange(10),
    }
    places = []
    with bigain.attach(dit, Places(), layers=2) as report:
        for block in dit.transformer_blocks[:2]:
            planner = next(iter(block._forward_pre_hooks.values())).__self__
            make = planner._make
            planner._make = lambda tokens, make=make: places.append(make(tokens)) or places[-1]
        dit(**rows)
        assert not any((plan.place[:5] == plan.place[0]).all() for plan in places)
        places.clear()
        with report.shared(5):
            dit(**rows)
    assert [plan.place.shape for plan in places] == [(10, 64)] * 2
    for plan in places:
        for group in plan.place.split(5):
            assert (group == group[0]).all()
        assert not torch.equal(plan.place[0], plan.place[5])


@torch.no_grad()
def test_a_shared_plan_is_asked_for_once_a_group_at_its_timestep(dit, batch):
    rows = {key: value.repeat_interleave(2, dim=0) for key, value in batch.items()}
    reducer = Places()
    with bigain.attach(dit, reducer, layers=2) as report, report.shared(2):
        dit(**rows)
    assert reducer.seen == [((3, 64, 16), [20, 500, 980])] * 2


IDENTITY, SOME, MORE = bigain.build_reducer("identity"), LGTM(0.25), LGTM(0.5)
MIXED = {
    "warm-up": ([(500, 1000, IDENTITY)], MORE),
    "two methods": ([(0, 400, bigain.build_reducer("abm", ratio=0.6))], SOME),
    "three": ([(900, 1000, IDENTITY), (400, 900, SOME)], bigain.build_reducer("tome", ratio=0.6)),
    "first of two that hold": ([(400, 600, MORE), (0, 1000, SOME)], IDENTITY),
    "keys and values": (
        [(0, 300, bigain.build_reducer("kv_merge", reducer={"name": "tome", "ratio": 0.5}))],
        bigain.build_reducer("todo", factor=2),
    ),
    "identity and keys and values": ([(0, 300, IDENTITY)], bigain.build_reducer("todo", factor=3)),
}


def at_timestep(rules, otherwise, timestep):
    """The reducer that the rules mean, by the obvious loop."""
    for low, high, reducer in rules:
        if low <= timestep < high:
            return reducer
    return otherwise


@pytest.mark.parametrize("proportional", [False, True], ids=["plain", "proportional"])
@pytest.mark.parametrize("name", MIXED)
@torch.no_grad()
def test_each_row_follows_the_reducer_of_its_own_timestep(case, name, proportional):
    model, batch, placement, layers, _ = case
    rules, otherwise = MIXED[name]
    scheduled = Scheduled([Rule(reducer, timesteps=(low, high)) for low, high, reducer in rules], otherwise)
    parts = ("self",) if "kv" in scheduled.kinds else placement["parts"]
    placement = {"parts": parts, "layers": layers, "proportional": proportional}
    with bigain.attach(model, scheduled, placement=placement):
        together = model(**batch).sample
    for row in (0, 4, 2):  # one at each timestep
        timestep = batch["timestep"][row].item()
        with bigain.attach(model, at_timestep(rules, otherwise, timestep), placement=placement):
            close(together[row : row + 1], model(**rows_of(batch, slice(row, row + 1))).sample, atol=2e-5)


@torch.no_grad()
def test_mixed_rows_by_stage_and_timestep_equal_the_ones_by_hand(unet, latents, by_hand):
    """A hybrid that warms up: the encoder shrinks keys and values, the decoder merges, at late timesteps."""
    todo, warm = bigain.build_reducer("todo", factor=2), (500, 1000)
    spec = [Rule(IDENTITY, timesteps=warm), Rule(todo, stages="down*"), Rule(MORE, stages=["up_blocks.2"])]
    batch = latents(3, (9, 13))

    def chosen(timestep, stage, layer):
        if timestep >= 500:
            return {}
        reducer = todo if stage.startswith("down") else MORE if stage == "up_blocks.2" else SOME
        return dict.fromkeys(ALL, reducer)

    expected = by_hand(unet, batch, chosen)
    with bigain.attach(unet, Scheduled(spec, SOME), placement={"parts": ALL, "names": "*"}):
        close(unet(**batch).sample, expected, atol=2e-5)


@torch.no_grad()
def test_a_merge_and_a_reducer_of_keys_and_values_at_one_block_need_one_timestep(case):
    model, batch, _, layers, _ = case
    todo = bigain.build_reducer("todo", factor=2)
    scheduled = Scheduled([Rule(MORE, timesteps=(0, 500))], todo)
    with bigain.attach(model, scheduled, layers=layers) as report:
        with pytest.raises(
            SettingError, match="cannot follow a merging reducer and one of keys and values at the same"
        ):
            model(**batch)
        found = []
        for timestep in (20, 800):
            with report.at(timestep):
                found.append(model(**{**batch, "timestep": torch.full((6,), timestep)}).sample)
    for timestep, reducer, output in zip((20, 800), (MORE, todo), found, strict=True):
        with bigain.attach(model, reducer, layers=layers):
            assert_same(output, model(**{**batch, "timestep": torch.full((6,), timestep)}).sample)


class Lengths:
    """Takes down how many tokens attention gets."""

    def __init__(self, module):
        self.seen = []
        module.to_k.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].shape[1]))


@torch.no_grad()
def test_at_a_timestep_only_what_it_needs_is_run(case):
    model, batch, placement, *_ = case
    scheduled = Scheduled([Rule(SOME, timesteps=(500, 1000))], MORE)
    batch["timestep"] = torch.full((6,), 20)
    block = model.get_submodule("transformer_blocks.0" if "hidden_states" in batch else _FIRST)
    lengths, tokens = Lengths(block.attn1), 64 if "hidden_states" in batch else 108
    with bigain.attach(model, scheduled, placement=placement) as report:
        masked = model(**batch).sample
        with report.at(20):
            settled = model(**batch).sample
            with report.at(700):
                model(**batch)
            with report.at(None):
                model(**batch)
            model(**batch)
        model(**batch)
    assert lengths.seen == [tokens * n // 4 for n in (3, 2, 3, 3, 2, 3)]
    with bigain.attach(model, MORE, placement=placement):
        assert_same(model(**batch).sample, settled)
    close(masked, settled)


_FIRST = "down_blocks.0.attentions.0.transformer_blocks.0"


@torch.no_grad()
def test_a_timestep_that_ends_in_an_exception_is_forgotten(case):
    model, batch, placement, *_ = case
    with bigain.attach(model, Scheduled([Rule(SOME, timesteps=(500, 1000))], MORE), placement=placement) as report:
        expected = model(**batch).sample
        with pytest.raises(StopError), report.at(20):
            raise StopError
        assert_same(model(**batch).sample, expected)


@torch.no_grad()
def test_a_number_settles_by_itself_and_does_not_stick(unet, latents):
    scheduled = Scheduled([Rule(SOME, timesteps=(500, 1000))], MORE)
    lengths, batch = Lengths(unet.get_submodule(_FIRST).attn1), latents()
    with bigain.attach(unet, scheduled, layers=1):
        expected = unet(**batch).sample
        for timestep in (20, 700, 20.0, batch["timestep"], torch.tensor(20), 499.5, 500):
            found = unet(**{**batch, "timestep": timestep}).sample
            if timestep is batch["timestep"]:
                assert_same(found, expected)
    assert lengths.seen == [48, 32, 48, 32, 48, 48, 32, 48]


@torch.no_grad()
def test_shared_and_at_a_timestep_at_once(case, by_hand):
    model, batch, placement, layers, plan_from = case
    batch["timestep"] = torch.full((6,), 20)
    expected = by_hand(model, batch, dict.fromkeys(placement["parts"], MORE), layers, plan_from=plan_from, share=3)
    scheduled = Scheduled([Rule(SOME, timesteps=(500, 1000))], MORE)
    with bigain.attach(model, scheduled, placement=placement) as report, report.shared(3), report.at(20):
        close(model(**batch).sample, expected, atol=2e-5)


@torch.no_grad()
def test_a_model_compiles_once_for_each_phase(tiny_dit, batch):
    torch._dynamo.reset()
    model = tiny_dit(num_layers=1)
    scheduled = Scheduled([Rule(IDENTITY, timesteps=(500, 1000))], MORE)
    with bigain.attach(model, scheduled) as report:
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
        for timestep in (980, 700, 480, 20, 990, 10, 500):
            now = {**batch, "timestep": torch.full((3,), timestep)}
            with report.at(timestep):
                close(compiled(**now).sample, model(**now).sample)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
        close(compiled(**batch).sample, model(**batch).sample)  # rows at several timesteps: the third and last
        with report.at(None):
            close(compiled(**now).sample, model(**now).sample)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
        assert not torch._dynamo.utils.counters["graph_break"]
