"""Placements: which blocks and parts are taken, what is refused, and that the parts of a block share a plan."""

import copy
import pickle
import re

import pytest
import torch

import bigain
from bigain.adapters.attach import find_sites
from bigain.adapters.families.unet import UNetAdapter
from bigain.adapters.placement import PRESETS, Placement
from bigain.adapters.report import SiteReport
from bigain.errors import SettingError, SiteError
from bigain.reducers.lgtm import LGTM
from bigain.reducers.todo import ToDo
from bigain.reducers.tome import ToMe
from tests.comparing import assert_same, reducing_hooks

UNET = [
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "down_blocks.1.attentions.0.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0",
    "up_blocks.1.attentions.0.transformer_blocks.0",
    "up_blocks.1.attentions.1.transformer_blocks.0",
    "up_blocks.2.attentions.0.transformer_blocks.0",
    "up_blocks.2.attentions.1.transformer_blocks.0",
]
MODULES = {"self": "attn1", "cross": "attn2", "mlp": "ff"}
ALL = ("self", "cross", "mlp")


class StopError(Exception):
    pass


def fail(*_):
    raise StopError


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def refusal(model, reducer="lgtm", settings=None, **wanted):
    """Attach, and return what it is refused with."""
    settings = {"ratio": 0.5} if settings is None else settings
    with pytest.raises((SettingError, SiteError)) as caught:
        bigain.attach(model, reducer, **wanted, **settings)
    return type(caught.value), str(caught.value)


SELECTIONS = [
    ({}, [0, 5, 6]),
    ({"layers": 1}, [0]),
    ({"layers": 3}, [0, 1, 2]),
    ({"layers": [6, 2]}, [2, 6]),
    ({"layers": range(2, 5)}, [2, 3, 4]),
    ({"names": "down_blocks.*"}, [0, 1]),
    ({"names": "*.transformer_blocks.0"}, [0, 1, 2, 3, 4, 5, 6]),
    ({"names": ["mid_block*", "up_blocks.[2-9]*"]}, [2, 5, 6]),
    ({"names": "up_blocks.?.attentions.1.*"}, [4, 6]),
    ({"names": UNET[3]}, [3]),
    ({"downsample": 1}, [0, 5, 6]),
    ({"downsample": 2}, [1, 3, 4]),
    ({"downsample": [1, 2]}, [0, 1, 3, 4, 5, 6]),
    ({"downsample": (4,)}, [2]),
    ({"downsample": 2, "names": "up*"}, [3, 4]),
    ({"downsample": 1, "names": "down*"}, [0]),
    ({"layers": 4, "downsample": 2}, [1, 3]),
    ({"layers": [0, 1, 5], "names": ["*attentions.0*"], "downsample": [1]}, [0, 5]),
]


@pytest.mark.parametrize(("given", "taken"), SELECTIONS, ids=str)
@pytest.mark.parametrize("make", [dict, Placement], ids=["mapping", "Placement"])
def test_blocks_meet_every_condition(unet, make, given, taken):
    with bigain.attach(unet, "lgtm", ratio=0.5, placement=make(**given)) as report:
        assert [site.name for site in report.sites] == [f"{UNET[index]}.attn1" for index in taken]
        held = {name for name, module in unet.named_modules() if name.endswith("attn1") and reducing_hooks(module)}
        assert held == {f"{UNET[index]}.attn1" for index in taken}


def test_names_are_case_sensitive_on_every_system(unet):
    assert refusal(unet, placement={"names": "Down*"})[0] is SiteError


ON_UNET = {
    "sd": ([0, 5, 6], ["self"]),
    "sd_encoder": ([0], ["self"]),
    "sd_sa_ca": ([0, 5, 6], ["self", "cross"]),
    "sd_sa_mlp": ([0, 5, 6], ["self", "mlp"]),
    "sd_sa_ca_mlp": ([0, 5, 6], ["self", "cross", "mlp"]),
}
ON_DIT = {"dit_xl_2": list(range(12)), "dit_xl_2_released": [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]}


@pytest.mark.parametrize("name", ON_UNET)
def test_presets_of_stable_diffusion(unet, name):
    layers, parts = ON_UNET[name]
    expected = [f"{UNET[layer]}.{MODULES[part]}" for layer in layers for part in parts]
    for given in (name, {"preset": name}, Placement(preset=name)):
        with bigain.attach(unet, "lgtm", ratio=0.5, placement=given) as report:
            assert [site.name for site in report.sites] == expected


@pytest.mark.parametrize("name", ON_DIT)
def test_presets_of_dit_xl_2(tiny_dit, name):
    model = tiny_dit(num_layers=28)
    with bigain.attach(model, "lgtm", ratio=0.5, placement=name) as report:
        assert [site.name for site in report.sites] == [f"transformer_blocks.{index}.attn1" for index in ON_DIT[name]]


def test_there_are_no_other_presets_and_each_tells_its_source():
    assert set(PRESETS) == {*ON_UNET, *ON_DIT}
    assert all(preset.source and preset.placement.preset is None for preset in PRESETS.values())


@pytest.mark.parametrize("name", [*ON_UNET, *ON_DIT])
def test_a_preset_of_another_family_or_size_is_refused(dit, unet, batch, latents, snapshot, name):
    wrong, given, adapter = (dit, batch, "dit") if name in ON_UNET else (unet, latents(), "unet")
    before, blocks = snapshot(wrong, given), {"dit": 4, "unet": 7}[adapter]
    meant = "'unet'" if name in ON_UNET else "'dit' of 28 blocks"
    assert refusal(wrong, placement=name) == (
        SiteError,
        f"Placement {name!r} is for models of the adapter {meant}; "
        f"this one has the adapter {adapter!r} and {blocks} blocks.",
    )
    before.check(wrong)
    if name in ON_DIT:
        assert "'dit' of 28 blocks; this one has the adapter 'dit' and 4 blocks." in refusal(dit, placement=name)[1]


FIELDS = "parts, layers, names, downsample, plan_from, proportional, min_tokens, preset, progressive"
WRONG_SETTINGS = [
    ({"parts": ["self", "kv"]}, "parts are one or more of self, cross, mlp, each once; got ['self', 'kv']."),
    ({"parts": "attn"}, "parts are one or more of self, cross, mlp, each once; got 'attn'."),
    ({"parts": []}, "parts are one or more of self, cross, mlp, each once; got []."),
    ({"parts": ["self", "self"]}, "parts are one or more of self, cross, mlp, each once; got ['self', 'self']."),
    ({"plan_from": "input"}, "plan_from is one of block, part, keys; got 'input'."),
    ("sdxl", f"There is no placement 'sdxl'; there are {', '.join(PRESETS)}."),
    ({"preset": "xl"}, f"There is no placement 'xl'; there are {', '.join(PRESETS)}."),
    (
        {"preset": "sd", "layers": 2},
        "preset='sd' says where to work; give none of parts, layers, names, downsample besides.",
    ),
    (
        {"parts": ["cross", "mlp"], "proportional": True},
        "proportional weights the keys of self-attention; parts are cross, mlp.",
    ),
    (
        {"blocks": 3},
        f"A placement has {FIELDS}: Placement.__init__() got an unexpected keyword argument 'blocks'",
    ),
    ({"names": 5}, "names of a placement: give str, one or a list; got 5."),
    ({"names": ["down*", 5]}, "names of a placement: give str, one or a list; got ['down*', 5]."),
    ({"downsample": "1"}, "downsample of a placement: give int, one or a list; got '1'."),
    ({"downsample": 1.5}, "downsample of a placement: give int, one or a list; got 1.5."),
    ({"layers": "12"}, "layers of a placement: give int, one or a list; got '12'."),
]


@pytest.mark.parametrize(("given", "told"), WRONG_SETTINGS, ids=str)
def test_impossible_settings_are_refused_in_a_sentence(unet, latents, snapshot, given, told):
    before = snapshot(unet, latents())
    assert refusal(unet, placement=given) == (SettingError, told)
    before.check(unet)


def test_layers_beside_a_placement_are_refused(unet, latents, snapshot):
    before = snapshot(unet, latents())
    for placement in (Placement(), "sd", {"downsample": 1}):
        assert refusal(unet, placement=placement, layers=2) == (
            SettingError,
            "Give layers or a placement, not both: a placement has layers of its own.",
        )
    before.check(unet)


HAS = f"There are 7 blocks, {UNET[0]} to {UNET[6]}, with downsample 1, 2, 4."
NOWHERE = [
    ({"names": "encoder.*"}, f"No block meets names='encoder.*'. {HAS}"),
    ({"names": []}, f"No block meets names=(). {HAS}"),
    ({"downsample": 8}, f"No block meets downsample=8. {HAS}"),
    (
        {"downsample": [1], "names": "mid*", "parts": "mlp"},
        f"No block meets parts=('mlp',), names='mid*', downsample=(1,). {HAS}",
    ),
    (
        {"layers": [7]},
        "layers=(7,) was asked for; the model has blocks 0 to 6: give indices among them, "
        "or how many of the first (1 to 7).",
    ),
]


@pytest.mark.parametrize(("given", "told"), NOWHERE, ids=str)
def test_blocks_that_there_are_not_are_refused_with_those_there_are(unet, latents, snapshot, given, told):
    before = snapshot(unet, latents())
    assert refusal(unet, placement=given) == (SiteError, told)
    before.check(unet)


def test_parts_that_no_block_has_are_refused(dit, batch, snapshot):
    before = snapshot(dit, batch)
    assert refusal(dit, placement={"parts": ["self", "cross"], "layers": 2}) == (
        SiteError,
        "None of the 2 blocks that parts=('self', 'cross'), layers=2 names has 'cross'; they have mlp, self.",
    )
    before.check(dit)


def test_where_some_blocks_lack_a_part_the_others_are_taken(tiny_unet, latents, by_hand):
    """With `only_cross_attention`, the first attention of a block looks at the text, too."""
    model = tiny_unet(only_cross_attention=[False, True, False])
    reducer = LGTM(0.5)
    placement = {"parts": ["self", "mlp"], "names": "*"}
    with bigain.attach(model, reducer, placement=placement) as report:
        taken = [site.name for site in report.sites]
        assert taken == [
            f"{name}.{part}"
            for i, name in enumerate(UNET)
            for part in ("attn1", "ff")
            if i in (0, 2, 5, 6) or part == "ff"
        ]
        assert model(**latents()).sample.isfinite().all()
    told = "None of the 1 blocks that names='down_blocks.1*' names has 'self'; they have cross, mlp."
    assert refusal(model, placement={"names": "down_blocks.1*"}) == (SiteError, told)


@pytest.mark.parametrize("parts", [["cross"], ["mlp"], ["self", "cross", "mlp"]], ids="+".join)
@pytest.mark.parametrize("spec", [{"name": "todo", "factor": 2}, {"name": "kv_merge", "reducer": LGTM(0.5)}])
def test_reducers_of_keys_and_values_are_refused_where_there_are_none_to_reduce(unet, latents, snapshot, spec, parts):
    before, reducer = snapshot(unet, latents()), bigain.build_reducer(spec)
    others = ", ".join(part for part in parts if part != "self")
    assert refusal(unet, reducer, {}, placement={"parts": parts}) == (
        SettingError,
        f"{reducer!r} shrinks keys and values of self-attention only; it can do nothing for {others}.",
    )
    before.check(unet)


def test_the_report_has_a_row_for_each_part(unet):
    with bigain.attach(unet, "lgtm", ratio=0.25, placement={"parts": ALL, "layers": [1, 6]}) as report:
        assert report.sites == tuple(
            SiteReport(f"{UNET[layer]}.{MODULES[part]}", bigain.Grid((side, side)), side * side, side * side * 3 // 4)
            for layer, side in ((1, 4), (6, 8))
            for part in ALL
        )
        assert "on Stable Diffusion (diffusers UNet2DConditionModel): 6 sites" in " ".join(str(report).split())
        rows = [line for line in str(report).splitlines() if line.endswith(" tokens")]
        assert rows[1].split() == [f"{UNET[1]}.attn2", "4x4", "16", "->", "12", "tokens"]


@pytest.fixture
def watched():
    """Take down what a module is given, before anything attached later shortens it."""

    def watch(module):
        seen = []
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        return seen

    return watch


@pytest.mark.parametrize("parts", [("self",), ("cross", "mlp"), ALL, ("mlp", "self")], ids="+".join)
@pytest.mark.parametrize("plan_from", [None, "block", "part"])
@torch.no_grad()
def test_the_parts_of_a_block_share_one_plan(unet, latents, recording, watched, parts, plan_from):
    first = next(MODULES[part] for part in ALL if part in parts)
    blocks = [unet.get_submodule(UNET[layer]) for layer in (0, 5)]
    inputs = [watched(block if plan_from != "part" else getattr(block, first)) for block in blocks]
    with bigain.attach(unet, recording, placement={"parts": parts, "layers": [0, 5], "plan_from": plan_from}):
        for number in (1, 2):
            unet(**latents())
            assert len(recording.calls) == 2 * number
    given = [tokens for both in zip(*inputs, strict=True) for tokens in both]
    for call, layer, tokens in zip(recording.calls, (0, 5, 0, 5), given, strict=True):
        assert torch.equal(call.tokens, tokens)
        assert (call.layer, call.stage) == (layer, "down_blocks.0" if layer == 0 else "up_blocks.2")
        assert call.timestep.tolist() == [20, 500, 980]
    assert recording.calls[0].cache is recording.calls[1].cache
    assert recording.calls[1].cache is not recording.calls[2].cache


@pytest.mark.parametrize("parts", [("self", "mlp"), ("mlp",)], ids="+".join)
@pytest.mark.parametrize("plan_from", [None, "block", "part"])
@torch.no_grad()
def test_in_dit_plans_come_from_the_first_part_unless_told(dit, batch, recording, watched, parts, plan_from):
    block = dit.transformer_blocks[1]
    inputs = watched(block if plan_from == "block" else getattr(block, MODULES[parts[0]]))
    with bigain.attach(dit, recording, placement={"parts": parts, "layers": [1], "plan_from": plan_from}):
        dit(**batch)
    (call,) = recording.calls
    assert torch.equal(call.tokens, inputs[0])
    assert (call.layer, call.stage, call.grid.shape) == (1, None, (8, 8))


@pytest.mark.parametrize("parts", [("mlp",), ("self", "mlp")], ids="+".join)
@pytest.mark.parametrize("plan_from", ["part", "block"])
@torch.no_grad()
def test_dit_with_its_mlp_reduced_equals_the_one_by_hand(dit, batch, by_hand, parts, plan_from):
    dit, batch = dit.double(), {**batch, "hidden_states": batch["hidden_states"].double()}
    for reducer in (LGTM(0.5), ToMe(0.3)):
        expected = by_hand(dit, batch, dict.fromkeys(parts, reducer), [0, 2], plan_from=plan_from)
        with bigain.attach(dit, reducer, placement={"parts": parts, "layers": [0, 2], "plan_from": plan_from}):
            close(dit(**batch).sample, expected)


@torch.no_grad()
def test_proportional_attention_in_dit_equals_the_one_by_hand(dit, batch, by_hand):
    dit, batch = dit.double(), {**batch, "hidden_states": batch["hidden_states"].double()}
    for reducer in (LGTM(0.5), ToDo(3), bigain.build_reducer("abm", ratio=0.4)):
        expected = by_hand(dit, batch, {"self": reducer}, [0, 1], plan_from="part", proportional=True)
        assert not torch.allclose(expected, by_hand(dit, batch, {"self": reducer}, [0, 1], plan_from="part"), atol=1e-3)
        with bigain.attach(dit, reducer, placement={"layers": 2, "proportional": True}):
            close(dit(**batch).sample, expected)


def test_proportional_takes_the_place_of_plain_processors_only(unet, latents, snapshot):
    class Special:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return hidden_states

    proportional = {"proportional": True}
    unet.get_submodule(UNET[5]).attn1.set_processor(Special())
    before = snapshot(unet, latents())
    kind, told = refusal(unet, placement=proportional)
    assert kind is SiteError
    assert told == (
        "Proportional attention takes the place of AttnProcessor and AttnProcessor2_0; "
        f"the processor of {UNET[5]}.attn1 is a Special. Set a plain one, or leave proportional off."
    )
    before.check(unet)
    bigain.attach(unet, "lgtm", ratio=0.5).detach()
    unet.get_submodule(UNET[5]).attn1.set_processor(type(unet.get_submodule(UNET[0]).attn1.processor)())
    unet.get_submodule(UNET[6]).attn1.residual_connection = True
    told = f"Proportional attention does not know the norms and residuals inside {UNET[6]}.attn1."
    assert refusal(unet, placement=proportional) == (SiteError, told)


def test_an_mlp_fed_in_chunks_is_refused(dit, batch, snapshot):
    dit.transformer_blocks[1].set_chunk_feed_forward(2, 1)
    before = snapshot(dit, batch)
    kind, told = refusal(dit, placement={"parts": ["self", "mlp"], "layers": 2})
    assert kind is SiteError
    assert told.startswith("transformer_blocks.1 feeds its MLP in chunks, which hold no whole grid;")
    before.check(dit)
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2):  # attention alone is not concerned
        assert dit(**batch).sample.isfinite().all()


def test_fused_projections_and_fewer_keys_do_not_go_together(unet, latents, snapshot):
    unet.fuse_qkv_projections()
    before = snapshot(unet, latents())
    kind, told = refusal(unet, ToDo(2), {})
    assert kind is SiteError
    assert told.startswith(f"{UNET[0]}.attn1 projects queries, keys and values at once")
    before.check(unet)
    with torch.no_grad(), bigain.attach(unet, "lgtm", ratio=0.5):
        fused = unet(**latents()).sample
    unet.unfuse_qkv_projections()
    with torch.no_grad(), bigain.attach(unet, "lgtm", ratio=0.5):
        close(unet(**latents()).sample, fused)


@pytest.mark.parametrize("parts", [("mlp",), ("cross",), ALL], ids="+".join)
@torch.no_grad()
def test_attaching_a_part_twice_raises_and_leaves_the_first_at_work(unet, latents, snapshot, parts):
    before = snapshot(unet, latents())
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": parts, "layers": [0]}):
        expected = unet(**latents()).sample
        taken = ", ".join(f"{UNET[0]}.{MODULES[part]}" for part in parts)
        assert refusal(unet, "tome", placement={"parts": parts, "layers": 2}) == (
            SiteError,
            f"A reducer is attached already, at {taken}. Detach it first.",
        )
        assert_same(unet(**latents()).sample, expected)
    before.check(unet)


@pytest.mark.parametrize("first_detached", [0, 1])
@torch.no_grad()
def test_two_reducers_in_different_parts_of_the_same_blocks_both_work(unet, latents, snapshot, by_hand, first_detached):
    """Each plans for itself from the block's input; they detach in any order."""
    before, batch = snapshot(unet, latents()), latents()
    reducers = {"self": LGTM(0.5), "mlp": ToMe(0.3), "cross": ToMe(0.3)}
    both = by_hand(unet, batch, reducers, [0, 5, 6], seed=3)
    alone = [by_hand(unet, batch, {"self": reducers["self"]}, [0, 5, 6])]
    alone.append(by_hand(unet, batch, {part: reducers[part] for part in ("mlp", "cross")}, [0, 5, 6], seed=3))
    reports = [
        bigain.attach(unet, reducers["self"], placement={"parts": "self"}, seed=3),
        bigain.attach(unet, reducers["mlp"], placement={"parts": ["cross", "mlp"]}, seed=3),
    ]
    close(unet(**batch).sample, both)
    reports[first_detached].detach()
    close(unet(**batch).sample, alone[1 - first_detached])
    reports[1 - first_detached].detach()
    before.check(unet)


def planner_of(unet, name=UNET[3]):
    return next(iter(unet.get_submodule(name)._forward_pre_hooks.values())).__self__


@pytest.mark.parametrize("inside", ["attn1.to_out.0", "attn2.to_q", "ff.net.0"])
@torch.no_grad()
def test_an_exception_inside_a_part_leaves_no_trace(unet, latents, snapshot, inside):
    before = snapshot(unet, latents())
    with bigain.attach(unet, "tome", ratio=0.5, placement={"parts": ALL, "names": "*"}) as report:
        expected = unet(**latents()).sample
        broken = unet.get_submodule(f"{UNET[3]}.{inside}").register_forward_pre_hook(fail)
        with pytest.raises(StopError):
            unet(**latents(1, (12, 12)))
        assert report._attachment.current is None
        assert planner_of(unet)._visit is None
        broken.remove()
        assert_same(unet(**latents()).sample, expected)
        broken = unet.get_submodule(f"{UNET[3]}.{inside}").register_forward_pre_hook(fail)
        with pytest.raises(StopError):
            unet(**latents())
    broken.remove()
    before.check(unet)


@torch.no_grad()
def test_called_by_themselves_parts_and_blocks_plan_anew_each_time(unet, noise):
    """No pass is in progress: there is nothing that the next call may find."""
    block = unet.get_submodule(UNET[0])
    one, other, text = noise(2, 64, 8).double(), noise(2, 64, 8, seed=1).double(), noise(2, 5, 24).double()
    spec = {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}}
    with bigain.attach(unet, spec, placement={"parts": ALL}) as report:
        expected = [block(x, encoder_hidden_states=text) for x in (one, other)]
        assert planner_of(unet, UNET[0])._visit is None
        assert report._attachment.current is None
        block.attn1(one)
        assert_same(block(other, encoder_hidden_states=text), expected[1])
        assert_same(block(one, encoder_hidden_states=text), expected[0])
    with bigain.attach(unet, "lgtm", ratio=0.5):
        assert_same(block.attn1(other), attn1_by_hand(block, other))


def attn1_by_hand(block, tokens):
    from diffusers.models.attention_processor import AttnProcessor2_0

    plan = LGTM(0.5).plan(tokens, bigain.Grid((8, 8)))
    return plan.restore(AttnProcessor2_0()(block.attn1, plan.reduce(tokens)))


@torch.no_grad()
def test_a_model_with_reducers_attached_can_be_copied_and_pickled(unet, latents):
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": ALL}):
        expected = unet(**latents()).sample
        others = copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))
    assert not torch.allclose(unet(**latents()).sample, expected, atol=1e-3)
    for other in others:
        assert_same(other(**latents()).sample, expected)
        assert refusal(other)[1].startswith("A reducer is attached already, at down_blocks.0")


def test_a_placement_shows_what_is_not_its_default():
    assert str(Placement()) == "default"
    shown = str(Placement(parts="mlp", downsample=[1, 2], plan_from="part", proportional=False))
    assert shown == "parts=('mlp',), downsample=(1, 2), plan_from='part'"
    assert re.match(r"preset='sd'$", str(Placement(preset="sd")))


@pytest.mark.parametrize(
    ("given", "told"), [({"names": ["down_blocks.*", "upp*"]}, "'upp*'"), ({"downsample": [1, 16]}, "16")], ids=str
)
def test_a_pattern_that_meets_no_block_is_refused_among_others_that_do(unet, given, told):
    with pytest.raises(SiteError, match=rf"^No block meets {re.escape(told)} of "):
        bigain.attach(unet, "lgtm", ratio=0.5, placement=given)


def test_a_preset_goes_with_how_plans_are_made(unet):
    placement = bigain.Placement(preset="sd", proportional=True, plan_from="part")
    _, _, found, _ = find_sites(unet, placement)
    assert found == bigain.Placement(downsample=1, proportional=True, plan_from="part")


def test_lists_and_tuples_are_one():
    assert bigain.Placement(layers=[0, 2]) == bigain.Placement(layers=(0, 2))
    assert len({bigain.Placement(names=["a*"]), bigain.Placement(names=("a*",))}) == 1


def test_another_shape_than_the_configured_one_is_what_is_checked_and_reported(unet):
    with bigain.attach(unet, "lgtm", ratio=0.5, placement="sd", shape=(10, 6)) as report:
        assert {(site.before, site.after) for site in report.sites} == {(60, 30)}


class OwnUNet(UNetAdapter):
    family = "a U-Net of one's own"


@pytest.mark.parametrize(
    "adapter", [UNetAdapter(), {"class_path": "bigain.adapters.families.unet.UNetAdapter"}, OwnUNet(), "unet"]
)
def test_a_preset_goes_with_an_adapter_however_it_is_given(unet, adapter):
    with bigain.attach(unet, "lgtm", ratio=0.5, placement="sd", adapter=adapter) as report:
        assert report.sites
    with pytest.raises(SiteError, match="this one has the adapter 'unet'"):
        bigain.attach(unet, "lgtm", ratio=0.5, placement="dit_xl_2", adapter=adapter)
