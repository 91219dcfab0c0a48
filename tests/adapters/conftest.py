"""Tiny DiTs with weights that are nowhere zero."""

import pytest
import torch


def _tiny_dit(**changes):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "in_channels": 3, "sample_size": 8}
    fixed = {"patch_size": 1, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"}
    model = DiTTransformer2DModel(**{**shape, **fixed, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_dit():
    """Make a DiT of 4 blocks of 2 heads x 8 channels on an 8 x 8 grid: `tiny_dit(num_layers=28)`."""
    return _tiny_dit


@pytest.fixture
def dit():
    return _tiny_dit()


@pytest.fixture
def batch():
    """Three noisy images at different timesteps, of different classes, as keyword arguments of a DiT."""
    return {
        "hidden_states": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([20, 500, 980]),
        "class_labels": torch.tensor([0, 4, 9]),
    }
