"""The contract of adapters, on a tiny U-Net of each kind."""

from bigain.testing import parametrize_with_checks
from bigain.testing.adapters.bench import Specimen

SMALL = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
WIDTHS = {"block_out_channels": (8, 16), "attention_head_dim": 2, "mid_block_type": None}


def stable_diffusion(**changes):
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DConditionModel(**{**SMALL, **WIDTHS, "cross_attention_dim": 16, **blocks, **changes})


def stable_diffusion_xl():
    return stable_diffusion(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )


@parametrize_with_checks([Specimen(stable_diffusion), Specimen(stable_diffusion_xl)])
def test_conformance(subject, check):
    check(subject)
