"""FLUX.1 from a folder: the images and errors of diffusers' own pipeline."""

import json

import pytest
import torch
from diffusers import FluxPipeline

import bigain
from bigain.backbones.flux import Flux
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, SettingError
from tests.pipelines import assert_same_image, drawn, loaded, save_flux

LGTM = {"name": "lgtm", "ratio": 0.5}
# The tiny model has 16 tokens, which the usual range of the shift, 256 to 4096, does not tell from none.
SHIFTED = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
KINDS = {
    "dev": {"shift": 3.0, **SHIFTED},
    "dev, one shift": {"shift": 3.0},
    "schnell": {"guidance_embeds": False, "shift": 1.0},
    "schnell, dynamic shift": {"guidance_embeds": False, **SHIFTED},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_flux(tmp_path_factory.mktemp("models") / "model", **KINDS[request.param])


def tiny(folder, **settings):
    return Flux(folder, image_size=16, **settings)


@pytest.mark.parametrize(
    ("guidance", "reducer"), [(3.5, None), (1.5, None), pytest.param(1.5, LGTM, marks=pytest.mark.same_digits)]
)
def test_an_image_is_that_of_the_pipeline(folder, guidance, reducer):
    pipe, backbone = loaded(folder), tiny(folder, guidance=guidance)
    sampler, condition = Sampler(backbone, steps=4, guidance=1, rows=1), backbone.embed(["a cat"])
    if reducer is None:
        expected, found = drawn(pipe, 3, guidance_scale=guidance), sampler(condition, [3])
    else:
        with bigain.attach(pipe.transformer, dict(reducer)):
            expected = drawn(pipe, 3, guidance_scale=guidance)
        with bigain.attach(backbone.network, dict(reducer)):
            found = sampler(condition, [3])
        assert not torch.equal(found, sampler(condition, [3]))  # it did something
    assert_same_image(found, expected)
    assert expected.float().std() > 5  # an image, not a plain colour


def test_the_guidance_that_is_told_changes_the_image(tmp_path):
    folder = save_flux(tmp_path / "model")
    images = []
    for guidance in (1.0, 7.0):
        backbone = tiny(folder, guidance=guidance)
        images.append(Sampler(backbone, 4, guidance=1, rows=1)(backbone.embed(["a cat"]), [3]))
    assert not torch.equal(*images)


def test_what_the_network_predicts_is_what_the_pipelines_parts_give(folder):
    """A plain loop over the pipeline's components, on packed latents."""
    pipe, backbone = loaded(folder), tiny(folder)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = torch.cat([pipe.vae.encode(one[None].float() / 127.5 - 1).latent_dist.mean for one in image])
        decoded = pipe.vae.decode(mean).sample
    clean = backbone.encode(image)
    torch.testing.assert_close(clean, (mean - 0.06) * 1.5)
    levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
    torch.testing.assert_close(backbone.decode(clean).float(), levels, rtol=0, atol=1)
    noise, t = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([100, 700])
    sigma = torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1)  # without the scheduler's shift
    noisy = (1 - sigma) * clean + sigma * noise
    torch.testing.assert_close(backbone.process.add_noise(clean, noise, t), noisy)
    guidance = torch.tensor([3.5, 3.5]) if pipe.transformer.config.guidance_embeds else None
    ids = {"img_ids": FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32), "guidance": guidance}
    with torch.no_grad():
        states, pooled, ids["txt_ids"] = pipe.encode_prompt("a cat", device="cpu")
        text = {"encoder_hidden_states": states.expand(2, -1, -1), "pooled_projections": pooled.expand(2, -1)}
        packed = FluxPipeline._pack_latents(noisy, 2, 4, 8, 8)
        flow = pipe.transformer(packed, timestep=sigma.flatten(), **text, **ids).sample
        flow = FluxPipeline._unpack_latents(flow, 16, 16, 2)
        condition = backbone.embed(["a cat", "a cat"])
        torch.testing.assert_close(condition.states, text["encoder_hidden_states"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone.predict(noisy, t, condition), flow)
        torch.testing.assert_close(backbone.predict_noise(noisy, t, condition), noisy + (1 - sigma) * flow)


def test_a_perfect_flow_gives_the_noise_back(tmp_path):
    backbone = tiny(save_flux(tmp_path / "model"))
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, flow = torch.tensor([10, 500, 999]), noise - clean
    backbone.network.forward = lambda *_, **__: (FluxPipeline._pack_latents(flow, 3, 4, 8, 8),)
    found = backbone.predict_noise(backbone.process.add_noise(clean, noise, t), t, backbone.embed(["a", "b", ""]))
    torch.testing.assert_close(found, noise)


def test_tokens_are_packed_latents_and_their_places_one_tensor(tmp_path):
    """An adapter reads places on the host, once for each tensor."""
    backbone = Flux(save_flux(tmp_path / "model"), image_size=24)
    given = []
    forward = backbone.network.forward
    backbone.network.forward = lambda *args, **rest: given.append((args[0].shape, rest)) or forward(*args, **rest)
    condition, noisy = backbone.embed(["a cat"]), torch.randn(1, 4, 12, 12)
    for _ in range(2):
        backbone.predict(noisy, torch.tensor([500]), condition)
    (shape, first), (_, second) = given
    assert (backbone.latent_shape, backbone.image_tokens, tuple(shape)) == ((4, 12, 12), 36, (1, 36, 16))
    assert first["img_ids"] is second["img_ids"]
    assert torch.equal(first["img_ids"], FluxPipeline._prepare_latent_image_ids(1, 6, 6, "cpu", torch.float32))


def test_rows_of_a_batch_are_those_drawn_alone(folder):
    backbone = tiny(folder)
    condition = backbone.embed(["a cat", "a dog", "cats"])
    together = Sampler(backbone, steps=3, guidance=1, rows=3)(condition, [1, 2, 3])
    alone = torch.cat([Sampler(backbone, 3, 1, rows=1)(condition.take([i]), [i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


@pytest.mark.same_digits
def test_half_precision_is_that_of_the_pipeline(tmp_path):
    """Time and guidance are rounded as there, which changes a prediction by more than the weights do."""
    folder = save_flux(tmp_path / "model")
    pipe, backbone = loaded(folder).to(torch.bfloat16), tiny(folder, dtype="bf16")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states, pooled, places = pipe.encode_prompt("a cat", device="cpu")
        flow = pipe.transformer(
            FluxPipeline._pack_latents(noisy.bfloat16(), 1, 4, 8, 8),
            states,
            pooled,
            timestep=torch.tensor([437]).bfloat16() / 1000,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.bfloat16),
            txt_ids=places,
            guidance=torch.tensor([3.5]),
        ).sample
        found = backbone.predict(noisy, torch.tensor([437]), backbone.embed(["a cat"]))
    assert found.dtype == torch.float32
    assert torch.equal(found, FluxPipeline._unpack_latents(flow, 16, 16, 2).float())


def test_a_prompt_is_as_long_as_t5_sees(tmp_path):
    folder = save_flux(tmp_path / "model")
    backbone, prompt = tiny(folder), "a" * 90 + "b"
    with torch.no_grad():
        states, pooled, _ = loaded(folder).encode_prompt(prompt, device="cpu")
    torch.testing.assert_close(backbone.embed([prompt]).states, states, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.embed([prompt]).pooled, pooled)
    with pytest.raises(SettingError, match="text_encoder_2 of this model sees 512"):
        backbone.embed(["a" * 600])


def test_other_bad_input_is_refused_in_words(tmp_path):
    folder = save_flux(tmp_path / "model")
    for settings, words in [
        ({"image_size": 18}, "image_size is a multiple of 4 .2 pixels a latent, 2 latents a patch"),
        ({"guidance": -1.0}, "0 or more; got -1.0"),
        ({"guidance": float("nan")}, "0 or more; got nan"),
        ({"dtype": "fp8"}, "one of fp32"),
    ]:
        with pytest.raises(SettingError, match=words):
            Flux(folder, **settings)
    backbone = Flux(folder)
    assert (backbone.image_size, backbone.latent_shape) == (256, (4, 128, 128))
    for given in ([1, 2], [], torch.tensor([1])):
        with pytest.raises(SettingError, match="conditioned on prompts"):
            backbone.embed(given)
    condition = backbone.embed(["a cat"])
    assert backbone.null(condition) is None
    with pytest.raises(SettingError, match="Flux has no unconditional prediction"):
        Sampler(backbone, guidance=2.0)(condition, [1])
    index = json.loads((folder / "model_index.json").read_text())
    for change, words in [
        ({"_class_name": "FluxFillPipeline"}, "holds a FluxFillPipeline; accepted here: FluxPipeline"),
        ({"text_encoder_2": [None, None]}, "names no text_encoder_2"),
    ]:
        (folder / "model_index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(DataError, match=words):
            Flux(folder)
