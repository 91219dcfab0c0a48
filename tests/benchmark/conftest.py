"""What the tests of counting share."""

import pytest


@pytest.fixture(scope="session")
def tiny_unet_config():
    """A U-Net of two narrow stages on 16 x 16 latents."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
    }
