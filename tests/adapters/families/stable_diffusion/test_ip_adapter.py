"""IP-Adapter processors, which are modules with weights; and U-Nets that ask for more than text."""

import pytest
import torch

import bigain
from bigain.adapters.families.unet import UNetAdapter
from bigain.errors import SiteError
from tests.comparing import assert_same

PARTS = ("self", "cross", "mlp")
MASKS = {"ip_adapter_masks": [torch.ones(1, 1, 8, 12).double().tril()]}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-4


def adapter_weights(unet, projection="plain"):
    """What a file of an IP-Adapter holds: the keys and values of four image tokens, and their projection."""
    generator = torch.Generator().manual_seed(3)
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys = {}
    for index, name in enumerate(layers):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("k", "v"):
            keys[f"{2 * index + 1}.to_{part}_ip.weight"] = torch.randn(width, 16, generator=generator)
    image = {"proj.weight": torch.randn(4 * 16, 12, generator=generator), "proj.bias": torch.zeros(4 * 16)}
    image |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    if projection == "full":
        image = {
            "proj.0.weight": torch.randn(12, 12, generator=generator),
            "proj.0.bias": torch.zeros(12),
            "proj.2.weight": torch.randn(16, 12, generator=generator),
            "proj.2.bias": torch.zeros(16),
            "proj.3.weight": torch.ones(16),
            "proj.3.bias": torch.zeros(16),
        }
    return {"image_proj": image, "ip_adapter": keys}


@pytest.fixture
def prompted(batch):
    embeds = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(9)).double()
    return {**batch, "added_cond_kwargs": {"image_embeds": [embeds]}}


@pytest.fixture
def unet(tiny_unet):
    unet = tiny_unet()
    unet._load_ip_adapter_weights(adapter_weights(unet))
    assert {type(one).__name__ for one in unet.attn_processors.values()} == {
        "AttnProcessor2_0",
        "IPAdapterAttnProcessor2_0",
    }
    return unet


def by_hand(unet, batch, reducer):
    """A pass in which every attention is written out, and every cross-attention has the image's beside the text's."""
    prompts = unet.encoder_hid_proj(batch["added_cond_kwargs"]["image_embeds"])[0].flatten(1, 2)
    undo = []

    def attend(attn, queries, states, to_k, to_v):
        heads = [
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(queries), to_k(states), to_v(states))
        ]
        weights = (heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5).softmax(-1)
        return (weights @ heads[2]).transpose(1, 2).flatten(2)

    def block_by_hand(block, tokens, shape):
        plan = reducer.plan(tokens, bigain.Grid(shape))
        short = plan.reduce(block.norm1(tokens))
        mixed = attend(block.attn1, short, short, block.attn1.to_k, block.attn1.to_v)
        tokens = tokens + plan.restore(block.attn1.to_out[0](mixed))
        short, attn = plan.reduce(block.norm2(tokens)), block.attn2
        mixed = attend(attn, short, batch["encoder_hidden_states"], attn.to_k, attn.to_v)
        added = attend(attn, short, prompts, attn.processor.to_k_ip[0], attn.processor.to_v_ip[0])
        tokens = tokens + plan.restore(attn.to_out[0](mixed + attn.processor.scale[0] * added))
        return tokens + plan.restore(block.ff(plan.reduce(block.norm3(tokens))))

    for name, block in unet.named_modules():
        if name.endswith("transformer_blocks.0"):
            shape = (4, 6) if name.startswith("mid") else (8, 12)
            block.forward = lambda x, block=block, shape=shape, **_: block_by_hand(block, x, shape)
            undo.append(block)
    try:
        return unet(**batch).sample
    finally:
        for block in undo:
            del block.forward


@torch.no_grad()
def test_image_prompts_reach_reduced_queries(unet, prompted):
    reducer, state, processors = bigain.build_reducer("lgtm", ratio=0.5), unet.state_dict(), unet.attn_processors
    plain, expected = unet(**prompted).sample, by_hand(unet, prompted, reducer)
    with bigain.attach(unet, reducer, placement={"parts": PARTS, "names": "*"}):
        found = unet(**prompted).sample
        assert list(unet.state_dict()) == list(state)
        assert unet.attn_processors == processors
    close(found, expected)
    differ(found, plain)
    assert_same(unet(**prompted).sample, plain)


@torch.no_grad()
def test_an_ip_adapter_may_come_while_a_reducer_is_attached(tiny_unet, unet, batch, prompted):
    late, reducer = tiny_unet(), bigain.build_reducer("lgtm", ratio=0.5)
    with bigain.attach(late, reducer, placement={"parts": PARTS, "names": "*"}):
        before = late(**batch).sample
        late._load_ip_adapter_weights(adapter_weights(late))
        close(late(**prompted).sample, by_hand(unet, prompted, reducer))
        differ(late(**prompted).sample, before)
    close(late(**prompted).sample, unet(**prompted).sample)


@torch.no_grad()
def test_masks_for_every_token_are_refused_where_queries_are_reduced(unet, prompted):
    masked = {**prompted, "cross_attention_kwargs": MASKS}
    plain, unmasked = unet(**masked).sample, unet(**prompted).sample
    differ(plain, unmasked)
    with (
        bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": ("self", "cross")}),
        pytest.raises(SiteError, match=r"attn2 was given masks of an IP-Adapter for every token; leave `cross` out"),
    ):
        unet(**masked)
    assert_same(unet(**masked).sample, plain)


@torch.no_grad()
@pytest.mark.parametrize("spec", [{"name": "lgtm", "ratio": 0.5}, {"name": "todo", "factor": 2}], ids=str)
def test_masks_stay_at_work_beside_reduced_self_attention(unet, prompted, spec):
    """Where a mask is 1 everywhere, it is as if there were none; where it is 0, as if there were no image."""
    found = {}
    with bigain.attach(unet, spec):
        found["none"] = unet(**prompted).sample
        for value in (0.0, 1.0):
            mask = torch.full((1, 1, 8, 12), value).double()
            found[value] = unet(**prompted, cross_attention_kwargs={"ip_adapter_masks": [mask]}).sample
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [0.0]
        found["no image"] = unet(**prompted).sample
    close(found[1.0], found["none"])
    close(found[0.0], found["no image"])
    differ(found[0.0], found[1.0])


CONDITIONS = {
    "x4 upscaler": {"num_class_embeds": 10, "in_channels": 7},
    "unCLIP": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "noise level": {"class_embed_type": "timestep"},
    "Kolors": {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"},
    "latent consistency": {"time_cond_proj_dim": 8},
}


@torch.no_grad()
@pytest.mark.parametrize("changes", CONDITIONS.values(), ids=CONDITIONS)
def test_made_up_inputs_fit_unets_that_ask_for_more_than_text(tiny_unet, changes):
    unet = tiny_unet(**changes)
    made = UNetAdapter().inputs(unet, 3, (6, 8), torch.device("cpu"), torch.float64)
    assert unet(**made).sample.shape == (3, 4, 6, 8)


@torch.no_grad()
@pytest.mark.parametrize("projection", ["plain", "full"])
def test_made_up_inputs_hold_images_for_every_ip_adapter(tiny_unet, projection):
    unet = tiny_unet()
    unet._load_ip_adapter_weights([adapter_weights(unet, projection)] * 2)
    made = UNetAdapter().inputs(unet, 3, (6, 8), torch.device("cpu"), torch.float64)
    patches = (257,) if projection == "full" else ()
    assert [embeds.shape for embeds in made["added_cond_kwargs"]["image_embeds"]] == [(3, 1, *patches, 12)] * 2
    assert unet(**made).sample.shape == (3, 4, 6, 8)


def test_what_reduction_saves_is_counted_with_an_ip_adapter(unet):
    with bigain.attach(unet, "lgtm", ratio=0.5) as report:
        assert 0 < report.flops().after < report.flops().before
