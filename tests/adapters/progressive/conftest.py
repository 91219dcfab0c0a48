"""Tiny vision transformers of timm and transformers, to merge the tokens of."""

import pytest
import torch
from torch import nn

TINY = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
WORDS |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
IN_TIMM = {
    "class": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "mean": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "mean_of_all": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "mean_and_max": ("vit_tiny_patch16_224", {"global_pool": "avgmax", "fc_norm": False}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}),
    "attention_pool": ("vit_base_patch16_siglip_224", {}),
    "eva": ("eva02_tiny_patch14_224", {}),
    "rope_each_head": ("vit_small_patch16_rope_mixed_224", {}),
    "rope_halves": ("vit_small_patch16_dinov3", {}),
    "prefix_in_attention_pool": ("vit_pe_core_tiny_patch16_384", {}),
}
IN_TRANSFORMERS = {
    "ViTForImageClassification": "ViTConfig",
    "CLIPVisionModelWithProjection": "CLIPVisionConfig",
    "CLIPForImageClassification": "CLIPConfig",
    "SiglipVisionModel": "SiglipVisionConfig",
    "SiglipForImageClassification": "SiglipConfig",
    "Dinov2ForImageClassification": "Dinov2Config",
    "Dinov2WithRegistersForImageClassification": "Dinov2WithRegistersConfig",
}


def _tiny(form="class", **changes):
    """Make a model of 3 blocks on a 4 x 4 grid, in double precision."""
    torch.manual_seed(0)
    if form in IN_TIMM:
        import timm

        name, given = IN_TIMM[form]
        model = timm.create_model(name, **{**TINY, **given, **changes})
    else:
        import transformers

        config = getattr(transformers, IN_TRANSFORMERS[form])
        shape = {**SHAPE, **({} if form.startswith("Dino") else {"intermediate_size": 64}), **changes}
        shape = shape if "text_config" not in vars(config()) else {"vision_config": shape, "text_config": WORDS}
        model = getattr(transformers, form)(config(num_labels=5, **shape))
    for key, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and not key.endswith("bias")), std=spread)
    return model.double().eval()


def _images(rows=3, size=(32, 32), seed=1):
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed)).double()


def _output_of(model, x):
    found = model(x)
    keys = ("logits", "image_embeds", "pooler_output")
    return found if isinstance(found, torch.Tensor) else next(found[key] for key in keys if key in found)


def _blocks_of(model):
    """Find a model's blocks: each with its attention, and the modules before attention and MLP."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) == 3]
    kinds = ("Block", "EvaBlock", "ViTLayer", "CLIPEncoderLayer", "SiglipEncoderLayer", "Dinov2")
    (blocks,) = [part for part in lists if type(part[0]).__name__.startswith(kinds)]
    for block in blocks:
        parts = dict(block.named_children())
        attn = next(parts[name] for name in ("attn", "attention", "self_attn") if name in parts)
        second = next(parts[name] for name in ("norm2", "layernorm_after", "layer_norm2") if name in parts)
        yield block, attn, second


@pytest.fixture(scope="session")
def tiny():
    """Make a model by its form: `tiny("mean", dynamic_img_size=True)`."""
    return _tiny


@pytest.fixture(scope="session")
def images():
    """Make seeded images: `images(2, (32, 48))`."""
    return _images


@pytest.fixture(scope="session")
def output_of():
    """Run a model, and return the one tensor that matters: `output_of(model, x)`."""
    return _output_of


@pytest.fixture(scope="session")
def blocks_of():
    """List a model's blocks, each with its attention and the module before its MLP."""
    return _blocks_of
