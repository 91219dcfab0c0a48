"""SD3 and SD3.5: blocks written out by hand, each row by itself; processors, pipelines, compilation."""

import copy
import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bigain
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context
from bigain.testing import Specimen, parametrize_with_checks
from tests.comparing import assert_same

SHAPE = (4, 6)
MERGING = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "tome", "ratio": 0.4},
    {"name": "abm", "ratio": 0.5},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}, "per": "forward"},
]
SHRINKING = [{"name": "iekvd", "factor": 2}, {"name": "todo", "factor": 2}, {"name": "select", "keep": 0.5}]


def name_of(reducer):
    return reducer["name"]


def randomized(model, std=0.2):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=std)
    # In double precision, two ways to the same tokens do not differ by what could decide which tokens are merged.
    return model.eval().double()


def tiny_sd3(**changes):
    """Three blocks: the first two have a second attention, the last no MLP for the text."""
    from diffusers import SD3Transformer2DModel

    shape = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "num_layers": 3, "pos_embed_max_size": 16}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    kinds = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
    return randomized(SD3Transformer2DModel(**shape | heads | text | kinds | changes))


@pytest.fixture
def sd3():
    return tiny_sd3()


@pytest.fixture
def batch():
    """Three images of 4 x 6 tokens and their texts, each at a timestep of its own."""
    noise = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(3, 3, 8, 12, generator=noise).double(),
        "encoder_hidden_states": torch.randn(3, 5, 12, generator=noise).double(),
        "pooled_projections": torch.randn(3, 10, generator=noise).double(),
        "timestep": torch.tensor([20.0, 500.0, 980.0], dtype=torch.float64),
    }


def run(model, batch):
    with torch.no_grad():
        return model(**batch, return_dict=False)[0]


def rms(norm, heads):
    return heads * torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + norm.eps) * norm.weight


def textbook(queries, keys, values):
    """Attend with softmax, all [H, N, D]."""
    weights = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ values).transpose(0, 1).flatten(1)


def attend(attn, plan, image, text=None):
    """Attend over one row's image, [N, C], and text: reduced as planned, the image restored."""

    def heads(layer, tokens, norm=None):
        split = layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        return split if norm is None else rms(norm, split)

    reduce = (lambda x: x) if plan is None else (lambda x: plan.reduce(x[None])[0])
    short = reduce(image)
    asking = image if plan is not None and plan.kind == "kv" else short
    queries, keys = heads(attn.to_q, asking, attn.norm_q), heads(attn.to_k, short, attn.norm_k)
    values = heads(attn.to_v, short)
    if text is not None:
        queries = torch.cat([queries, heads(attn.add_q_proj, text, attn.norm_added_q)], dim=1)
        keys = torch.cat([keys, heads(attn.add_k_proj, text, attn.norm_added_k)], dim=1)
        values = torch.cat([values, heads(attn.add_v_proj, text)], dim=1)
    mixed = textbook(queries, keys, values)
    done = attn.to_out[0](mixed[: len(asking)])
    if plan is not None and plan.kind == "merge":
        done = plan.restore(done[None])[0]
    told = mixed[len(asking) :]
    return done, told if attn.context_pre_only else attn.to_add_out(told) if text is not None else None


def modulated(tokens, shift, scale):
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def block_by_hand(block, make_plan, parts, image, text, temb):
    """One row through a block of SD3 (figure 2 of Esser et al., 2024), or of SD3.5 with its second attention."""
    of_image = block.norm1.linear(F.silu(temb)).chunk(9 if block.use_dual_attention else 6)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = of_image[:6]
    normed = modulated(image, shift_a, scale_a)
    plan = make_plan(normed) if "self" in parts else None
    if block.context_pre_only:
        scale, shift = block.norm1_context.linear(F.silu(temb)).chunk(2)
        text_normed = modulated(text, shift, scale)
    else:
        text_shift, text_scale, *of_text = block.norm1_context.linear(F.silu(temb)).chunk(6)
        text_normed = modulated(text, text_shift, text_scale)
    image_added, text_added = attend(block.attn, plan, normed, text_normed)
    before, image = image, image + gate_a * image_added
    if block.use_dual_attention:
        shift, scale, gate = of_image[6:]
        image = image + gate * attend(block.attn2, plan, modulated(before, shift, scale))[0]
    normed = modulated(image, shift_m, scale_m)
    if "mlp" in parts:
        plan = plan or make_plan(normed)
        added = plan.restore(block.ff(plan.reduce(normed[None])))[0]
    else:
        added = block.ff(normed)
    image = image + gate_m * added
    if block.context_pre_only:
        return None, image
    gate, shift, scale, gate_m = of_text
    text = text + gate * text_added
    return text + gate_m * block.ff_context(modulated(text, shift, scale)), image


def by_hand(model, batch, reducer, parts=("self",), share=1):
    """Run a copy of the model whose blocks are written by hand, each row by itself.

    Plans are made from what the first part is given, the mean of `share` consecutive rows.
    """
    model, rows = copy.deepcopy(model), len(batch["timestep"])
    caches = [{} for _ in range(rows)]

    def replace(layer, block):
        def forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None):
            def passed(first):
                group = range(first, first + share)
                inputs = [hidden_states[i] for i in group]
                shift, scale = block.norm1.linear(F.silu(temb[group])).chunk(9 if block.use_dual_attention else 6, 1)[
                    :2
                ]
                mean = torch.stack([modulated(*given) for given in zip(inputs, shift, scale, strict=True)]).mean(dim=0)
                context = Context(batch["timestep"][first : first + 1], layer, cache=caches[first])

                def make_plan(tokens):
                    source = tokens if share == 1 else mean.float().double()
                    return reducer.plan(source[None], bigain.Grid(SHAPE), context)

                plan = []
                once = lambda tokens: plan[0] if plan else plan.append(make_plan(tokens)) or plan[0]  # noqa: E731
                return [
                    block_by_hand(block, once, parts, hidden_states[i], encoder_hidden_states[i], temb[i])
                    for i in group
                ]

            texts, images = zip(*(row for first in range(0, rows, share) for row in passed(first)), strict=True)
            return None if texts[0] is None else torch.stack(texts), torch.stack(images)

        block.forward = forward

    for layer, block in enumerate(model.transformer_blocks):
        replace(layer, block)
    return run(model, batch)


def close(attached, expected):
    # Groups of tokens are averaged in single precision.
    torch.testing.assert_close(attached, expected, rtol=1e-5, atol=1e-6)


def test_the_blocks_by_hand_are_the_librarys(sd3, batch):
    close(by_hand(sd3, batch, bigain.build_reducer("identity")), run(sd3, batch))


@pytest.mark.parametrize("reducer", MERGING + SHRINKING, ids=name_of)
def test_an_attached_pass_is_that_of_blocks_by_hand(sd3, batch, reducer):
    expected = by_hand(sd3, batch, bigain.build_reducer(reducer))
    plain = run(sd3, batch)
    with bigain.attach(sd3, reducer, layers=3, shape=SHAPE):
        attached = run(sd3, batch)
    close(attached, expected)
    assert (attached - plain).abs().max() > 1e-3


@pytest.mark.parametrize("parts", [("mlp",), ("self", "mlp")], ids="-".join)
def test_the_mlp_of_the_image_shrinks_by_the_blocks_plan(sd3, batch, parts):
    expected = by_hand(sd3, batch, bigain.build_reducer("lgtm", ratio=0.5), parts)
    with bigain.attach(sd3, "lgtm", ratio=0.5, placement={"layers": 3, "parts": parts}):
        close(run(sd3, batch), expected)


def test_rows_that_share_follow_the_plan_of_their_mean(sd3, batch):
    batch = {name: value.repeat_interleave(2, dim=0) for name, value in batch.items()}
    batch["encoder_hidden_states"][1::2] *= -1
    expected = by_hand(sd3, batch, bigain.build_reducer("tome", ratio=0.5), share=2)
    alone = by_hand(sd3, batch, bigain.build_reducer("tome", ratio=0.5))
    with bigain.attach(sd3, "tome", ratio=0.5, layers=3) as report:
        with report.shared(2):
            close(run(sd3, batch), expected)
        close(run(sd3, batch), alone)
    assert not torch.allclose(alone, expected)


def test_both_attentions_of_a_block_are_one_site_and_both_shrink(sd3, batch):
    lengths = {}
    with bigain.attach(sd3, "lgtm", ratio=0.5, layers=3) as report:
        for name, module in sd3.named_modules():
            if name.endswith(("attn", "attn2")):
                module.to_q.register_forward_hook(lambda _, args, out, name=name: lengths.update({name: out.shape[1]}))
        run(sd3, batch)
    assert [site.name for site in report.sites] == [f"transformer_blocks.{index}.attn" for index in range(3)]
    assert lengths == {
        "transformer_blocks.0.attn": 12,
        "transformer_blocks.0.attn2": 12,
        "transformer_blocks.1.attn": 12,
        "transformer_blocks.1.attn2": 12,
        "transformer_blocks.2.attn": 12,
    }


def test_what_is_saved_counts_both_attentions(sd3):
    from bigain.benchmark.flops import FlopCounter

    def counted(model):
        count = FlopCounter(model, SHAPE).count({"name": "lgtm", "ratio": 0.5}, {"layers": 1})
        return count.parts[0].flops

    projections = 4 * 2 * 24 * 16 * 16  # of the second attention: queries, keys, values, output
    assert counted(sd3) - counted(tiny_sd3(dual_attention_layers=())) == projections + 2 * 2 * 24 * 24 * 16


def test_the_grid_follows_the_latents_not_the_configuration(sd3, batch, recording):
    with bigain.attach(sd3, recording) as report:
        assert report.sites[0].grid.shape == (8, 8)
        run(sd3, batch)
    (call,) = recording.calls
    assert call.grid == bigain.Grid(SHAPE)
    assert call.timestep.tolist() == [20, 500, 980]


def test_arguments_may_be_given_by_position(sd3, batch, recording):
    with bigain.attach(sd3, recording):
        order = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        sd3(*(batch[name] for name in order))
    assert recording.calls[0].timestep.tolist() == [20, 500, 980]


def test_positional_orders_are_those_of_the_library():
    import diffusers

    from bigain.adapters.families.sd3 import _ORDERS

    for name, order in _ORDERS.items():
        parameters = list(inspect.signature(getattr(diffusers, name).forward).parameters)[1:]
        assert tuple(parameters[: len(order)]) == order


def test_by_default_the_first_12_of_28_blocks_are_taken():
    model = tiny_sd3(num_layers=24, dual_attention_layers=())
    with bigain.attach(model, "identity") as report:
        assert [site.name.split(".")[1] for site in report.sites] == [str(index) for index in range(10)]


def controlnet(**changes):
    from diffusers import SD3ControlNetModel

    shape = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "num_layers": 2, "pos_embed_max_size": 16}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    return randomized(SD3ControlNetModel(**shape | heads | text | {"extra_conditioning_channels": 1} | changes))


@pytest.mark.parametrize("alone", [False, True], ids=["with text", "without text, given tokens"])
def test_a_controlnets_blocks_are_reduced(batch, recording, alone):
    net = controlnet(**({"joint_attention_dim": None, "use_pos_embed": False} if alone else {}))
    noise = torch.Generator().manual_seed(2)
    batch["controlnet_cond"] = torch.randn(3, 4, 8, 12, generator=noise).double()
    if alone:
        batch |= {"encoder_hidden_states": None, "hidden_states": torch.randn(3, 24, 16, generator=noise).double()}
    plain = torch.stack(run(net, batch))
    with bigain.attach(net, recording, layers=2):
        changed = torch.stack(run(net, batch))
    assert [call.grid.shape for call in recording.calls] == [SHAPE, SHAPE]
    assert not torch.allclose(changed, plain)
    assert_same(torch.stack(run(net, batch)), plain)


class Wrapped(nn.Module):
    """A projection inside another module, with a small update beside it, as LoRA has it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.update = inner, nn.Linear(inner.in_features, inner.out_features).double()

    def forward(self, tokens):
        return self.inner(tokens) + self.update(tokens)


@pytest.mark.parametrize("reducer", [MERGING[0], SHRINKING[0]], ids=name_of)
def test_projections_inside_other_modules_are_used_as_they_are(sd3, batch, reducer):
    torch.manual_seed(3)
    for block in sd3.transformer_blocks:
        block.attn.to_k, block.attn.to_v = Wrapped(block.attn.to_k), Wrapped(block.attn.to_v)
    expected = by_hand(sd3, batch, bigain.build_reducer(reducer))
    with bigain.attach(sd3, reducer, layers=3, shape=SHAPE):
        close(run(sd3, batch), expected)


def test_a_projection_replaced_after_attaching_is_an_error_where_keys_shrink(sd3, batch):
    with bigain.attach(sd3, "todo", factor=2, shape=SHAPE):
        sd3.transformer_blocks[0].attn2.to_k = Wrapped(sd3.transformer_blocks[0].attn2.to_k)
        with pytest.raises(SiteError, match=r"transformer_blocks\.0\.attn2\.to_k was replaced"):
            run(sd3, batch)


def test_fused_projections_merge_and_cannot_shrink_keys(batch):
    model = tiny_sd3(qk_norm=None, dual_attention_layers=())
    expected = by_hand(model, batch, bigain.build_reducer("lgtm", ratio=0.5))
    model.fuse_qkv_projections()
    with bigain.attach(model, "lgtm", ratio=0.5, layers=3):
        close(run(model, batch), expected)
    with pytest.raises(SiteError, match="unfuse_qkv_projections"):
        bigain.attach(model, "todo", factor=2)


def test_rows_of_different_lengths_are_refused(sd3, batch):
    rules = [{"reducer": {"name": "lgtm", "ratio": 0.5}, "timesteps": [400, 1000]}]
    with (
        bigain.attach(sd3, "scheduled", rules=rules, otherwise={"name": "lgtm", "ratio": 0.2}),
        pytest.raises(SettingError, match="different lengths"),
    ):
        run(sd3, batch)


@pytest.mark.parametrize("rows", [1, 3])
def test_perturbed_attention_guidance_merges(sd3, batch, rows):
    from diffusers.models.attention_processor import PAGCFGJointAttnProcessor2_0

    sd3.transformer_blocks[2].attn.set_processor(PAGCFGJointAttnProcessor2_0())
    batch = {name: value[:1].repeat(3 * rows, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    plain = run(sd3, batch)
    with bigain.attach(sd3, "identity", layers=3):
        assert_same(run(sd3, batch), plain)
    with bigain.attach(sd3, "lgtm", ratio=0.5, layers=3):
        merged = run(sd3, batch)
    # The last third of the rows is perturbed: each of its image tokens sees itself and the text alone.
    assert torch.isfinite(merged).all()
    torch.testing.assert_close(merged[:rows], merged[rows : 2 * rows])
    assert not torch.allclose(merged[:rows], merged[2 * rows :])


def test_perturbed_attention_guidance_refuses_fewer_keys(sd3, batch):
    from diffusers.models.attention_processor import PAGCFGJointAttnProcessor2_0

    with bigain.attach(sd3, "todo", factor=2, layers=3, shape=SHAPE):
        sd3.transformer_blocks[2].attn.set_processor(PAGCFGJointAttnProcessor2_0())  # as its pipeline does
        with pytest.raises(SettingError, match="take a merging reducer"):
            run(sd3, batch)


@pytest.mark.parametrize("reducer", [{"name": "identity"}, MERGING[0], SHRINKING[0]], ids=name_of)
def test_image_prompts_are_attended_to(sd3, batch, reducer):
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    plain = run(sd3, batch)
    for block in sd3.transformer_blocks:
        block.attn.set_processor(SD3IPAdapterJointAttnProcessor2_0(16, 6, 8, timesteps_emb_dim=7))
    randomized(sd3)
    noise = torch.Generator().manual_seed(2)
    prompts, temb = torch.randn(3, 4, 6, generator=noise).double(), torch.randn(3, 7, generator=noise).double()

    def prompted():
        return run(sd3, batch | {"joint_attention_kwargs": {"ip_hidden_states": prompts, "temb": temb}})

    whole = prompted()
    with bigain.attach(sd3, reducer, layers=3, shape=SHAPE):
        found, without = prompted(), run(sd3, batch)
    assert not torch.allclose(found, without)
    assert torch.allclose(found, whole) == (reducer["name"] == "identity")
    assert not torch.equal(whole, plain)


@pytest.mark.parametrize("reducer", [MERGING[2], MERGING[3], SHRINKING[0]], ids=name_of)  # the cached one holds lgtm
def test_it_compiles_without_a_graph_break(batch, reducer):
    backend = "aot_eager" if reducer["name"] == "cached" else "eager"
    model = tiny_sd3(num_layers=1, dual_attention_layers=(0,))
    with bigain.attach(model, reducer, layers=1, shape=SHAPE):
        expected = run(model, batch)
        close(run(torch.compile(model, fullgraph=True, backend=backend), batch), expected)
    torch.compiler.reset()


def test_a_pipeline_makes_finite_images():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(3, 3, block_out_channels=(4,), latent_channels=3, norm_num_groups=1, shift_factor=0.1)
    none = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
    transformer = tiny_sd3().float()
    pipe = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(), vae, **none)
    pipe.set_progress_bar_config(disable=True)
    prompts = {"prompt_embeds": torch.randn(2, 5, 12), "negative_prompt_embeds": torch.randn(2, 5, 12)}
    pooled = {"pooled_prompt_embeds": torch.randn(2, 10), "negative_pooled_prompt_embeds": torch.randn(2, 10)}
    latents = torch.randn(2, 3, 8, 12)

    def images():
        settings = {"num_inference_steps": 2, "height": 8, "width": 12, "output_type": "pt"}
        return pipe(**prompts, **pooled, **settings, latents=latents.clone()).images

    plain = images()
    with bigain.attach(pipe, "lgtm", ratio=0.5, layers=3):
        merged = images()
    assert merged.shape == (2, 3, 8, 12)
    assert torch.isfinite(merged).all()
    assert not torch.allclose(merged, plain)
    assert_same(images(), plain)


@parametrize_with_checks(Specimen(partial(tiny_sd3, num_layers=2, dual_attention_layers=(0,)), name="SD3"))
def test_conformance(subject, check):
    check(subject)
