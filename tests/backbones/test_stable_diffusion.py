"""Stable Diffusion from a folder: the images and errors of diffusers' own pipeline."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file

import bigain
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, NumericalError, SettingError
from bigain.results.cache import cache_folder, clear_cache
from tests.pipelines import assert_same_image, change_json, drawn, loaded, save_sd, save_sdxl

LGTM = {"name": "lgtm", "ratio": 0.5}

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**BETAS, "clip_sample": False, "steps_offset": 1}
KINDS = {
    "pndm": lambda folder: save_sd(folder),
    "euler": lambda folder: save_sd(folder, EulerDiscreteScheduler(**BETAS)),
    "velocity": lambda folder: save_sd(folder, DDIMScheduler(**DDIM, prediction_type="v_prediction")),
    "xl": lambda folder: save_sdxl(folder),
    "xl, empty prompt": lambda folder: save_sdxl(folder, force_zeros_for_empty_prompt=False),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize(
    ("guidance", "reducer"), [(1.0, None), (7.5, None), pytest.param(7.5, LGTM, marks=pytest.mark.same_digits)]
)
def test_an_image_is_that_of_the_pipeline(folder, guidance, reducer):
    pipe, backbone = loaded(folder), StableDiffusion(folder)
    sampler = Sampler(backbone, steps=4, guidance=guidance, rows=1)
    if reducer is None:
        expected, found = drawn(pipe, 3, guidance_scale=guidance), sampler(backbone.embed(["a cat"]), [3])
    else:
        with bigain.attach(pipe.unet, dict(reducer)):
            expected = drawn(pipe, 3, guidance_scale=guidance)
        with bigain.attach(backbone.network, dict(reducer)):
            found = sampler(backbone.embed(["a cat"]), [3])
    assert_same_image(found, expected)
    assert expected.float().std() > 5  # an image, not a plain colour


def test_what_the_network_predicts_is_what_the_pipelines_parts_give(folder):
    """A plain loop over the pipeline's components."""
    pipe, backbone = loaded(folder), StableDiffusion(folder)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode(image.float() / 127.5 - 1).latent_dist.mean
    clean = backbone.encode(image)
    torch.testing.assert_close(clean, mean * pipe.vae.config.scaling_factor)
    noise, t = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([100, 700])
    noisy = DDIMScheduler.from_config(pipe.scheduler.config).add_noise(clean, noise, t)
    torch.testing.assert_close(backbone.process.add_noise(clean, noise, t), noisy)
    for prompt in ("a cat", ""):
        extra = {}
        if hasattr(pipe, "text_encoder_2"):
            states, _, pooled, _ = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
            sizes = torch.tensor([[16, 16, 0, 0, 16, 16.0]]).expand(2, -1)
            extra = {"added_cond_kwargs": {"text_embeds": pooled.expand(2, -1), "time_ids": sizes}}
        else:
            states, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        with torch.no_grad():
            expected = pipe.unet(noisy, t, encoder_hidden_states=states.expand(2, -1, -1), **extra).sample
            found = backbone.predict(noisy, t, backbone.embed([prompt, prompt]))
        torch.testing.assert_close(found, expected)


def test_rows_of_a_batch_are_those_drawn_alone(folder):
    backbone = StableDiffusion(folder)
    condition = backbone.embed(["a cat", "a dog", "cats"])
    together = Sampler(backbone, steps=3, guidance=4, rows=3)(condition, [1, 2, 3])
    alone = torch.cat([Sampler(backbone, 3, 4, rows=1)(condition.take([i]), [i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("absent", [(), ("clip_sample", "steps_offset")])
def test_outdated_settings_of_a_scheduler_are_corrected_as_the_pipeline_does(tmp_path, absent):
    folder = save_sd(tmp_path / "model", DDIMScheduler(**DDIM))
    file = folder / "scheduler" / "scheduler_config.json"
    settings = {**json.loads(file.read_text()), "clip_sample": True, "steps_offset": 0}
    # Where a setting is absent, the class's default counts, and the pipeline corrects that.
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in absent}))
    with pytest.warns(FutureWarning):
        expected = drawn(loaded(folder), 3, guidance_scale=2.0)
    backbone = StableDiffusion(folder)
    assert_same_image(Sampler(backbone, 4, 2.0, rows=1)(backbone.embed(["a cat"]), [3]), expected)


def test_a_prompt_and_an_image_are_computed_once(tmp_path):
    backbone = StableDiffusion(save_sd(tmp_path / "model"))
    image = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    first = backbone.embed(["a cat", "a dog"]), backbone.encode(image)
    assert len(list(cache_folder().rglob("*.safetensors"))) == 2 + 3
    again = StableDiffusion(tmp_path / "model")

    def refused(*_, **__):
        raise AssertionError("computed twice")

    again._encoders["text_encoder"].network.forward = refused
    again._vae.network.encode = refused
    assert torch.equal(again.embed(["a dog"]).states, first[0].states[1:])
    assert torch.equal(again.encode(image[1:]), first[1][1:])
    with pytest.raises(AssertionError, match="twice"):
        again.embed(["another"])
    assert clear_cache() > 0
    assert not list(cache_folder().rglob("*.safetensors"))


def test_another_model_has_a_cache_of_its_own(tmp_path):
    one = StableDiffusion(save_sd(tmp_path / "one"))
    other = StableDiffusion(save_sd(tmp_path / "other"))
    with torch.no_grad():
        next(other._encoders["text_encoder"].network.parameters()).add_(1)
    assert not torch.equal(one.embed(["a"]).states, other.embed(["a"]).states)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_vae_stays_in_the_type_that_is_safe_for_it(tmp_path, dtype):
    folder = save_sd(tmp_path / "model")
    backbone = StableDiffusion(folder, dtype)
    assert backbone.network.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert backbone._vae.network.dtype == (torch.float32 if dtype == "fp16" else torch.bfloat16)
    assert backbone.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).dtype == torch.float32
    assert "vae" not in "".join(backbone.state_dict())


def broken(folder, change):
    """A folder whose index is another."""
    index = json.loads((folder / "model_index.json").read_text())
    change(index)
    (folder / "model_index.json").write_text(json.dumps(index))


REFUSED = {
    "no model": (lambda f: (f / "model_index.json").unlink(), "it has no model_index.json. Give a folder"),
    "a list": (lambda f: (f / "model_index.json").write_text("[]"), "holds a JSON list; accepted is an object"),
    "another pipeline": (lambda f: broken(f, lambda i: i.update(_class_name="FluxPipeline")), "holds a FluxPipeline"),
    "another class": (lambda f: broken(f, lambda i: i.update(unet=["os", "system"])), "names system as unet; accepted"),
    "no tokenizer": (lambda f: broken(f, lambda i: i.update(tokenizer=["a", "AutoModel"])), "no tokenizer"),
    "no vae": (lambda f: broken(f, lambda i: i.pop("vae")), "names no vae"),
    "no scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "lacks scheduler"),
    "no such class": (
        lambda f: broken(f, lambda i: i.update(unet=["transformers", "UNet2DConditionModel"])),
        "no such",
    ),
    "a layer more than weights": (
        lambda f: change_json(f / "text_encoder" / "config.json", num_hidden_layers=3),
        "lacks",
    ),
    "a guided U-Net": (lambda f: change_json(f / "unet" / "config.json", time_cond_proj_dim=4), "lacks|would ignore"),
    "moments of latents": (lambda f: change_json(f / "vae" / "config.json", latents_mean=[0.0] * 4), "would ignore"),
    "truncated": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"1234"),
        "unet in .* cannot be loaded",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_model_is_refused_in_words(tmp_path, what):
    folder = save_sd(tmp_path / "model")
    spoil, words = REFUSED[what]
    spoil(folder)
    with pytest.raises(DataError, match=words):
        StableDiffusion(folder)


def test_other_bad_input_is_refused_in_words(tmp_path, monkeypatch):
    folder = save_sd(tmp_path / "model")
    for settings, words in [
        ({"image_size": 15}, "multiple of 2"),
        ({"image_size": 0}, "multiple of 2"),
        ({"dtype": "fp8"}, "one of fp32"),
    ]:
        with pytest.raises(SettingError, match=words):
            StableDiffusion(folder, **settings)
    with pytest.raises(DataError, match="No model at nowhere"):
        StableDiffusion("nowhere")
    with pytest.raises(SettingError, match="hub:owner/name"):
        StableDiffusion("hub:name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="hub:a/b cannot be downloaded"):
        StableDiffusion("hub:a/b")
    backbone = StableDiffusion(folder, image_size=32)
    assert (backbone.image_size, backbone.latent_shape) == (32, (4, 16, 16))
    for given in ([1, 2], [], torch.tensor([1]), "a cat"):
        with pytest.raises(SettingError, match="conditioned on prompts"):
            backbone.embed(given)
    with pytest.raises(SettingError, match="has 102 tokens; the text_encoder of this model sees 77"):
        backbone.embed(["a " * 100])


def test_a_repository_is_downloaded_by_components_and_older_weights_only_where_there_are_no_others(
    tmp_path, monkeypatch
):
    """The hub is a folder here: what is asked of it, by the patterns that its client takes."""
    from fnmatch import fnmatch

    folder, got, asked = save_sd(tmp_path / "model"), [], []
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    (folder / "v1-5-pruned.safetensors").write_bytes(b"checkpoint of another program")
    shutil.copy(weights, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    weights.unlink()

    def download(name, revision, allow_patterns, ignore_patterns):
        assert (name, revision) == ("owner/name", "main")
        asked.append(allow_patterns)
        for file in (file for file in folder.rglob("*") if file.is_file()):
            path = file.relative_to(folder).as_posix()
            wanted = any(fnmatch(path, one) for one in allow_patterns)
            if wanted and not any(fnmatch(path, one) for one in ignore_patterns):
                (tmp_path / "got" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "got" / path)
                got.append(path)
        return str(tmp_path / "got")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = StableDiffusion("hub:owner/name@main")
    assert "unet/diffusion_pytorch_model.bin" in got
    assert not [path for path in got if path.endswith((".fp16.safetensors", "pruned.safetensors"))]
    assert found.embed(["a cat"]).states.shape == (1, 77, 16)
    assert asked[0] == ["model_index.json"]
    broken(folder, lambda index: index.update(_class_name="WanPipeline"))
    with pytest.raises(DataError, match="hub:owner/name@main holds a WanPipeline"):
        StableDiffusion("hub:owner/name@main")
    assert len(asked) == 4  # the last time, no more than what it is


CHANGES = {
    "weights": lambda folder: None,
    "encoder": lambda folder: change_json(folder / "text_encoder" / "config.json", hidden_act="gelu"),
    "words": lambda folder: change_json(folder / "tokenizer" / "tokenizer_config.json", note="another"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_an_embedding_decides_what_is_kept(tmp_path, what):
    """The weights of a folder may be right, and its configuration be corrected later."""
    folder = save_sd(tmp_path / "model")
    before = StableDiffusion(folder)
    CHANGES[what](folder)
    after = StableDiffusion(folder)
    if what == "weights":
        with torch.no_grad():  # one value among those that are not sampled
            after._encoders["text_encoder"].network.get_input_embeddings().weight[7, 3] += 0.5
    assert before._texts.identity != after._texts.identity


@pytest.mark.same_digits
def test_mixed_precision_does_not_reach_what_is_kept(tmp_path):
    backbone = StableDiffusion(save_sd(tmp_path / "model"))
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone.embed(["a cat"]).states, backbone.encode(image), backbone.decode(torch.ones(1, 4, 8, 8))
    clear_cache()
    expected = backbone.embed(["a cat"]).states, backbone.encode(image), backbone.decode(torch.ones(1, 4, 8, 8))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_nan_is_never_kept_and_never_an_image(tmp_path):
    backbone = StableDiffusion(save_sd(tmp_path / "model"))
    with torch.no_grad():
        next(backbone._vae.network.encoder.parameters()).fill_(torch.nan)
    assert backbone.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).isnan().all()
    assert not list(cache_folder().rglob("*.safetensors"))
    with pytest.raises(NumericalError, match="The VAE returned NaN"):
        backbone.decode(torch.full((1, 4, 8, 8), torch.nan))


def test_models_that_differ_in_more_than_the_network_are_different_results(tmp_path):
    folder = save_sd(tmp_path / "model")
    one, larger = StableDiffusion(folder), StableDiffusion(folder, image_size=32)
    change_json(folder / "vae" / "config.json", scaling_factor=0.5)
    scaled = StableDiffusion(folder)
    assert one.identity() != larger.identity()
    assert one.identity() != scaled.identity()
    assert one.identity() == {"image_size": 16, "vae": one._latents.identity}
