"""Reduced forward passes of the video transformers against blocks written by hand."""

import pytest
import torch

import bigain
from bigain.adapters.attach import find_sites
from bigain.adapters.find import match
from bigain.adapters.placement import Placement
from bigain.errors import SettingError, SiteError
from bigain.reducers.abm import ABM
from bigain.reducers.lgtm import LGTM
from bigain.registry import build
from tests.comparing import assert_same

FRAME = (1, 2, 2)
MERGING = [
    {"name": "identity"},
    {"name": "lgtm", "ratio": 0.5, "cell": FRAME},
    {"name": "lgtm", "ratio": 0.6, "cell": 2},
    {"name": "tome", "ratio": 0.5, "cell": FRAME},
    {"name": "abm", "ratio": 0.4, "cell": FRAME},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5, "cell": FRAME}},
]
KEYS_AND_VALUES = [
    {"name": "iekvd", "factor": FRAME, "alpha": 0.9},
    {"name": "iekvd", "factor": FRAME, "alpha": {"start": 0.2, "end": 1.3}},
    {"name": "todo", "factor": 2},
    {"name": "select", "keep": 0.3},
    {"name": "kv_merge", "reducer": {"name": "lgtm", "ratio": 0.5, "cell": FRAME}},
]
MIXED = {
    "name": "scheduled",
    "rules": [{"reducer": {"name": "lgtm", "ratio": 0.25, "cell": FRAME}, "timesteps": [400, 1000]}],
    "otherwise": {"name": "abm", "ratio": 0.5, "cell": FRAME},
}


def title(spec):
    return "-".join(str(value) for value in spec.values() if not isinstance(value, dict))


@pytest.mark.parametrize("spec", MERGING + KEYS_AND_VALUES, ids=title)
@torch.no_grad()
def test_attached_self_attention_equals_the_one_by_hand(family, check_by_hand, spec):
    model, batch, reducer = family.model(), family.inputs(), bigain.build_reducer(spec)
    plain = model(**batch).sample
    with bigain.attach(model, reducer, layers=[0, 2], seed=5, shape=(3, 5, 6)) as report:
        assert {site.grid.shape for site in report.sites} == {(3, 5, 6)}
        output = check_by_hand(family, model, batch, reducer, [0, 2], seed=5)
    assert torch.allclose(output, plain, atol=1e-4) == (spec["name"] == "identity")
    assert_same(model(**batch).sample, plain)


@pytest.mark.parametrize("plan_from", ["part", "block"])
@pytest.mark.parametrize("spec", MERGING[1::3], ids=title)
def test_all_parts_of_a_block_share_a_plan(family, check_by_hand, spec, plan_from):
    model, batch, reducer = family.model(), family.inputs(), bigain.build_reducer(spec)
    placement = {"parts": family.parts, "layers": 3, "plan_from": plan_from}
    with bigain.attach(model, reducer, placement=placement, shape=(3, 5, 6)):
        check_by_hand(family, model, batch, reducer, [0, 1, 2], parts=family.parts, plan_from=plan_from)


def test_every_part_by_itself(family, check_by_hand):
    model, batch, reducer = family.model(), family.inputs(), LGTM(0.5, cell=FRAME)
    for part in family.parts[1:]:
        with bigain.attach(model, reducer, placement={"parts": part, "layers": 2}, shape=(3, 5, 6)):
            check_by_hand(family, model, batch, reducer, [0, 1], parts=(part,))


@pytest.mark.parametrize("grid", [(1, 7, 3), (2, 4, 9), (5, 3, 3)], ids=str)
def test_the_grid_is_that_of_the_call(family, check_by_hand, grid):
    model, batch, reducer = family.model(), family.inputs(2, grid), LGTM(0.4, cell=FRAME)
    with bigain.attach(model, reducer) as report:
        assert len(report.sites) == 1  # the first 12/28 of three
        check_by_hand(family, model, batch, reducer, [0], grid=grid)


@pytest.mark.parametrize("heads", [2, 3])  # with three rows, a mask for heads would fit as one for rows
@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_rows_at_different_timesteps_keep_their_own_methods(families, check_by_hand, name, heads):
    family, chosen = families[name], {True: LGTM(0.25, cell=FRAME), False: ABM(0.5, cell=FRAME)}
    model, batch = family.model(num_attention_heads=heads), family.inputs()
    placement = {"parts": family.parts, "layers": 2}
    with bigain.attach(model, MIXED, placement=placement, shape=(3, 5, 6)):
        check_by_hand(family, model, batch, lambda t: chosen[t >= 400], [0, 1], parts=family.parts)


@torch.no_grad()
def test_joint_attention_refuses_rows_of_different_lengths(families):
    family = families["cogvideox"]
    model, batch = family.model(), family.inputs()
    with bigain.attach(model, MIXED) as report:
        with pytest.raises(SettingError, match="different lengths"):
            model(**batch)
        with report.at(500):
            assert model(**batch).sample.isfinite().all()


@torch.no_grad()
def test_positional_arguments_are_understood(family):
    model, batch = family.model(), family.inputs()
    adapter = match(model)[2]
    with bigain.attach(model, "lgtm", ratio=0.5, cell=FRAME):
        named = model(**batch).sample
        order = {
            "wan": ("hidden_states", "timestep", "encoder_hidden_states"),
            "cogvideox": ("hidden_states", "encoder_hidden_states", "timestep"),
            "ltx": tuple(batch)[:-1],
        }[family.name]
        rest = {name: value for name, value in batch.items() if name not in order}
        assert_same(model(*(batch[name] for name in order), **rest).sample, named)
    moment = adapter.moment(model, (), batch)
    assert moment.shape == (3, 5, 6)
    assert moment.timestep is batch["timestep"]


@torch.no_grad()
def test_every_kind_of_reduction_compiles_without_a_break(family):
    model, batch = family.model(), family.inputs(2, (2, 3, 4))
    chosen = [MERGING[5], MERGING[4], KEYS_AND_VALUES[0]]
    rules = [{"reducer": spec, "layers": [layer]} for layer, spec in enumerate(chosen)]
    with bigain.attach(model, {"name": "scheduled", "rules": rules}, layers=3):
        expected = model(**batch).sample
        torch.compiler.reset()
        backend = "aot_eager" if family.name == "wan" else "eager"  # traced twice: once is enough
        found = torch.compile(model, fullgraph=True, backend=backend)(**batch).sample
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("place", [(0, 0, 1), (2, 1, 0), (1, 4, 5)], ids=str)
@torch.no_grad()
def test_tokens_lie_as_the_latents_do(family, recording, place):
    model, batch, grid = family.model(), family.inputs(1), bigain.Grid((3, 5, 6))
    changed = batch["hidden_states"].clone()
    if family.name == "ltx":
        changed.unflatten(1, grid.shape)[:, *place] += 1
    else:
        frame, height, width = place
        latents = changed if family.name == "wan" else changed.transpose(1, 2)
        latents[:, :, frame, 2 * height + 1, 2 * width] += 1
    with bigain.attach(model, recording, placement={"layers": 1, "plan_from": "block"}, shape=grid.shape):
        model(**batch)
        model(**{**batch, "hidden_states": changed})
    before, after = recording.calls
    assert before.grid == after.grid == grid
    (moved,) = ((before.tokens - after.tokens).abs() > 1e-4).any(dim=-1).nonzero().tolist()
    assert moved[1] == place[0] * 30 + place[1] * 6 + place[2]


def test_inputs_run_the_model_at_any_shape(family):
    model = family.model()
    adapter = match(model)[2]
    given = adapter.inputs(model, 2, (2, 5, 6), torch.device("cpu"), torch.float64)
    assert adapter.moment(model, (), given).shape == (2, 5, 6)
    with torch.no_grad():
        assert model(**given).sample.isfinite().all()


@pytest.mark.parametrize(("depth", "first"), [(1, 1), (3, 1), (7, 3), (28, 12)])
def test_default_layers_are_the_first_twelve_of_twenty_eight(family, depth, first):
    sites = find_sites(family.model(num_layers=depth), Placement())[3]
    assert [site.name for site in sites] == [f"{family.blocks}.{index}" for index in range(first)]
    for site in sites:
        assert set(site.parts) == set(family.parts)
        assert [site.module("self"), site.module("mlp")] == [site.block.attn1, getattr(site.block, family.mlp)]


def test_proportional_attention_is_refused(family):
    model = family.model()
    with pytest.raises(SiteError, match="Proportional attention"):
        bigain.attach(model, LGTM(0.5, cell=FRAME), placement={"proportional": True})


@pytest.mark.parametrize("name", ["wan", "ltx"])
@pytest.mark.parametrize("shape", [[3, 4], [3, 4, 0], [3, 4, 5.0], [True, 4, 5], 3, "345"], ids=str)
def test_a_size_that_is_none_is_refused(name, shape):
    with pytest.raises(SettingError, match="frames, height and width"):
        build("adapters", {"name": name, "shape": shape})
