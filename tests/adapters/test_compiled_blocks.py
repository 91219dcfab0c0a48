"""Blocks that are compiled one by one while only some of them have a reducer."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

import bigain
from tests.comparing import assert_same


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=4, sample_size=8, patch_size=2,
        norm_type="ada_norm_zero", num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def evaluate(network):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return network(tokens, torch.tensor([3, 5]), torch.tensor([1, 2])).sample


@pytest.mark.parametrize("layers", [2, [1, 3]])
def test_code_of_blocks_without_hooks_does_not_run_for_those_with(network, layers):
    """It once did from the second pass on: the reducer did nothing, without a word."""
    bare = evaluate(network)
    with bigain.attach(network, "lgtm", ratio=0.5, layers=layers):
        expected = evaluate(network)
        assert (expected - bare).abs().max() > 1e-3
        for block in network.transformer_blocks:
            block.compile(backend="eager", fullgraph=True, dynamic=False)
        for _ in range(3):
            assert_same(evaluate(network), expected)


def test_nothing_of_it_is_left_after_detaching(network):
    def state():
        return [
            (set(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
            for module in network.modules()
        ]

    before = state()
    bigain.attach(network, "lgtm", ratio=0.5, layers=2).detach()
    assert state() == before
