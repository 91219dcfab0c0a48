"""Whole pipelines of tiny random components."""

import pytest
import torch

import bigain
from tests.comparing import assert_same

FRAME = (1, 2, 2)


def wan_pipeline(families, **settings):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = families["wan"].model(in_channels=16, out_channels=16).float()
    pipe = WanPipeline(None, None, vae, scheduler, model, **settings)
    return pipe, {"num_frames": 9, "height": 48, "width": 32}, (3, 3, 2)


def cogvideox_pipeline(families):
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline

    vae = AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    model = families["cogvideox"].model(sample_height=6, sample_width=4).float()
    pipe = CogVideoXPipeline(None, None, vae, model, CogVideoXDDIMScheduler())
    return pipe, {"num_frames": 9, "height": 48, "width": 32}, (3, 3, 2)


def ltx_pipeline(families):
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline

    narrow = (8, 8, 8, 8)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=narrow, decoder_block_out_channels=narrow,
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1, patch_size_t=1,
    )  # fmt: skip
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, families["ltx"].model().float())
    return pipe, {"num_frames": 9, "height": 32, "width": 64}, (3, 8, 16)


def call(pipe, size, noise):
    text = {"prompt_embeds": noise(1, 7, 10), "negative_prompt_embeds": noise(1, 7, 10, seed=2)}
    if type(pipe).__name__ == "LTXPipeline":
        text |= {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**text, **size, num_inference_steps=2, generator=generator, output_type="pt").frames


@pytest.mark.parametrize("make", [wan_pipeline, cogvideox_pipeline, ltx_pipeline])
def test_a_pipeline_makes_finite_frames_and_is_left_as_it_was(families, noise, make):
    pipe, size, grid = make(families)
    plain = call(pipe, size, noise)
    with bigain.attach(pipe, "lgtm", ratio=0.3, cell=FRAME, shape=grid) as report:
        assert report.sites[0].grid.shape == grid
        frames = call(pipe, size, noise)
    assert frames.shape == (1, 9, 3, size["height"], size["width"])
    assert frames.isfinite().all()
    assert not torch.allclose(frames, plain)
    assert_same(call(pipe, size, noise), plain)


def test_wan_tells_timesteps_token_by_token(families, noise):
    pipe, size, grid = wan_pipeline(families, expand_timesteps=True)
    with bigain.attach(pipe, "tome", ratio=0.3, cell=FRAME, shape=grid):
        assert call(pipe, size, noise).isfinite().all()
