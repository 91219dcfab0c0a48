"""What needs an accelerator: offloading that moves weights, fused attention, the compiler's own backend.

Run it with `pytest -m gpu tests/adapters/stable_diffusion`.
"""

import pytest
import torch

import bigain

pytestmark = pytest.mark.gpu

PARTS = ("self", "cross", "mlp")
LGTM = {"name": "lgtm", "ratio": 0.5}
IEKVD = {"name": "iekvd", "factor": 2, "alpha": {"start": 0.2, "end": 1.3}}
REDUCERS = [LGTM, {"name": "abm", "ratio": 0.4}, {"name": "cached", "reducer": LGTM}, IEKVD]
CUDA = torch.device("cuda")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-3


def placement(spec):
    return {"parts": PARTS if spec is LGTM else PARTS[:1]}


@pytest.fixture
def wide(tiny_sd):
    """Heads of 8 channels and more, as fused attention asks for."""
    return tiny_sd(block_out_channels=(16, 32)).to(CUDA)


def model_offload(pipe):
    pipe.enable_model_cpu_offload()


def sequential_offload(pipe):
    pipe.enable_sequential_cpu_offload()


def group_offload(pipe):
    pipe.enable_group_offload(onload_device=CUDA, offload_type="leaf_level", use_stream=True)


@pytest.mark.parametrize("spec", [LGTM, IEKVD], ids=lambda spec: spec["name"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", [model_offload, sequential_offload, group_offload])
def test_an_offloaded_pipeline_makes_the_images_it_makes_on_the_gpu(tiny_sd, draw, way, order, spec):
    whole = tiny_sd().to(CUDA)
    plain = draw(whole).cpu()
    with bigain.attach(whole, spec, placement=placement(spec)):
        expected = draw(whole).cpu()
    differ(expected, plain)
    pipe = tiny_sd()
    if order == "before":
        way(pipe)
    report = bigain.attach(pipe, spec, placement=placement(spec))
    if order == "after":
        way(pipe)
    close(draw(pipe).cpu(), expected)
    report.detach()
    close(draw(pipe).cpu(), plain)


@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sdxl"])
def test_images_in_half_precision(request, draw, name, spec):
    pipe = request.getfixturevalue(name)().to(CUDA, torch.float16)
    plain = draw(pipe, prompt=["a", "b", "c"], output_type="latent")
    with bigain.attach(pipe, spec):
        differ(draw(pipe, prompt=["a", "b", "c"], output_type="latent"), plain)


@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
def test_flash_attention_that_takes_no_mask_goes_on_on_reduced_tokens(wide, draw, spec):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    pipe = wide.to(torch.float16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot run
        plain = draw(pipe, output_type="latent")
        with bigain.attach(pipe, spec, placement=placement(spec)):
            differ(draw(pipe, output_type="latent"), plain)


def test_xformers_goes_on_on_reduced_tokens(wide, draw):
    pytest.importorskip("xformers")
    pipe = wide.to(torch.float16)
    pipe.enable_xformers_memory_efficient_attention()
    plain = draw(pipe, output_type="latent")
    with bigain.attach(pipe, LGTM, placement=placement(LGTM)):
        differ(draw(pipe, output_type="latent"), plain)
        assert {type(one).__name__ for one in pipe.unet.attn_processors.values()} == {"XFormersAttnProcessor"}


@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_unet_in_a_pipeline_is_one_graph(wide, draw, spec, mode):
    """`reduce-overhead` records CUDA graphs. In double precision, so that no other tokens are merged."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with bigain.attach(wide, spec, placement=placement(spec)):
        expected = draw(wide, num_inference_steps=4, output_type="latent")
        wide.unet = torch.compile(wide.unet, fullgraph=True, dynamic=False, mode=mode)
        close(draw(wide, num_inference_steps=4, output_type="latent"), expected)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
@pytest.mark.parametrize("spec", [*REDUCERS, {"name": "tome", "ratio": 0.5}], ids=lambda spec: spec["name"])
def test_timesteps_that_stay_on_the_cpu_are_understood(tiny_unet, batch, spec):
    unet = tiny_unet().to(CUDA)
    here = {name: value.to(CUDA) for name, value in batch.items()}
    with bigain.attach(unet, spec):
        close(unet(**{**here, "timestep": batch["timestep"]}).sample, unet(**here).sample)
