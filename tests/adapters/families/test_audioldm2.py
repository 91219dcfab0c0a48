"""The AudioLDM 2 adapter: reduced forward passes against one written by hand; two texts, and none."""

import copy
import math
from functools import partial

import pytest
import torch

import bigain
from bigain.adapters.families.audioldm2 import AudioLDM2Adapter
from bigain.errors import SiteError
from bigain.reducers.base import Context
from bigain.testing import Specimen, parametrize_with_checks
from tests.adapters.families.settings import KEYS, cases, merges
from tests.comparing import assert_same

MERGES = merges(ratio=0.4)
GRIDS = {"down_blocks.0": (15, 6), "mid_block": (8, 3), "up_blocks.1": (15, 6)}
"""Time by frequency in each stage that has transformers, for the batch's 15 x 6."""


def tiny_audioldm2(**changes):
    from diffusers import AudioLDM2UNet2DConditionModel

    torch.manual_seed(0)
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    shape = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16)}
    blocks = {"down_block_types": down, "up_block_types": up, "layers_per_block": 1, "norm_num_groups": 4}
    widths = {"cross_attention_dim": ((None, 12, 20), (None, 12, 20)), "attention_head_dim": 2}
    model = AudioLDM2UNet2DConditionModel(**{**shape, **blocks, **widths, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model.eval().double()


@pytest.fixture(scope="module")
def model():
    return tiny_audioldm2()


@pytest.fixture
def batch(model):
    """Three rows of 15 x 6 latents, with texts of different lengths."""
    torch.manual_seed(1)
    given = AudioLDM2Adapter().inputs(model, 3, (15, 6), torch.device("cpu"), torch.float64)
    given["encoder_hidden_states_1"] = given["encoder_hidden_states_1"][:, :5]
    given["encoder_attention_mask_1"] = (torch.arange(5) < torch.tensor([[5], [2], [4]])).double()
    return given


def attention(attn, queries, states, bias=0.0):
    """Softmax attention as a textbook has it."""
    projected = (attn.to_q, queries), (attn.to_k, states), (attn.to_v, states)
    query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in projected)
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return attn.to_out[0](((logits + bias).softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Reduced:
    """One block's plan, made from the block's input."""

    def __init__(self, reducer, parts, grid, context):
        self.reducer, self.parts, self.grid, self.context, self.plan = reducer, parts, grid, context, None

    def begin(self, tokens):
        if self.parts:
            self.plan = self.reducer.plan(tokens, self.grid, self.context)

    def __call__(self, part, tokens, work):
        """Do `work(queries, keys)` on what the plan leaves of the tokens."""
        if part not in self.parts:
            return work(tokens, tokens)
        short = self.plan.reduce(tokens)
        return work(tokens, short) if self.plan.kind == "kv" else self.plan.restore(work(short, short))


def block_by_hand(block, reduced, x, *, encoder_hidden_states=None, encoder_attention_mask=None, **_):
    """A transformer block of Rombach et al. (2022); where it has no text, it attends to itself twice."""
    reduced.begin(x)
    text, bias = encoder_hidden_states, 0.0 if encoder_attention_mask is None else encoder_attention_mask[:, None]
    x = x + reduced("self", block.norm1(x), lambda q, k: attention(block.attn1, q, k))
    if text is None:
        x = x + reduced("self", block.norm2(x), lambda q, k: attention(block.attn2, q, k))
    else:
        x = x + reduced("cross", block.norm2(x), lambda q, _: attention(block.attn2, q, text, bias))
    return x + reduced("mlp", block.norm3(x), lambda q, _: block.ff(q))


def by_hand(model, batch, reducer, parts):
    """Run a copy whose blocks are written out; of each place, the second and third see the two texts."""
    model, cache, layer = copy.deepcopy(model), {}, 0
    for stage, shape in GRIDS.items():
        for attention in model.get_submodule(stage).attentions:
            (block,) = attention.transformer_blocks
            context = Context(batch["timestep"], layer, stage, cache=cache)
            block.forward = partial(block_by_hand, block, Reduced(reducer, parts, bigain.Grid(shape), context))
            layer += 1
    return model(**batch).sample


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("settings", "parts"), cases(MERGES))
@torch.no_grad()
def test_a_reduced_pass_is_the_one_written_by_hand(model, batch, settings, parts):
    whole = model(**batch).sample
    expected = by_hand(model, batch, bigain.build_reducer(settings), parts)
    with bigain.attach(model, settings, placement={"parts": parts, "names": "*"}):
        close(model(**batch).sample, expected)
    assert (expected - whole).abs().max() > 1e-3
    assert_same(model(**batch).sample, whole)


@torch.no_grad()
def test_doing_nothing_changes_nothing(model, batch):
    whole = model(**batch).sample
    close(by_hand(model, batch, None, ()), whole)
    with bigain.attach(model, "identity", placement={"parts": ("self", "cross", "mlp"), "names": "*"}):
        assert_same(model(**batch).sample, whole)


@pytest.mark.parametrize("settings", [MERGES[0], KEYS[1]])
@torch.no_grad()
def test_both_self_attentions_of_a_block_are_reduced(model, batch, settings):
    seen, block = {}, model.down_blocks[0].attentions[0].transformer_blocks[0]
    with bigain.attach(model, settings, layers=1):
        for attn in ("attn1", "attn2"):
            layer = getattr(block, attn).to_k
            layer.register_forward_pre_hook(lambda _, args, attn=attn: seen.__setitem__(attn, args[0].shape[1]))
        try:
            model(**batch)
        finally:
            block.attn1.to_k._forward_pre_hooks.clear()
            block.attn2.to_k._forward_pre_hooks.clear()
    assert seen["attn1"] == seen["attn2"] < 90


@torch.no_grad()
def test_stages_and_grids_are_those_of_the_pass(model, batch, recording):
    with bigain.attach(model, recording, placement={"names": "*"}, shape=(12, 6)):
        sample, text = batch.pop("sample")[:, :, :12], batch.pop("encoder_hidden_states")
        model(sample, 400, text, **{name: value for name, value in batch.items() if name != "timestep"})
    told = [(call.stage, call.grid.shape, call.tokens.shape[1]) for call in recording.calls]
    assert told == [
        *[("down_blocks.0", (12, 6), 72)] * 3,
        *[("mid_block", (6, 3), 18)] * 3,
        *[("up_blocks.1", (12, 6), 72)] * 6,
    ]
    assert all(call.timestep.tolist() == [400, 400, 400] for call in recording.calls)


def test_sites_are_in_the_order_of_execution_and_say_what_they_have(model, batch):
    order, adapter = [], AudioLDM2Adapter()
    sites = adapter.sites(model)
    handles = [site.block.register_forward_pre_hook(lambda block, _: order.append(block)) for site in sites]
    model(**batch)
    for handle in handles:
        handle.remove()
    assert [id(block) for block in order] == [id(site.block) for site in sites]
    assert adapter.default_layers(sites) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert [list(site.parts) for site in sites[:3]] == [["self", "mlp"], *[["self", "cross", "mlp"]] * 2]
    assert sites[0].covered("self") == tuple(f"{sites[0].name}.{attn}" for attn in ("attn1", "attn2"))


CHANGES = [{}, {"cross_attention_dim": (12, 20)}, {"cross_attention_dim": 12}, {"sample_size": (16, 8)}]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.no_grad()
def test_inputs_are_what_the_model_takes(changes, device):
    if changes.get("cross_attention_dim") == (12, 20):  # the widths of the stages that attend must agree
        changes = {**changes, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        changes["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    model = tiny_audioldm2(**changes).to(device)
    given = AudioLDM2Adapter().inputs(model, 3, (8, 6), torch.device(device), torch.float64)
    assert model(**given).sample.shape == (3, 3, 8, 6)
    assert AudioLDM2Adapter().configured_shape(model) == (16, 8 if "sample_size" in changes else 16)


def test_without_a_configured_length_the_error_says_how_to_give_one():
    with pytest.raises(SiteError, match="sample_size"):
        AudioLDM2Adapter().configured_shape(tiny_audioldm2(sample_size=None))


@pytest.mark.parametrize("spoilt", ["attn1", "attn2"])
def test_what_cannot_be_reduced_is_refused_in_either_self_attention(spoilt):
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    model = tiny_audioldm2()
    attention = getattr(model.down_blocks[0].attentions[0].transformer_blocks[0], spoilt)
    attention.fuse_projections()
    attention.set_processor(FusedAttnProcessor2_0())
    with pytest.raises(SiteError, match=rf"transformer_blocks.0.{spoilt} projects queries, keys and values at once"):
        bigain.attach(model, "todo", factor=2)
    assert not any(module._forward_pre_hooks for module in model.modules())


def gradients(batch, checkpointed, reducer=MERGES[0]):
    model = tiny_audioldm2().train()
    if checkpointed:
        model.enable_gradient_checkpointing()
    for module in model.modules():
        if checkpointed == "blocks" and hasattr(module, "attentions"):
            module.gradient_checkpointing = False
    with bigain.attach(model, reducer, placement={"names": "*", "parts": ("self", "mlp")}):
        model(**batch).sample.square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def test_checkpointed_blocks_repeat_their_plans_and_checkpointed_transformers_are_refused(batch):
    for found, expected in zip(gradients(batch, "blocks"), gradients(batch, None), strict=True):
        assert_same(found, expected)
    # With masks, the library itself cannot: it passes them on to another argument.
    with pytest.raises(SiteError, match=r"Checkpoint whole blocks, one by one"):
        gradients({name: value for name, value in batch.items() if "mask" not in name}, "all")


SMALL = {"cross_attention_dim": ((None, 12), 12), "up_block_types": ("UpBlock2D", "UpBlock2D")}


@parametrize_with_checks(Specimen(partial(tiny_audioldm2, **SMALL)))
def test_conformance(subject, check):
    check(subject)
