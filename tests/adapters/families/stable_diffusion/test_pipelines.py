"""Whole pipelines: images with a reducer attached, against passes with blocks written by hand."""

import pytest
import torch

import bigain
from bigain.errors import SiteError
from tests.comparing import assert_same

REDUCERS = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "abm", "ratio": 0.4},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}},
    {"name": "iekvd", "factor": 2, "alpha": {"start": 0.2, "end": 1.3}},
]
PARTS = ("self", "cross", "mlp")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-4


@pytest.mark.parametrize("prompt", ["a cat", ["a", "b", "c"]], ids=["one", "three"])
@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
def test_images_are_finite_and_others_and_after_detaching_the_same_as_before(either, draw, spec, prompt):
    before = draw(either, prompt=prompt)
    with bigain.attach(either, spec):
        differ(draw(either, prompt=prompt), before)
    assert_same(draw(either, prompt=prompt), before)


@pytest.mark.parametrize("spec", [*REDUCERS[:1], *REDUCERS[2:]], ids=lambda spec: spec["name"])
def test_every_guided_pass_equals_the_one_by_hand(either, draw, passes, by_hand, spec):
    reducer = bigain.build_reducer(spec)
    parts = PARTS[:1] if spec["name"] == "iekvd" else PARTS
    with (
        bigain.attach(either, reducer, placement={"parts": parts, "names": "*"}),
        passes(either.unet) as noted,
    ):
        draw(either, prompt=["a", "b", "c"], output_type="latent")
    assert [each.batch["sample"].shape for each in noted] == [(6, 4, 8, 12)] * 2  # 3 without the prompt, 3 with it
    for each in noted:
        close(each.output, by_hand(either.unet, each.batch, dict.fromkeys(parts, reducer)))


def test_an_image_does_not_depend_on_the_others_of_its_batch(either, draw):
    latents = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(2)).double()
    with bigain.attach(either, "cached", reducer={"name": "abm", "ratio": 0.5}):
        together = draw(either, prompt=["a", "b", "c"], latents=latents)
        for row, prompt in enumerate("abc"):
            close(draw(either, prompt=prompt, latents=latents[row, None])[0], together[row])


def test_attaching_to_a_pipeline_is_attaching_to_its_unet(either, draw):
    seen = []
    for model in (either, either.unet):
        with bigain.attach(model, "lgtm", ratio=0.5) as report:
            seen.append((report.sites, draw(either)))
    assert seen[0][0] == seen[1][0]
    assert_same(seen[0][1], seen[1][1])


def test_pipelines_around_the_same_unet_share_what_is_attached(sd, draw, passes, by_hand):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).double()
    call = {"image": image, "height": None, "width": None, "num_inference_steps": 4, "strength": 0.5}
    before, reducer = draw(other, **call), bigain.build_reducer("lgtm", ratio=0.5)
    with bigain.attach(sd, reducer, placement={"names": "*"}), passes(sd.unet) as noted:
        differ(draw(other, **call), before)
    assert len(noted) == 2
    for each in noted:
        close(each.output, by_hand(sd.unet, each.batch, {"self": reducer}))
    assert_same(draw(other, **call), before)


def test_what_a_controlnet_adds_is_added_to_reduced_blocks(sd, draw, passes, by_hand):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    torch.manual_seed(3)
    control = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(4, 4)).double()
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    pipe = StableDiffusionControlNetPipeline(**sd.components, controlnet=control, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).double()
    before, reducer = draw(pipe, image=image), bigain.build_reducer("lgtm", ratio=0.5)
    with bigain.attach(pipe, reducer, placement={"parts": PARTS, "names": "*"}), passes(pipe.unet) as noted:
        differ(draw(pipe, image=image), before)
    for each in noted:
        assert all(residual.abs().max() > 1e-3 for residual in each.batch["down_block_additional_residuals"])
        close(each.output, by_hand(pipe.unet, each.batch, dict.fromkeys(PARTS, reducer)))
    assert_same(draw(pipe, image=image), before)


@torch.no_grad()
def test_freeu_goes_on_with_a_reducer_attached(sd, batch, by_hand):
    reducer = bigain.build_reducer("lgtm", ratio=0.5)
    with bigain.attach(sd, reducer, placement={"parts": PARTS, "names": "*"}):
        plain = sd.unet(**batch).sample
        sd.enable_freeu(0.9, 0.2, 1.5, 1.6)
        found = sd.unet(**batch).sample
    differ(found, plain)
    close(found, by_hand(sd.unet, batch, dict.fromkeys(PARTS, reducer)))


@torch.no_grad()
@pytest.mark.parametrize("spec", [*REDUCERS, {"name": "tome", "ratio": 0.5}], ids=lambda spec: spec["name"])
def test_a_schedulers_timesteps_may_stay_on_the_host(sd, batch, spec):
    """As in a loop written by hand: `scheduler.set_timesteps(50)` leaves them on the CPU."""
    unet, elsewhere = sd.unet.to("meta"), {key: value.to("meta") for key, value in batch.items()}
    late = {"name": "scheduled", "rules": [{"reducer": {"name": "tome", "ratio": 0.25}, "timesteps": [500, 1000]}]}
    for reducer in (spec, {**late, "otherwise": spec}):
        if reducer is spec or spec["name"] != "iekvd":  # which does not merge
            with bigain.attach(unet, reducer):
                assert unet(**{**elsewhere, "timestep": batch["timestep"]}).sample.shape == batch["sample"].shape


def test_a_pipeline_around_a_network_that_no_adapter_knows_is_refused():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
    pipe = DDPMPipeline(unet, DDPMScheduler())
    with pytest.raises(
        SiteError, match=r"^Nothing to attach to in DDPMPipeline\. .*known families are: .*UNet2DCondition"
    ):
        bigain.attach(pipe, "lgtm", ratio=0.5)


def test_blocks_without_self_attention_at_full_resolution_are_no_silent_nothing(tiny_sd):
    """As in the x4 upscaler, whose fine blocks attend to text alone."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    pipe = tiny_sd(**blocks, only_cross_attention=(True, False))
    with pytest.raises(
        SiteError, match=r"^None of the 3 blocks that default names has 'self'; they have cross, mlp\.$"
    ):
        bigain.attach(pipe, "lgtm", ratio=0.5)
    with bigain.attach(pipe, "lgtm", ratio=0.5, placement={"downsample": 2}) as report:
        assert {site.grid.shape for site in report.sites} == {(4, 4)}
