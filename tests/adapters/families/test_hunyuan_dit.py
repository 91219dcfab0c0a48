"""The Hunyuan-DiT adapter: reduced forward passes against one written by hand, with positions row by row."""

import copy
import math
from functools import partial

import pytest
import torch

import bigain
from bigain.adapters.families.hunyuan_dit import HunyuanDiTAdapter
from bigain.reducers.base import Context
from bigain.testing import Specimen, parametrize_with_checks
from tests.adapters.families.settings import KEYS, cases, merges
from tests.comparing import assert_same

MERGES = merges()


def tiny_hunyuan(**changes):
    from diffusers import HunyuanDiT2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "hidden_size": 16, "in_channels": 3}
    texts = {"cross_attention_dim": 12, "cross_attention_dim_t5": 16, "text_len": 3, "text_len_t5": 4}
    sizes = {"patch_size": 2, "sample_size": 16, "pooled_projection_dim": 8}
    model = HunyuanDiT2DModel(**{**shape, **texts, **sizes, **changes})
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and not name.endswith("bias")
        torch.nn.init.normal_(parameter, mean=float(scale), std=0.3)
    # Patches weigh more than what all tokens have in common: else all are nearly equal, and rounding would decide.
    torch.nn.init.normal_(model.pos_embed.proj.weight, std=1.0)
    for block in model.blocks:
        block.norm1.linear.weight.data.mul_(0.05)
        for attn in (block.attn1, block.attn2):
            attn.to_out[0].weight.data.mul_(0.3)
    return model.eval().double()


@pytest.fixture(scope="module")
def model():
    return tiny_hunyuan()


@pytest.fixture
def batch(model):
    """Three rows on a grid of 5 x 7, with texts of different lengths."""
    torch.manual_seed(2)
    given = HunyuanDiTAdapter().inputs(model, 3, (5, 7), torch.device("cpu"), torch.float64)
    given["timestep"] = torch.tensor([20.0, 500.0, 980.0]).double()
    given["text_embedding_mask"][1, 1:] = given["text_embedding_mask_t5"][2, 2:] = 0
    return given


def turned(heads, turn):
    """Rotate neighbouring channels of `[B, H, N, D]` by complex numbers, `[B, N, D / 2]`."""
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * turn[:, None]
    return torch.view_as_real(pairs).flatten(-2)


def attention(attn, queries, states, turn_queries=None, turn_keys=None):
    """Softmax attention as a textbook has it, of normed and rotated queries and keys."""
    projected = (attn.to_q, queries), (attn.to_k, states), (attn.to_v, states)
    query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in projected)
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    query = query if turn_queries is None else turned(query, turn_queries)
    key = key if turn_keys is None else turned(key, turn_keys)
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return attn.to_out[0]((logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Reduced:
    """One block's plan, made from the first part that asks or from the block's input."""

    def __init__(self, reducer, parts, context, from_block):
        self.reducer, self.parts, self.context, self.plan = reducer, parts, context, None
        self.from_block = from_block

    def begin(self, tokens):
        if self.from_block:
            self.plan = self.reducer.plan(tokens, bigain.Grid((5, 7)), self.context)

    def __call__(self, part, tokens, turn, work):
        """Do `work(queries, keys, their positions)` on what the plan leaves of the tokens."""
        turn = turn.expand(tokens.shape[0], -1, -1)
        if part not in self.parts:
            return work(tokens, tokens, turn, turn)
        self.plan = self.plan or self.reducer.plan(tokens, bigain.Grid((5, 7)), self.context)
        short, places = self.plan.reduce(tokens), self.place(turn)
        if self.plan.kind == "kv":
            return work(tokens, short, turn, places)
        return self.plan.restore(work(short, short, places, places))

    def place(self, turn):
        summed = torch.complex(*(self.plan.place_positions(part) for part in (turn.real, turn.imag)))
        return summed / summed.abs()


def block_by_hand(block, reduced, x, *, temb, encoder_hidden_states, image_rotary_emb, skip=None):
    """Hunyuan-DiT (Li et al., 2024), section 2.1."""
    text, (cosines, sines) = encoder_hidden_states, image_rotary_emb
    turn = torch.complex(cosines[:, ::2], sines[:, ::2]).to(torch.complex128)[None]
    reduced.begin(x)
    if skip is not None:
        x = block.skip_linear(block.skip_norm(torch.cat([x, skip], dim=-1)))
    x = x + reduced("self", block.norm1(x, temb), turn, lambda q, k, tq, tk: attention(block.attn1, q, k, tq, tk))
    x = x + reduced("cross", block.norm2(x), turn, lambda q, _, tq, __: attention(block.attn2, q, text, tq))
    return x + reduced("mlp", block.norm3(x), turn, lambda q, *_: block.ff(q))


def by_hand(model, batch, reducer, parts, from_block=False):
    model, cache = copy.deepcopy(model), {}
    for layer, block in enumerate(model.blocks):
        reduced = Reduced(reducer, parts, Context(batch["timestep"], layer, cache=cache), from_block and bool(parts))
        block.forward = partial(block_by_hand, block, reduced)
    return model(**batch).sample


def close(found, expected):
    # The library rotates, and some of its norms work, in single precision.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("settings", "parts"), cases(MERGES))
@torch.no_grad()
def test_a_reduced_pass_is_the_one_written_by_hand(model, batch, settings, parts):
    whole = model(**batch).sample
    expected = by_hand(model, batch, bigain.build_reducer(settings), parts)
    with bigain.attach(model, settings, placement={"parts": parts, "layers": 4}):
        close(model(**batch).sample, expected)
    assert (expected - whole).abs().max() > 0.01
    assert_same(model(**batch).sample, whole)


@torch.no_grad()
def test_doing_nothing_changes_nothing(model, batch):
    whole = model(**batch).sample
    close(by_hand(model, batch, None, ()), whole)
    with bigain.attach(model, "identity", placement={"parts": ("self", "cross", "mlp"), "layers": 4}):
        close(model(**batch).sample, whole)


@torch.no_grad()
def test_positions_matter_to_the_reduced_pass(model, batch):
    with bigain.attach(model, "lgtm", ratio=0.5, layers=4):
        found = model(**batch).sample
        cosines, sines = batch["image_rotary_emb"]
        mirrored = model(**{**batch, "image_rotary_emb": (cosines, -sines)}).sample
        unturned = model(**{**batch, "image_rotary_emb": None}).sample
    assert (found - mirrored).abs().max() > 1e-3
    assert (found - unturned).abs().max() > 1e-3


@torch.no_grad()
def test_plans_from_the_block_are_made_before_the_long_skip(model, batch):
    reducer = bigain.build_reducer("lgtm", ratio=0.5)
    expected = by_hand(model, batch, reducer, ("self",), from_block=True)
    with bigain.attach(model, reducer, placement={"layers": 4, "plan_from": "block"}):
        close(model(**batch).sample, expected)


@pytest.mark.parametrize("settings", [MERGES[0], KEYS[0]])
@torch.no_grad()
def test_without_norms_positions_are_applied_behind_the_projections(batch, settings):
    model = tiny_hunyuan()
    for block in model.blocks:
        for attn in (block.attn1, block.attn2):
            attn.norm_q = attn.norm_k = None
    parts = ("self", "cross") if settings in MERGES else ("self",)
    expected = by_hand(model, batch, bigain.build_reducer(settings), parts)
    with bigain.attach(model, settings, placement={"parts": parts, "layers": 4}):
        close(model(**batch).sample, expected)


@torch.no_grad()
def test_grid_and_moment_are_read_from_positional_arguments_too(model, batch, recording):
    sample, timestep = batch.pop("hidden_states"), batch.pop("timestep")
    with bigain.attach(model, recording, layers=1):
        table = tuple(part[:28] for part in batch["image_rotary_emb"])
        model(sample[..., :8, :], timestep, **{**batch, "image_rotary_emb": table})
    (call,) = recording.calls
    assert call.grid == bigain.Grid((4, 7))
    assert call.timestep.tolist() == [20, 500, 980]


def test_sites_are_all_blocks_and_the_default_the_first_of_them():
    sites = HunyuanDiTAdapter().sites(tiny_hunyuan(num_layers=7))
    assert [site.name for site in sites] == [f"blocks.{index}" for index in range(7)]
    assert HunyuanDiTAdapter().default_layers(sites) == [0, 1, 2]
    assert [list(site.parts) for site in sites] == [["self", "cross", "mlp"]] * 7


@pytest.mark.parametrize("changes", [{}, {"use_style_cond_and_image_meta_size": False}])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.no_grad()
def test_inputs_are_what_the_model_takes(changes, device):
    model = tiny_hunyuan(num_layers=2, **changes).to(device)
    given = HunyuanDiTAdapter().inputs(model, 3, (4, 6), torch.device(device), torch.float64)
    assert model(**given).sample.shape == (3, 6, 8, 12)
    assert HunyuanDiTAdapter().moment(model, (), given).shape == (4, 6)
    assert HunyuanDiTAdapter().configured_shape(model) == (8, 8)


@parametrize_with_checks(Specimen(partial(tiny_hunyuan, num_layers=2)))
def test_conformance(subject, check):
    check(subject)
