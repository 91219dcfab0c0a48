"""The U-Net adapter: sites, grids, moments; and reduced forward passes against blocks written by hand."""

import itertools
from types import SimpleNamespace

import pytest
import torch

import bigain
from bigain.adapters.families.unet import UNetAdapter
from bigain.errors import SettingError, SiteError
from bigain.reducers.cached import Cached
from bigain.reducers.lgtm import LGTM
from tests.comparing import assert_same, assert_same_gradients

FINEST = [0, 5, 6]
PARTS = [("self",), ("self", "cross"), ("self", "mlp"), ("self", "cross", "mlp")]
MERGING = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "abm", "ratio": 0.4},
    {"name": "tome", "ratio": 0.3, "mode": "mlerp"},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}},
]
KEYS_AND_VALUES = [
    {"name": "todo", "factor": 2},
    {"name": "iekvd", "factor": 2, "alpha": {"start": 0.2, "end": 1.3}},
    {"name": "kv_merge", "reducer": {"name": "tome", "ratio": 0.5}},
    {"name": "select", "keep": 0.25},
]
HYBRID = {
    "name": "scheduled",
    "rules": [
        {"reducer": {"name": "todo", "factor": 2}, "stages": ["down*"]},
        {"reducer": {"name": "lgtm", "ratio": 0.5}, "stages": ["up_blocks.2"], "layers": [5]},
        {"reducer": {"name": "abm", "ratio": 0.4}, "stages": ["up*"]},
    ],
}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 1],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def differ(found, other):
    assert not torch.allclose(found, other, atol=2e-4)


def xl_batch(batch):
    rows, generator = len(batch["sample"]), torch.Generator().manual_seed(3)
    texts = torch.randn(rows, 8, generator=generator).double()
    return {**batch, "added_cond_kwargs": {"text_embeds": texts, "time_ids": torch.ones(rows, 6).double()}}


def test_the_blocks_by_hand_without_a_reducer_are_diffusers_own(unet, latents, by_hand):
    close(by_hand(unet, latents(), {}), unet(**latents()).sample)


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("spec", [*MERGING, HYBRID], ids=lambda spec: spec["name"])
@torch.no_grad()
def test_attached_forward_equals_the_one_by_hand(unet, latents, by_hand, spec, parts):
    reducer, batch = bigain.build_reducer(spec), latents(3, (12, 10))
    expected = by_hand(unet, batch, dict.fromkeys(parts, reducer), FINEST, seed=5)
    differ(expected, unet(**batch).sample)
    with bigain.attach(unet, reducer, placement={"parts": parts}, seed=5):
        close(unet(**batch).sample, expected)


@pytest.mark.parametrize("spec", KEYS_AND_VALUES, ids=lambda spec: spec["name"])
@torch.no_grad()
def test_keys_and_values_alone_equal_the_ones_by_hand(unet, latents, by_hand, spec):
    reducer, batch = bigain.build_reducer(spec), latents(3, (12, 10))
    expected = by_hand(unet, batch, {"self": reducer}, FINEST)
    differ(expected, unet(**batch).sample)
    with bigain.attach(unet, reducer):
        close(unet(**batch).sample, expected)


@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "linear"])
@pytest.mark.parametrize("shape", [(8, 8), (12, 10), (9, 13), (5, 8)], ids=str)
@torch.no_grad()
def test_every_block_on_latents_of_any_shape(tiny_unet, latents, by_hand, shape, linear):
    model, batch = tiny_unet(use_linear_projection=linear), latents(3, shape)
    reducer = LGTM(0.5)
    expected = by_hand(model, batch, dict.fromkeys(PARTS[-1], reducer))
    with bigain.attach(model, reducer, placement={"parts": PARTS[-1], "names": "*"}) as report:
        assert [site.grid.shape for site in report.sites[::3]] == [(n, n) for n in (8, 4, 2, 4, 4, 8, 8)]
        close(model(**batch).sample, expected)


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_rows_do_not_matter_to_each_other(unet, latents, rows):
    batch = latents(rows)
    with bigain.attach(unet, HYBRID, placement={"parts": PARTS[-1], "names": "*"}):
        together = unet(**batch).sample
        for row in range(rows):
            close(unet(**{key: value[row : row + 1] for key, value in batch.items()}).sample[0], together[row])


@pytest.mark.parametrize("parts", [PARTS[0], PARTS[-1]], ids="+".join)
@torch.no_grad()
def test_sdxl_has_two_blocks_in_a_transformer_and_none_at_full_resolution(tiny_unet, latents, by_hand, parts):
    model, batch = tiny_unet(**XL), xl_batch(latents(2, (9, 12)))
    reducer = LGTM(0.5)
    expected = by_hand(model, batch, dict.fromkeys(parts, reducer), [0, 1, 6, 7, 8, 9])
    with bigain.attach(model, reducer, placement={"parts": parts}) as report:
        names = [site.name.rpartition(".")[0] for site in report.sites[:: len(parts)]]
        assert names == [
            *(f"down_blocks.1.attentions.0.transformer_blocks.{i}" for i in range(2)),
            *(f"up_blocks.1.attentions.{n}.transformer_blocks.{i}" for n in range(2) for i in range(2)),
        ]
        close(model(**batch).sample, expected)
    with pytest.raises(SiteError, match=r"^No block meets downsample=1\. There are 10 .* with downsample 2, 4\.$"):
        bigain.attach(model, reducer, placement="sd")


@pytest.mark.parametrize("plan_from", ["block", "part"])
@torch.no_grad()
def test_plans_come_from_the_blocks_input_or_from_the_first_parts(unet, latents, by_hand, plan_from):
    reducer, batch = LGTM(0.5), latents()
    for parts in [("self", "mlp"), ("cross", "mlp")]:
        expected = by_hand(unet, batch, dict.fromkeys(parts, reducer), FINEST, plan_from=plan_from)
        other = by_hand(
            unet, batch, dict.fromkeys(parts, reducer), FINEST, plan_from={"block": "part", "part": "block"}[plan_from]
        )
        differ(expected, other)
        with bigain.attach(unet, reducer, placement={"parts": parts, "plan_from": plan_from}):
            close(unet(**batch).sample, expected)
    with bigain.attach(unet, reducer, placement={"parts": parts}):  # as published
        close(unet(**batch).sample, by_hand(unet_of(unet), batch, dict.fromkeys(parts, reducer), FINEST))


def unet_of(model):
    """A copy of an attached model's weights, with nothing attached."""
    copy = type(model)(**model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval().to(model.dtype)


@pytest.mark.parametrize("plain", ["AttnProcessor2_0", "AttnProcessor"])
@pytest.mark.parametrize("spec", [*MERGING[:2], KEYS_AND_VALUES[0], HYBRID], ids=lambda spec: spec["name"])
@torch.no_grad()
def test_proportional_attention_adds_the_logarithm_of_sizes(unet, latents, by_hand, spec, plain):
    from diffusers.models import attention_processor

    unet.set_attn_processor(getattr(attention_processor, plain)())
    reducer, batch = bigain.build_reducer(spec), latents(3, (9, 13))
    expected = by_hand(unet, batch, {"self": reducer}, FINEST, proportional=True)
    if spec["name"] != "todo":  # 9 x 13 has cells of 4, 2 and 1 tokens
        differ(expected, by_hand(unet, batch, {"self": reducer}, FINEST))
    with bigain.attach(unet, reducer, placement={"proportional": True}):
        close(unet(**batch).sample, expected)


@torch.no_grad()
def test_proportional_weights_keys_of_self_attention_alone(unet, latents, by_hand):
    reducer, batch = LGTM(0.5), latents()
    expected = by_hand(unet, batch, dict.fromkeys(PARTS[-1], reducer), FINEST, proportional=True)
    with bigain.attach(unet, reducer, placement={"parts": PARTS[-1], "proportional": True}):
        close(unet(**batch).sample, expected)


class Counting(LGTM):
    """Takes down where it planned."""

    def __init__(self):
        super().__init__(0.5)
        self.at_layers = []

    def plan(self, tokens, grid, context=None):
        self.at_layers.append(context.layer)
        return super().plan(tokens, grid, context)


@pytest.mark.parametrize(("per", "planned"), [("stage", [0, 1, 2, 3, 5]), ("forward", [0, 1, 2])])
@torch.no_grad()
def test_a_cached_plan_is_made_once_a_stage(unet, latents, per, planned):
    """Once a forward pass: blocks of one plan see one grid, and 1, 2, 4 are three."""
    inner = Counting()
    with bigain.attach(unet, Cached(inner, per=per), placement={"parts": PARTS[-1], "names": "*"}):
        for _ in range(2):
            unet(**latents())
            assert inner.at_layers == planned
            inner.at_layers.clear()


def test_sites_are_in_order_of_execution(tiny_unet, latents, shapes_of_blocks):
    """Stable Diffusion's 16 blocks: 2 in each of three encoder stages, 1 in the middle, 3 in each decoder stage."""
    down, up = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    widths = {"block_out_channels": (8,) * 4, "layers_per_block": 2}
    model = tiny_unet(down_block_types=down, up_block_types=up, **widths)
    sites, adapter = UNetAdapter().sites(model), UNetAdapter()
    for shape in [(16, 16), (9, 21)]:
        executed = shapes_of_blocks(model, latents(1, shape))
        assert [site.name for site in sites] == [name for name, _ in executed]
        assert [adapter.grid(model, shape, site).shape for site in sites] == [grid for _, grid in executed]
    assert [site.layer for site in sites] == list(range(16))
    assert [site.downsample for site in sites] == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    stages = [(stage, len(list(group))) for stage, group in itertools.groupby(site.stage for site in sites)]
    down, up = [(f"down_blocks.{i}", 2) for i in range(3)], [(f"up_blocks.{i}", 3) for i in (1, 2, 3)]
    assert stages == [*down, ("mid_block", 1), *up]
    assert adapter.default_layers(sites) == [0, 1, 13, 14, 15]
    for site in sites:
        assert model.get_submodule(site.name) is site.block
        assert {part: type(site.module(part)).__name__ for part in site.parts} == {
            "self": "Attention",
            "cross": "Attention",
            "mlp": "FeedForward",
        }
        for part in site.parts:
            assert model.get_submodule(site.path(part)) is site.module(part)


@torch.no_grad()
def test_full_resolution_self_attention_is_the_default(unet, latents, by_hand):
    with bigain.attach(unet, "lgtm", ratio=0.5) as report:
        assert [site.name for site in report.sites] == [
            f"{stage}.transformer_blocks.0.attn1"
            for stage in ("down_blocks.0.attentions.0", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")
        ]
        assert report.family == "Stable Diffusion (diffusers UNet2DConditionModel)"
        found = unet(**latents()).sample
    close(found, by_hand(unet, latents(), {"self": LGTM(0.5)}, FINEST))


@pytest.mark.parametrize("value", [500, 500.0, torch.tensor(500), torch.full((3,), 500), torch.tensor(500.0)], ids=repr)
@torch.no_grad()
def test_a_timestep_may_come_as_a_number_or_a_tensor(unet, latents, value):
    batch = latents()
    batch["timestep"] = torch.full((3,), 500)
    rule = {"reducer": {"name": "tome", "ratio": 0.5}, "timesteps": [500, 501]}
    spec = {"name": "scheduled", "rules": [rule], "otherwise": {"name": "lgtm", "ratio": 0.25}}
    with bigain.attach(unet, "tome", ratio=0.5):
        expected = unet(**batch).sample
        close(unet(**{**batch, "timestep": value}).sample, expected)
    with bigain.attach(unet, spec):
        close(unet(**{**batch, "timestep": value}).sample, expected)


@torch.no_grad()
def test_positional_arguments_are_understood(unet, latents):
    batch = latents()
    with bigain.attach(unet, "tome", ratio=0.5):
        expected = unet(**batch).sample
        assert_same(unet(*batch.values()).sample, expected)
        assert_same(unet(*batch.values(), return_dict=False)[0], expected)
        assert_same(unet(batch["sample"], 500, batch["encoder_hidden_states"]).sample[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("placement", [{}, {"proportional": True}], ids=str)
@torch.no_grad()
def test_half_precision_models(unet, latents, dtype, placement):
    plain, batch = unet(**latents()).sample, latents()
    unet.to(dtype)
    batch |= {key: batch[key].to(dtype) for key in ("sample", "encoder_hidden_states")}
    with bigain.attach(unet, HYBRID, placement={"parts": PARTS[-1], **placement}):
        output = unet(**batch).sample
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert (output.float() - plain).abs().mean() < 0.5 * plain.abs().mean()


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_detaching_leaves_no_trace(unet, latents, snapshot, parts):
    before = snapshot(unet, latents())
    report = bigain.attach(unet, HYBRID, placement={"parts": parts, "names": "*"})
    with torch.no_grad():
        differ(unet(**latents()).sample, before.output)
    report.detach()
    before.check(unet)


@torch.no_grad()
def test_the_unet_inside_a_pipeline_is_found(unet, latents, by_hand):
    pipeline = SimpleNamespace(unet=unet, vae=torch.nn.Linear(2, 2), scheduler=object())
    expected = by_hand(unet, latents(), {"self": LGTM(0.5)}, FINEST)
    with bigain.attach(pipeline, "lgtm", ratio=0.5):
        close(unet(**latents()).sample, expected)


def test_gradients_reach_every_parameter_that_they_reach_without(unet, latents):
    def reached():
        unet.zero_grad(set_to_none=True)
        unet(**latents()).sample.square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in unet.parameters())
        return {name for name, p in unet.named_parameters() if p.grad is not None and p.grad.any()}

    plain = reached()
    for placement in [{"parts": PARTS[-1]}, {"proportional": True}]:
        with bigain.attach(unet, HYBRID, placement={**placement, "names": "*"}):
            assert reached() == plain


@pytest.mark.parametrize("spec", [{"name": "tome", "ratio": 0.5}, HYBRID], ids=str)
def test_gradient_checkpointing_gives_the_gradients_there_are_without(unet, latents, spec):
    """Blocks run again in backward, where the timestep and the random draw are not known."""
    unet.train()

    def gradients():
        unet.zero_grad()
        with bigain.attach(unet, spec, placement={"parts": PARTS[-1], "names": "*"}):
            unet(**latents()).sample.square().sum().backward()
        return [parameter.grad for parameter in unet.parameters()]

    expected = gradients()
    unet.enable_gradient_checkpointing()
    assert_same_gradients(gradients(), expected)


def test_masks_of_text_reach_cross_attention_and_masks_of_tokens_are_refused(unet, latents):
    batch = latents()
    batch["encoder_attention_mask"] = torch.tensor([[1, 1, 0, 0, 1]] * 3)
    without = {**latents(), "encoder_hidden_states": latents()["encoder_hidden_states"][:, [0, 1, 4]]}
    with torch.no_grad(), bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": PARTS[-1]}):
        close(unet(**batch).sample, unet(**without).sample)
        with pytest.raises(SiteError, match=r"down_blocks\.0\..*\.attn1 is reduced as self-attention"):
            unet(**latents(), attention_mask=torch.ones(3, 64))


class Louder:
    """A processor with an argument of its own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, strength=1.0):
        from diffusers.models.attention_processor import AttnProcessor2_0

        return strength * AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)


@torch.no_grad()
def test_arguments_of_a_processor_of_ones_own_still_reach_it(unet, latents):
    """diffusers drops those that the signature of the processor does not name."""
    unet.set_attn_processor(Louder())
    louder = {**latents(), "cross_attention_kwargs": {"strength": 3.0}}
    expected = unet(**louder).sample
    differ(expected, unet(**latents()).sample)
    with bigain.attach(unet, "identity", placement={"parts": PARTS[-1], "names": "*"}):
        assert_same(unet(**louder).sample, expected)


def test_a_unet_without_transformers_or_without_a_size_is_refused_in_a_sentence(tiny_unet):
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    model = tiny_unet(**blocks, block_out_channels=(8, 8), mid_block_type=None)
    with pytest.raises(SiteError, match=r"^The model has no transformer block that a reducer could work in\.$"):
        bigain.attach(model, "lgtm", ratio=0.5)
    with pytest.raises(SiteError, match=r"no sample_size, .*register_to_config\(sample_size=64\)"):
        bigain.attach(tiny_unet(sample_size=None), "lgtm", ratio=0.5)


def test_an_impossible_ratio_is_refused_before_anything_is_touched(unet, latents, snapshot):
    before = snapshot(unet, latents())
    with pytest.raises(SettingError, match=r"at most 48 \(ratio 0\.75\)"):
        bigain.attach(unet, "lgtm", ratio=0.8)
    before.check(unet)


@torch.no_grad()
def test_made_up_inputs_fit(unet, tiny_unet):
    for model in (unet, tiny_unet(**XL)):
        given = UNetAdapter().inputs(model, 2, (12, 10), torch.device("cpu"), torch.float64)
        assert model(**given).sample.shape == (2, 3, 12, 10)
        moment = UNetAdapter().moment(model, (), given)
        assert moment.shape == (12, 10)
        assert moment.timestep is given["timestep"]


def test_it_matches_unets_alone(unet, dit):
    assert UNetAdapter().matches(unet)
    assert not UNetAdapter().matches(dit)
    assert not UNetAdapter().matches(unet.mid_block)


COMPILED = [
    (MERGING[3], {"parts": PARTS[-1]}),
    (
        {
            "name": "scheduled",
            "rules": [{"reducer": {"name": "iekvd", "factor": 2}, "stages": "down*"}],
            "otherwise": {"name": "lgtm", "ratio": 0.5},
        },
        {"parts": PARTS[0], "proportional": True},
    ),
]


@pytest.fixture
def one_stage(tiny_unet):
    """Three blocks, for the compiler."""
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    torch._dynamo.reset()
    return tiny_unet(**blocks, block_out_channels=(8,), mid_block_type=None)


@pytest.mark.parametrize(("spec", "placement"), COMPILED, ids=["cached", "hybrid"])
@torch.no_grad()
def test_compiles_into_one_graph(one_stage, latents, spec, placement):
    batch, later = latents(), latents(seed=2)
    later["timestep"] = later["timestep"] - 15
    backend = "aot_eager" if spec["name"] == "cached" else "eager"
    with bigain.attach(one_stage, spec, placement=placement):
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(one_stage, fullgraph=True, dynamic=False, backend=backend)
        close(compiled(**batch).sample, one_stage(**batch).sample)
        close(compiled(**later).sample, one_stage(**later).sample)
        counters = torch._dynamo.utils.counters
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_compiles_where_the_timestep_is_a_number(one_stage, latents):
    rule = {"reducer": {"name": "lgtm", "ratio": 0.25}, "timesteps": [500, 1000]}
    spec = {"name": "scheduled", "rules": [rule], "otherwise": {"name": "lgtm", "ratio": 0.5}}
    with bigain.attach(one_stage, spec, layers=1):
        compiled = torch.compile(one_stage, fullgraph=True, dynamic=False, backend="eager")
        batch = {**latents(), "timestep": 20}
        close(compiled(**batch).sample, one_stage(**batch).sample)
