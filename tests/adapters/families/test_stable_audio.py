"""The Stable Audio adapter: reduced forward passes against one written by hand, with positions row by row."""

import copy
import math
from functools import partial

import pytest
import torch

import bigain
from bigain.adapters.families.stable_audio import StableAudioAdapter
from bigain.reducers.base import Context
from bigain.testing import Specimen, parametrize_with_checks
from tests.adapters.families.settings import cases, merges
from tests.comparing import assert_same

GRID = bigain.Grid((23,), prefix=1)
MERGES = merges(cell=2)


def tiny_stable_audio(**changes):
    from diffusers import StableAudioDiTModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 4, "num_key_value_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}
    sizes = {"sample_size": 24, "in_channels": 3, "out_channels": 3, "time_proj_dim": 8}
    widths = {"cross_attention_dim": 16, "global_states_input_dim": 10, "cross_attention_input_dim": 5}
    model = StableAudioDiTModel(**{**shape, **sizes, **widths, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model.eval().double()


@pytest.fixture(scope="module")
def model():
    return tiny_stable_audio()


@pytest.fixture
def batch(model):
    """Three rows of 23 latents at different timesteps."""
    torch.manual_seed(1)
    given = StableAudioAdapter().inputs(model, 3, GRID.shape, torch.device("cpu"), torch.float64)
    given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :6]
    return {**given, "timestep": torch.tensor([0.02, 0.5, 0.98]).double()}


def turned(heads, turn):
    """Rotate channels i and i + D / 2 of the first D by complex numbers, `[B, N, D / 2]`; leave the others."""
    half = turn.shape[-1]
    pairs = torch.complex(heads[..., :half], heads[..., half : 2 * half]) * turn[:, None]
    return torch.cat([pairs.real, pairs.imag, heads[..., 2 * half :]], dim=-1)


def attention(attn, queries, states, turn_queries=None, turn_keys=None):
    """Softmax attention, head by head; consecutive heads of queries share one of keys and values."""
    width = attn.to_q(queries).shape[-1] // attn.heads
    split = lambda tokens: tokens.unflatten(-1, (-1, width)).transpose(1, 2)  # noqa: E731
    query, key, value = split(attn.to_q(queries)), split(attn.to_k(states)), split(attn.to_v(states))
    query = query if turn_queries is None else turned(query, turn_queries)
    key = key if turn_keys is None else turned(key, turn_keys)
    share, mixed = attn.heads // key.shape[1], []
    for head in range(attn.heads):
        weights = (query[:, head] @ key[:, head // share].transpose(1, 2) / math.sqrt(width)).softmax(dim=-1)
        mixed.append(weights @ value[:, head // share])
    return attn.to_out[0](torch.cat(mixed, dim=-1))


class Reduced:
    """One block's plan, made from the first part that asks."""

    def __init__(self, reducer, parts, context):
        self.reducer, self.parts, self.context, self.plan = reducer, parts, context, None

    def __call__(self, part, tokens, turn, work):
        """Do `work(queries, keys, their positions)` on what the plan leaves of the tokens."""
        turn = turn.expand(tokens.shape[0], -1, -1)
        if part not in self.parts:
            return work(tokens, tokens, turn, turn)
        self.plan = self.plan or self.reducer.plan(tokens, GRID, self.context)
        summed = torch.complex(*(self.plan.place_positions(each) for each in (turn.real, turn.imag)))
        short, places = self.plan.reduce(tokens), summed / summed.abs()
        if self.plan.kind == "kv":
            return work(tokens, short, turn, places)
        return self.plan.restore(work(short, short, places, places))


def block_by_hand(block, reduced, hidden_states, *, encoder_hidden_states, rotary_embedding, **_):
    """Stable Audio Open (Evans et al., 2024): self-attention, cross-attention and a gated MLP, each after a norm."""
    x, text, (cosines, sines) = hidden_states, encoder_hidden_states, rotary_embedding
    half = cosines.shape[-1] // 2
    turn = torch.complex(cosines[:, :half], sines[:, :half]).to(torch.complex128)[None]
    x = x + reduced("self", block.norm1(x), turn, lambda q, k, tq, tk: attention(block.attn1, q, k, tq, tk))
    x = x + reduced("cross", block.norm2(x), turn, lambda q, *_: attention(block.attn2, q, text))
    return x + reduced("mlp", block.norm3(x), turn, lambda q, *_: block.ff(q))


def by_hand(model, batch, reducer, parts):
    model, cache = copy.deepcopy(model), {}
    for layer, block in enumerate(model.transformer_blocks):
        reduced = Reduced(reducer, parts, Context(batch["timestep"] * 1000, layer, cache=cache))
        block.forward = partial(block_by_hand, block, reduced)
    return model(**batch)[0]


def close(found, expected):
    # The library rotates in single precision.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("settings", "parts"), cases(MERGES))
@torch.no_grad()
def test_a_reduced_pass_is_the_one_written_by_hand(model, batch, settings, parts):
    whole = model(**batch)[0]
    expected = by_hand(model, batch, bigain.build_reducer(settings), parts)
    with bigain.attach(model, settings, placement={"parts": parts, "layers": 3}):
        close(model(**batch)[0], expected)
    assert (expected - whole).abs().max() > 0.01
    assert_same(model(**batch)[0], whole)


@torch.no_grad()
def test_doing_nothing_changes_nothing(model, batch):
    whole = model(**batch)[0]
    close(by_hand(model, batch, None, ()), whole)
    with bigain.attach(model, "identity", placement={"parts": ("self", "cross", "mlp"), "layers": 3}):
        close(model(**batch)[0], whole)


@torch.no_grad()
def test_the_token_of_time_and_length_is_never_merged(model, batch):
    seen, attn = [], model.transformer_blocks[0].attn1
    handle = attn.to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with bigain.attach(model, MERGES[0], layers=1):
        model(**batch)
    model(**batch)
    handle.remove()
    assert [tokens.shape[1] for tokens in seen] == [24 - 11, 24]
    close(seen[0][:, 0], seen[1][:, 0])


@torch.no_grad()
def test_a_timestep_between_0_and_1_is_one_of_1000_to_the_reducer(model, batch, recording):
    sample, batch["timestep"] = batch.pop("hidden_states"), torch.tensor([2 / math.pi * math.atan(1.0)])
    batch["rotary_embedding"] = tuple(part[:12] for part in batch["rotary_embedding"])
    with bigain.attach(model, recording, layers=1, shape=(11,)):
        model(sample[..., :11], batch.pop("timestep"), **batch)  # as its pipeline calls it: one timestep for all rows
    (call,) = recording.calls
    assert call.grid == bigain.Grid((11,), prefix=1)
    torch.testing.assert_close(call.timestep, torch.full((3,), 500.0))


@torch.no_grad()
def test_the_table_of_positions_may_lie_on_another_device(model, batch):
    on_meta = copy.deepcopy(model).to("meta")
    given = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    assert given["rotary_embedding"][0].device.type == "cpu"
    with bigain.attach(on_meta, MERGES[0], layers=3):
        assert on_meta(**given)[0].shape == (3, 3, 23)


@torch.no_grad()
def test_positions_may_be_left_out(model, batch):
    with bigain.attach(model, MERGES[0], layers=3):
        turned, unturned = (model(**{**batch, **change})[0] for change in ({}, {"rotary_embedding": None}))
    assert (turned - unturned).abs().max() > 0.01


def test_sites_are_all_blocks_and_the_default_the_first_of_them():
    sites = StableAudioAdapter().sites(tiny_stable_audio(num_layers=7))
    assert [site.name for site in sites] == [f"transformer_blocks.{index}" for index in range(7)]
    assert StableAudioAdapter().default_layers(sites) == [0, 1, 2]
    assert [list(site.parts) for site in sites] == [["self", "cross", "mlp"]] * 7


@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.no_grad()
def test_inputs_are_what_the_model_takes(device):
    model = tiny_stable_audio(num_layers=1).to(device)
    given = StableAudioAdapter().inputs(model, 3, (9,), torch.device(device), torch.float64)
    assert model(**given)[0].shape == (3, 3, 9)
    moment = StableAudioAdapter().moment(model, (), given)
    assert moment.shape == (9,)
    assert device == "meta" or moment.timestep.tolist() == pytest.approx([0, 389, 778])
    assert StableAudioAdapter().configured_shape(model) == (24,)


def test_a_pipeline_gives_finite_audio():
    from diffusers import AutoencoderOobleck, EDMDPMSolverMultistepScheduler, StableAudioPipeline
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    torch.manual_seed(0)
    vae = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 2], "channel_multiples": [1, 2], "sampling_rate": 8}
    vae |= {"decoder_channels": 4, "decoder_input_channels": 3, "audio_channels": 1}
    parts = {
        "vae": AutoencoderOobleck(**vae).eval(),
        "projection_model": StableAudioProjectionModel(5, 5, 0, 20),
        "transformer": tiny_stable_audio().float(),
        "scheduler": EDMDPMSolverMultistepScheduler(solver_order=2),
    }
    pipe = StableAudioPipeline(text_encoder=None, tokenizer=None, **parts)
    pipe.set_progress_bar_config(disable=True)
    texts = {"prompt_embeds": torch.randn(1, 4, 5), "negative_prompt_embeds": torch.randn(1, 4, 5)}

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(**texts, num_inference_steps=2, audio_end_in_s=10.0, generator=generator).audios

    whole = draw()
    with bigain.attach(pipe, MERGES[0]):
        reduced = draw()
    assert reduced.shape == (1, 1, 80)
    assert reduced.isfinite().all()
    assert (reduced - whole).abs().max() > 1e-6
    assert_same(draw(), whole)


@parametrize_with_checks(Specimen(partial(tiny_stable_audio, num_layers=2)))
def test_conformance(subject, check):
    check(subject)
