"""Stable Diffusion 3 from a folder: the images and errors of diffusers' own pipeline."""

import json

import pytest
import torch

import bigain
from bigain.backbones.sd3 import SD3
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, SettingError
from tests.pipelines import assert_same_image, drawn, loaded, save_sd3

LGTM = {"name": "lgtm", "ratio": 0.5}
KINDS = {
    "t5": {},
    "no t5": {"with_t5": False},
    "dynamic shift": {"use_dynamic_shifting": True},
    "3.5": {"transformer": {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_sd3(tmp_path_factory.mktemp("models") / "model", **KINDS[request.param])


@pytest.mark.parametrize(
    ("guidance", "reducer"), [(1.0, None), (7.0, None), pytest.param(7.0, LGTM, marks=pytest.mark.same_digits)]
)
def test_an_image_is_that_of_the_pipeline(folder, guidance, reducer):
    pipe, backbone = loaded(folder), SD3(folder)
    sampler = Sampler(backbone, steps=4, guidance=guidance, rows=1)
    condition = backbone.embed(["a cat"])
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


def test_what_the_network_predicts_is_what_the_pipelines_parts_give(folder):
    """A plain loop over the pipeline's components."""
    pipe, backbone = loaded(folder), SD3(folder)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = torch.cat([pipe.vae.encode(one[None].float() / 127.5 - 1).latent_dist.mean for one in image])
    clean = backbone.encode(image)
    torch.testing.assert_close(clean, (mean - 0.06) * 1.5)
    torch.testing.assert_close(backbone.decode(clean), decoded(pipe, clean))
    noise, t = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([100, 700])
    sigma = torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1)  # without the scheduler's shift
    noisy = (1 - sigma) * clean + sigma * noise
    torch.testing.assert_close(backbone.process.add_noise(clean, noise, t), noisy)
    for prompt in ("a cat", ""):
        with torch.no_grad():
            states, _, pooled, _ = pipe.encode_prompt(prompt, None, None, "cpu", do_classifier_free_guidance=False)
            flow = pipe.transformer(noisy, states.expand(2, -1, -1), pooled.expand(2, -1), t).sample
            condition = backbone.embed([prompt, prompt])
            torch.testing.assert_close(condition.states, states.expand(2, -1, -1))
            torch.testing.assert_close(backbone.predict(noisy, t, condition), flow)
            torch.testing.assert_close(backbone.predict_noise(noisy, t, condition), noisy + (1 - sigma) * flow)


def decoded(pipe, latents):
    with torch.no_grad():
        images = pipe.vae.decode(latents / 1.5 + 0.06).sample
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def test_a_perfect_flow_gives_the_noise_back(tmp_path):
    backbone = SD3(save_sd3(tmp_path / "model"))
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500, 999])
    backbone.network.forward = lambda *_, **__: (noise - clean,)
    found = backbone.predict_noise(backbone.process.add_noise(clean, noise, t), t, backbone.embed(["a", "b", ""]))
    torch.testing.assert_close(found, noise)


def test_rows_of_a_batch_are_those_drawn_alone(folder):
    backbone = SD3(folder)
    condition = backbone.embed(["a cat", "a dog", "cats"])
    together = Sampler(backbone, steps=3, guidance=4, rows=3)(condition, [1, 2, 3])
    alone = torch.cat([Sampler(backbone, 3, 4, rows=1)(condition.take([i]), [i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


def test_without_guidance_there_is_the_empty_prompt(folder):
    backbone = SD3(folder)
    null, empty = backbone.null(backbone.embed(["a cat", "a dog"])), backbone.embed(["", ""])
    assert torch.equal(null.states, empty.states)
    assert torch.equal(null.pooled, empty.pooled)


def test_half_precision_predicts_about_the_same(tmp_path):
    folder = save_sd3(tmp_path / "model")
    noisy, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([100, 900])
    found = []
    for dtype in ("fp32", "bf16"):
        backbone = SD3(folder, dtype)
        with torch.no_grad():
            found.append(backbone.predict(noisy, t, backbone.embed(["a cat", "a dog"])))
    assert found[1].dtype == torch.float32
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


def test_a_prompt_is_as_long_as_the_encoder_that_sees_most(tmp_path):
    """With T5, CLIP sees the beginning, as in the pipeline; without it, nothing would see the end."""
    folder = save_sd3(tmp_path / "t5")
    backbone, prompt = SD3(folder), "a" * 90 + "b"
    with torch.no_grad():
        expected = loaded(folder).encode_prompt(prompt, None, None, "cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(backbone.embed([prompt]).states, expected[0])
    with pytest.raises(SettingError, match="text_encoder_3 of this model sees 256"):
        backbone.embed(["a" * 300])
    without = SD3(save_sd3(tmp_path / "none", with_t5=False))
    with pytest.raises(SettingError, match="text_encoder of this model sees 77"):
        without.embed([prompt])


def test_other_bad_input_is_refused_in_words(tmp_path):
    folder = save_sd3(tmp_path / "model")
    for settings, words in [
        ({"image_size": 18}, "image_size is a multiple of 4"),
        ({"image_size": 52}, "at most 48, which this transformer has positions for; got 52"),
        ({"dtype": "fp8"}, "one of fp32"),
    ]:
        with pytest.raises(SettingError, match=words):
            SD3(folder, **settings)
    backbone = SD3(folder, image_size=48)
    assert (backbone.latent_shape, backbone.image_tokens) == ((4, 24, 24), 144)
    for given in ([1, 2], [], torch.tensor([1])):
        with pytest.raises(SettingError, match="conditioned on prompts"):
            backbone.embed(given)
    index = json.loads((folder / "model_index.json").read_text())
    for change, words in [
        ({"_class_name": "FluxPipeline"}, "holds a FluxPipeline; accepted here: StableDiffusion3Pipeline"),
        ({"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ({"text_encoder_3": ["transformers", "BertModel"]}, "names BertModel as text_encoder_3; accepted"),
    ]:
        (folder / "model_index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(DataError, match=words):
            SD3(folder)
