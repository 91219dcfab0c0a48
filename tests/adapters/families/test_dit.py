"""The DiT adapter: sites, grids, moments; and reduced forward passes against one written by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

import bigain
from bigain import build_reducer
from bigain.adapters.families.dit import DiTAdapter
from bigain.reducers.base import Context, Reduction, TokenReducer
from tests.comparing import assert_same


class EverySecond(TokenReducer):
    """Keys and values from every second token: the smallest reducer of the `kv` kind."""

    def plan(self, tokens, grid, context=None):
        return EverySecondReduction(tokens)

    def reduced_length(self, grid, context=None):
        return (grid.tokens + 1) // 2


class EverySecondReduction(Reduction):
    kind = "kv"

    def __init__(self, tokens):
        batch, count = tokens.shape[:2]
        self.sizes = torch.full((batch, (count + 1) // 2), 2.0)
        self.sizes[:, -1] -= count % 2

    def reduce(self, tokens):
        return tokens[:, ::2]

    def restore(self, reduced):
        raise AssertionError("queries stay whole")


def attention(attn, queries, states):
    """Softmax attention as a textbook has it."""
    heads = [
        layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, x in ((attn.to_q, queries), (attn.to_k, states), (attn.to_v, states))
    ]
    q, k, v = heads
    mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
    return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def reduced_attention(attn, x, reducer, grid, context):
    if reducer is None:
        return attention(attn, x, x)
    plan = reducer.plan(x, grid, context)
    short = plan.reduce(x)
    return attention(attn, x, short) if plan.kind == "kv" else plan.restore(attention(attn, short, short))


def forward_by_hand(model, hidden_states, timestep, class_labels, reducer, layers, seed=0):
    """DiT (Peebles and Xie, 2023, figure 3) with reduced self-attention in `layers`."""
    patch, (height, width) = model.config.patch_size, hidden_states.shape[-2:]
    grid = bigain.Grid((height // patch, width // patch))
    x = model.pos_embed(hidden_states)
    for index, block in enumerate(model.transformer_blocks):
        condition = block.norm1.linear(F.silu(block.norm1.emb(timestep, class_labels)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = condition[:, None].chunk(6, dim=-1)
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_a) + shift_a
        context = Context(timestep, layer=index, seed=seed)
        x = x + gate_a * reduced_attention(block.attn1, normed, reducer if index in layers else None, grid, context)
        x = x + gate_m * block.ff(F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale_m) + shift_m)
    shift, scale = model.proj_out_1(F.silu(model.transformer_blocks[0].norm1.emb(timestep, class_labels))).chunk(2, 1)
    x = model.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
    folded = x.reshape(len(x), *grid.shape, patch, patch, -1)
    return folded.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height, width)


REDUCERS = [
    {"name": "identity"},
    {"name": "lgtm", "ratio": 0.5},
    {"name": "lgtm", "ratio": 0.6, "mode": "prune", "cell": 4},
    {"name": "tome", "ratio": 0.5},
    {"name": "tome", "ratio": 0.3, "randomize": False, "mode": "mlerp"},
    EverySecond(),
]


@pytest.mark.parametrize("spec", REDUCERS, ids=str)
@pytest.mark.parametrize("layers", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
@torch.no_grad()
def test_attached_forward_equals_the_one_by_hand(dit, batch, spec, layers):
    reducer = build_reducer(spec)
    expected = forward_by_hand(dit, **batch, reducer=reducer, layers=layers, seed=5)
    with bigain.attach(dit, spec, layers=layers, seed=5):
        torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_reference_without_a_reducer_is_diffusers_own(dit, batch):
    expected = forward_by_hand(dit, **batch, reducer=None, layers=[])
    torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_patches_of_two_pixels(tiny_dit, batch):
    model = tiny_dit(patch_size=2)
    reducer = build_reducer("lgtm", ratio=0.5)
    expected = forward_by_hand(model, **batch, reducer=reducer, layers=[0, 1])
    with bigain.attach(model, reducer, layers=2) as report:
        assert [site.grid.shape for site in report.sites] == [(4, 4)] * 2
        torch.testing.assert_close(model(**batch).sample, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_grid_follows_the_input_not_the_configuration(dit, batch):
    batch["hidden_states"] = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    reducer = build_reducer("lgtm", ratio=0.5)
    expected = forward_by_hand(dit, **batch, reducer=reducer, layers=[0])
    with bigain.attach(dit, reducer, layers=[0]):
        torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_positional_arguments_are_understood(dit, batch):
    with bigain.attach(dit, "tome", ratio=0.5):
        expected = dit(**batch).sample
        assert_same(dit(*batch.values()).sample, expected)
        (as_tuple,) = dit(*batch.values(), None, False)
        assert_same(as_tuple, expected)


@pytest.mark.parametrize("name", ["tome", "lgtm"])
@torch.no_grad()
def test_a_batch_of_mixed_timesteps_equals_row_by_row(dit, batch, name):
    with bigain.attach(dit, name, ratio=0.5, layers=4):
        together = dit(**batch).sample
        for row in range(3):
            alone = dit(**{key: value[row : row + 1] for key, value in batch.items()}).sample
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_seed_changes_what_tome_draws(dit, batch):
    outputs = []
    for seed in (0, 0, 1):
        with bigain.attach(dit, "tome", ratio=0.5, seed=seed):
            outputs.append(dit(**batch).sample)
    assert_same(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


@pytest.mark.parametrize(("depth", "first"), [(1, 1), (2, 1), (4, 1), (8, 3), (28, 12)])
def test_default_layers_are_the_first_twelve_of_twenty_eight(tiny_dit, depth, first):
    with bigain.attach(tiny_dit(num_layers=depth), "lgtm", ratio=0.5) as report:
        assert [site.name for site in report.sites] == [f"transformer_blocks.{i}.attn1" for i in range(first)]


def test_sites_name_real_modules_in_order(dit):
    sites = DiTAdapter().sites(dit)
    assert [site.layer for site in sites] == [0, 1, 2, 3]
    for site in sites:
        assert dit.get_submodule(site.name) is site.block
        for part in ("self", "mlp"):
            assert dit.get_submodule(site.path(part)) is site.module(part)


def test_it_matches_dits_alone(dit):
    assert DiTAdapter().matches(dit)
    assert not DiTAdapter().matches(dit.transformer_blocks[0])


def test_the_moment_is_read_from_the_call(dit, batch):
    sample, *_ = args = tuple(batch.values())
    named = {key: batch[key] for key in ("timestep", "class_labels")}
    for given in [(args, {}), ((sample,), named), ((), batch)]:
        moment = DiTAdapter().moment(dit, *given)
        assert moment.shape == (8, 8)
        assert moment.timestep is batch["timestep"]
