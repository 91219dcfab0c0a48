"""DiT from a folder: the images of diffusers' own pipeline."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import bigain
from bigain.backbones.dit import DiT
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, SettingError
from tests.pipelines import as_tensor, assert_same_image, change_json, loaded, save_dit, save_sd

LGTM = {"name": "lgtm", "ratio": 0.5}

KINDS = {
    "ddim": lambda folder: save_dit(folder),
    "dpm": lambda folder: save_dit(folder, DPMSolverMultistepScheduler()),
    "no variance": lambda folder: save_dit(folder, out_channels=4),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("models") / "model")


def drawn(pipe, label, seed, guidance):
    generator = torch.Generator("cpu").manual_seed(seed)
    call = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "np"}
    return as_tensor(pipe([label], generator=generator, **call).images)


@pytest.mark.parametrize(
    ("guidance", "reducer"), [(1.0, None), (4.0, None), pytest.param(4.0, LGTM, marks=pytest.mark.same_digits)]
)
def test_an_image_is_that_of_the_pipeline(folder, guidance, reducer):
    pipe, backbone = loaded(folder), DiT(folder)
    sampler = Sampler(backbone, steps=4, guidance=guidance, rows=1)
    expected, found = drawn(pipe, 207, 3, guidance), sampler(backbone.embed([207]), [3])
    if reducer is not None:
        whole = expected
        with bigain.attach(pipe.transformer, dict(reducer)):
            expected = drawn(pipe, 207, 3, guidance)
        with bigain.attach(backbone.network, dict(reducer)):
            found = sampler(backbone.embed([207]), [3])
        assert not torch.equal(expected, whole)
    assert_same_image(found, expected)
    assert expected.float().std() > 5  # an image, not a plain colour
    assert not torch.equal(expected, drawn(pipe, 8, 3, guidance))  # which depends on the label


def test_what_the_network_predicts_is_what_the_pipelines_parts_give(folder):
    """A plain loop over the pipeline's components."""
    pipe, backbone = loaded(folder), DiT(folder)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode(image.float() / 127.5 - 1).latent_dist.mean
    clean = backbone.encode(image)
    torch.testing.assert_close(clean, mean * pipe.vae.config.scaling_factor)
    t = torch.tensor([100, 700])
    for labels in ([0, 999], [1000, 1000]):
        condition = backbone.embed([0, 999])
        condition = backbone.null(condition) if labels[0] == 1000 else condition
        with torch.no_grad():
            expected = pipe.transformer(clean, t, class_labels=torch.tensor(labels)).sample[:, :4]
            found = backbone.predict(clean, t, condition)
        torch.testing.assert_close(found, expected)


def test_rows_of_a_batch_are_those_drawn_alone(folder):
    backbone = DiT(folder)
    condition = backbone.embed([1, 2, 3])
    together = Sampler(backbone, steps=3, guidance=4, rows=3)(condition, [1, 2, 3])
    alone = torch.cat([Sampler(backbone, 3, 4, rows=1)(condition.take([i]), [i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


def test_a_folder_as_it_was_published_is_loaded(tmp_path):
    """Its files name the class that DiT's class was once part of, and the index has names of classes."""
    folder = save_dit(tmp_path / "model")
    expected = drawn(loaded(folder), 207, 3, 4.0)
    change_json(
        folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"], id2label={"0": "tench, Tinca"}
    )
    change_json(folder / "transformer" / "config.json", _class_name="Transformer2DModel", caption_channels=None)
    backbone = DiT(folder)
    assert type(backbone.network).__name__ == "DiTTransformer2DModel"
    assert_same_image(Sampler(backbone, 4, 4.0, rows=1)(backbone.embed([207]), [3]), expected)
    change_json(folder / "transformer" / "config.json", norm_type="ada_norm_single")
    with pytest.raises(DataError, match=r"transformer in .* cannot be loaded"):
        DiT(folder)


def test_a_model_of_fewer_labels_has_another_null_label(tmp_path):
    backbone = DiT(save_dit(tmp_path / "model", num_embeds_ada_norm=10))
    assert backbone.label_count == 10
    assert backbone.null(backbone.embed([0, 9])).labels.tolist() == [10, 10]


def test_training_drops_no_label_by_itself(tmp_path):
    backbone = DiT(save_dit(tmp_path / "model")).train()
    noisy, t = torch.randn(64, 4, 8, 8), torch.full((64,), 500)
    condition = backbone.embed([5] * 64)
    torch.testing.assert_close(backbone.predict(noisy, t, condition), backbone.eval().predict(noisy, t, condition))


def test_on_the_meta_device_only_shapes_are_read(tmp_path):
    folder = save_dit(tmp_path / "model")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    with torch.device("meta"):
        backbone = DiT(folder)
        noisy = torch.empty(1, *backbone.latent_shape)
        found = backbone.predict(noisy, torch.zeros(1), backbone.embed([0]).to("meta"))
    assert found.shape == (1, 4, 8, 8)


def test_bad_input_is_refused_in_words(tmp_path):
    folder = save_dit(tmp_path / "model")
    with pytest.raises(SettingError, match=r"multiple of 4 \(2 pixels a latent, 2 latents a patch\); got 18"):
        DiT(folder, image_size=18)
    with pytest.raises(DataError, match="holds a StableDiffusionPipeline; accepted here: DiTPipeline"):
        DiT(save_sd(tmp_path / "other"))
    backbone = DiT(folder, image_size=32)
    assert (backbone.image_size, backbone.latent_shape, backbone.label_count) == (32, (4, 16, 16), 1000)
    for given in ([1000], [-1], torch.tensor([0, 1000])):
        with pytest.raises(SettingError, match="from 0 to 999"):
            backbone.embed(given)
    with pytest.raises(SettingError, match=r"conditioned on labels.*got the prompt 'a cat'"):
        backbone.embed(["a cat"])


def test_another_scheduler_of_the_same_process_can_be_chosen(tmp_path):
    folder = save_dit(tmp_path / "model")
    pipe, backbone = loaded(folder), DiT(folder)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    chosen = Sampler(backbone, 4, 4.0, rows=1, scheduler="diffusers.DPMSolverMultistepScheduler")
    assert_same_image(chosen(backbone.embed([7]), [1]), drawn(pipe, 7, 1, 4.0))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert not torch.equal(chosen(backbone.embed([7]), [1]), drawn(pipe, 7, 1, 4.0))
