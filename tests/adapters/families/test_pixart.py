"""The PixArt adapter: reduced forward passes against one written by hand; inputs; pipeline calls of PixArt and DiT."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import bigain
from bigain.adapters.families.pixart import PixArtAdapter
from bigain.reducers.base import Context
from bigain.testing import Specimen, parametrize_with_checks
from tests.adapters.families.settings import cases, merges
from tests.comparing import assert_same

MERGES = merges()


def tiny_pixart(**changes):
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "in_channels": 3, "out_channels": 3}
    sizes = {"sample_size": 16, "patch_size": 2, "cross_attention_dim": 24, "caption_channels": 10}
    model = PixArtTransformer2DModel(**{**shape, **sizes, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    # In double precision, two ways to the same tokens do not differ by what could decide which tokens are merged.
    return model.eval().double()


@pytest.fixture(scope="module")
def model():
    return tiny_pixart()


@pytest.fixture
def batch():
    """Three rows on a grid of 5 x 7, with texts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(3, 3, 10, 14, generator=generator).double(),
        "encoder_hidden_states": torch.randn(3, 6, 10, generator=generator).double(),
        "timestep": torch.tensor([20, 500, 980]),
        "encoder_attention_mask": (torch.arange(6) < torch.tensor([[6], [2], [4]])).double(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def attention(attn, queries, states, bias=0.0):
    """Softmax attention as a textbook has it."""
    projected = (attn.to_q, queries), (attn.to_k, states), (attn.to_v, states)
    query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in projected)
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return attn.to_out[0](((logits + bias).softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Reduced:
    """One block's plan, made from the first part that asks."""

    def __init__(self, reducer, parts, context):
        self.reducer, self.parts, self.context, self.plan = reducer, parts, context, None

    def __call__(self, part, tokens, work):
        """Do `work(queries, keys)` on what the plan leaves of the tokens."""
        if part not in self.parts:
            return work(tokens, tokens)
        self.plan = self.plan or self.reducer.plan(tokens, bigain.Grid((5, 7)), self.context)
        short = self.plan.reduce(tokens)
        return work(tokens, short) if self.plan.kind == "kv" else self.plan.restore(work(short, short))


def block_by_hand(block, reduced, x, *, encoder_hidden_states, encoder_attention_mask, timestep, **_):
    """PixArt-alpha (Chen et al., 2023), figure 4: one set of shifts, scales and gates for all blocks, plus its own."""
    given = timestep.reshape(x.shape[0], 6, -1) + block.scale_shift_table
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = given.chunk(6, dim=1)
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_a) + shift_a
    x = x + gate_a * reduced("self", normed, lambda q, k: attention(block.attn1, q, k))
    bias, text = encoder_attention_mask[:, None], encoder_hidden_states
    x = x + reduced("cross", x, lambda q, _: attention(block.attn2, q, text, bias))
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_m) + shift_m
    return x + gate_m * reduced("mlp", normed, lambda q, _: block.ff(q))


def by_hand(model, batch, reducer, parts):
    model, cache = copy.deepcopy(model), {}
    for layer, block in enumerate(model.transformer_blocks):
        reduced = Reduced(reducer, parts, Context(batch["timestep"], layer, cache=cache))
        block.forward = partial(block_by_hand, block, reduced)
    return model(**batch).sample


@pytest.mark.parametrize(("settings", "parts"), cases(MERGES))
@torch.no_grad()
def test_a_reduced_pass_is_the_one_written_by_hand(model, batch, settings, parts):
    whole = model(**batch).sample
    expected = by_hand(model, batch, bigain.build_reducer(settings), parts)
    with bigain.attach(model, settings, placement={"parts": parts, "layers": 3}):
        found = model(**batch).sample
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert (expected - whole).abs().max() > 0.01


@torch.no_grad()
def test_doing_nothing_changes_nothing(model, batch):
    whole = model(**batch).sample
    torch.testing.assert_close(by_hand(model, batch, None, ()), whole, atol=1e-9, rtol=1e-9)
    with bigain.attach(model, "identity", placement={"parts": ("self", "cross", "mlp"), "layers": 3}):
        assert_same(model(**batch).sample, whole)


@torch.no_grad()
def test_grid_and_moment_are_read_from_positional_arguments_too(model, batch, recording):
    with bigain.attach(model, recording, layers=1):
        model(batch["hidden_states"][..., :8, :], batch["encoder_hidden_states"], batch["timestep"])
    (call,) = recording.calls
    assert call.grid == bigain.Grid((4, 7))
    assert call.timestep.tolist() == [20, 500, 980]


def test_sites_are_all_blocks_and_the_default_the_first_of_them():
    sites = PixArtAdapter().sites(tiny_pixart(num_layers=7))
    assert [site.name for site in sites] == [f"transformer_blocks.{index}" for index in range(7)]
    assert PixArtAdapter().default_layers(sites) == [0, 1, 2]
    assert [list(site.parts) for site in sites] == [["self", "cross", "mlp"]] * 7


@pytest.mark.parametrize("changes", [{}, {"use_additional_conditions": True}, {"caption_channels": None}])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.no_grad()
def test_inputs_are_what_the_model_takes(changes, device):
    model = tiny_pixart(num_layers=1, **changes).to(device)
    given = PixArtAdapter().inputs(model, 3, (4, 6), torch.device(device), torch.float64)
    assert model(**given).sample.shape == (3, 3, 8, 12)
    assert PixArtAdapter().moment(model, (), given).shape == (4, 6)
    assert PixArtAdapter().configured_shape(model) == (8, 8)


def tiny_vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, sample_size=16).eval()


def test_a_pipeline_of_pixart_sigma_gives_finite_images():
    from diffusers import DDIMScheduler, PixArtSigmaPipeline

    parts = {"text_encoder": None, "tokenizer": None, "vae": tiny_vae(), "scheduler": DDIMScheduler()}
    pipe = PixArtSigmaPipeline(transformer=tiny_pixart().float(), **parts)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.tensor([[1, 1, 1, 0]])
    texts = {"prompt_embeds": torch.randn(1, 4, 10), "negative_prompt_embeds": torch.randn(1, 4, 10)}
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "negative_prompt": None}

    def draw():
        generator = torch.Generator().manual_seed(0)
        how = {"num_inference_steps": 2, "output_type": "np", "use_resolution_binning": False}
        return pipe(height=16, width=24, generator=generator, **texts, **masks, **how).images

    whole = draw()
    with bigain.attach(pipe, "lgtm", ratio=0.5):
        reduced = draw()
    assert reduced.shape == (1, 16, 24, 3)
    check_images(reduced, whole, draw())


def test_a_pipeline_of_dit_gives_finite_images(tiny_dit):
    from diffusers import DDIMScheduler, DiTPipeline

    network = tiny_dit(num_embeds_ada_norm=1000, out_channels=6, patch_size=2, sample_size=16)
    pipe = DiTPipeline(network, tiny_vae(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(class_labels=[1, 7, 3], num_inference_steps=2, generator=generator, output_type="np").images

    whole = draw()
    with bigain.attach(pipe, "abm", ratio=0.5, placement={"parts": ("self", "mlp"), "layers": 4}):
        reduced = draw()
    assert reduced.shape == (3, 16, 16, 3)
    check_images(reduced, whole, draw())


def check_images(reduced, before, after):
    """Images are numbers, other than those of the whole model, which is itself again."""
    assert math.isfinite(reduced.sum())
    assert abs(reduced - before).max() > 1e-4
    assert abs(before - after).max() < 1e-5


@parametrize_with_checks(Specimen(partial(tiny_pixart, num_layers=2)))
def test_conformance(subject, check):
    check(subject)
