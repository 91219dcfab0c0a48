"""Whatever processor or backend is set does the work, and stays set."""

import pytest
import torch

import bigain
from bigain.errors import SettingError, SiteError
from tests.comparing import assert_same

PARTS = ("self", "cross", "mlp")
REDUCERS = [{"name": "lgtm", "ratio": 0.5}, {"name": "iekvd", "factor": 2, "alpha": 0.8}]
PADDED = {
    "name": "scheduled",
    "rules": [{"reducer": {"name": "lgtm", "ratio": 0.25}, "timesteps": [500, 1000]}],
    "otherwise": {"name": "lgtm", "ratio": 0.5},
}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-4


def parts_of(spec):
    return ("self",) if spec["name"] == "iekvd" else PARTS


def processor(name):
    from diffusers.models import attention_processor

    return getattr(attention_processor, name)(*([1] if name == "SlicedAttnProcessor" else []))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor"])
@pytest.mark.parametrize("spec", [*REDUCERS, PADDED], ids=lambda spec: spec["name"])
@torch.no_grad()
def test_a_processor_set_before_or_after_attaching_does_the_work(tiny_unet, batch, by_hand, spec, name, order):
    unet, chosen = tiny_unet(), processor(name)
    batch["timestep"] = torch.tensor([20, 980])
    reducer = bigain.build_reducer(spec)
    expected = by_hand(unet, batch, dict.fromkeys(parts_of(spec), reducer))
    if order == "before":
        unet.set_attn_processor(chosen)
    with bigain.attach(unet, reducer, placement={"parts": parts_of(spec), "names": "*"}):
        if order == "after":
            differ(unet(**batch).sample, unet(**{**batch, "timestep": torch.tensor(20)}).sample)
            unet.set_attn_processor(chosen)
        close(unet(**batch).sample, expected)
        assert set(unet.attn_processors.values()) == {chosen}
    assert set(unet.attn_processors.values()) == {chosen}


@torch.no_grad()
def test_attention_slicing_is_switched_while_a_reducer_is_attached(sd, draw):
    before = draw(sd)
    with bigain.attach(sd, "lgtm", ratio=0.5, placement={"parts": PARTS}):
        plain = draw(sd)
        sd.enable_attention_slicing(1)
        sliced = draw(sd)
        assert {type(one).__name__ for one in sd.unet.attn_processors.values()} == {"SlicedAttnProcessor"}
        sd.disable_attention_slicing()
        close(draw(sd), plain)
    close(sliced, plain)
    differ(plain, before)


@torch.no_grad()
def test_a_processor_that_proportional_attention_stands_in_for_is_not_silently_replaced(sd, draw):
    with bigain.attach(sd, "lgtm", ratio=0.5, placement={"proportional": True}):
        sd.enable_attention_slicing(1)
        with pytest.raises(SiteError, match=r"attn1\.processor was replaced after a reducer was attached"):
            draw(sd)


@pytest.mark.parametrize("order", ["before", "after"])
@torch.no_grad()
def test_fused_projections_are_given_merged_tokens(sd, batch, by_hand, order):
    reducer = bigain.build_reducer("lgtm", ratio=0.5)
    expected = by_hand(sd.unet, batch, dict.fromkeys(PARTS, reducer))
    if order == "before":
        sd.fuse_qkv_projections(vae=False)
    with bigain.attach(sd, reducer, placement={"parts": PARTS, "names": "*"}):
        if order == "after":
            sd.fuse_qkv_projections(vae=False)
        assert {type(one).__name__ for one in sd.unet.attn_processors.values()} == {"FusedAttnProcessor2_0"}
        close(sd.unet(**batch).sample, expected)


@torch.no_grad()
def test_where_projections_are_fused_keys_and_values_cannot_be_fewer(sd, batch):
    plain = sd.unet(**batch).sample
    sd.fuse_qkv_projections(vae=False)
    with pytest.raises(SiteError, match=r"attn1 projects .* at once, .* undo that with unfuse_qkv_projections\(\)"):
        bigain.attach(sd, "iekvd", factor=2)
    close(sd.unet(**batch).sample, plain)
    sd.unfuse_qkv_projections(vae=False)
    bigain.attach(sd, "iekvd", factor=2)
    sd.fuse_qkv_projections(vae=False)
    with pytest.raises((SiteError, AttributeError), match=r"to_kv|fuse"):
        sd.unet(**batch)


@torch.no_grad()
def test_an_attention_backend_stays_chosen(sd, batch, by_hand):
    from diffusers.models import attention_dispatch

    active = attention_dispatch._AttentionBackendRegistry.get_active_backend
    reducer = bigain.build_reducer("lgtm", ratio=0.5)
    expected = by_hand(sd.unet, batch, {"self": reducer})
    with attention_dispatch.attention_backend("_native_math"):
        chosen = active()
        with bigain.attach(sd, reducer, placement={"names": "*"}):
            close(sd.unet(**batch).sample, expected)
            assert active() == chosen
        assert active() == chosen
    assert active() != chosen


@torch.no_grad()
def test_an_sdpa_backend_that_takes_no_mask_is_given_none(tiny_unet, batch):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    unet = tiny_unet()
    for spec in REDUCERS:
        with bigain.attach(unet, spec, placement={"names": "*"}):
            free = unet(**batch).sample
            with sdpa_kernel(SDPBackend.MATH):
                close(unet(**batch).sample, free)


@pytest.fixture
def perturbed(sd):
    """Perturbed-attention guidance: a pipeline that sets processors during the call, and takes them back behind it."""
    from diffusers import StableDiffusionPAGPipeline

    layers = ["up_blocks.1", "mid"]
    pipe = StableDiffusionPAGPipeline(**sd.components, pag_applied_layers=layers, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_perturbed_attention_guidance_works_on_merged_tokens(perturbed, draw):
    plain, processors = draw(perturbed, pag_scale=3.0), perturbed.unet.attn_processors
    with bigain.attach(perturbed, "lgtm", ratio=0.5, layers=[3]):  # a block whose processor is replaced
        differ(draw(perturbed, pag_scale=3.0), plain)
    assert perturbed.unet.attn_processors == processors
    assert_same(draw(perturbed, pag_scale=3.0), plain)


def test_processors_that_take_no_keys_from_elsewhere_are_no_silent_nothing(perturbed, draw):
    with (
        bigain.attach(perturbed, "iekvd", factor=2, layers=[3]),
        pytest.raises((SettingError, SiteError), match=r"attn1 has a PAG\w+, .* take a merging reducer"),
    ):
        draw(perturbed, pag_scale=3.0)
