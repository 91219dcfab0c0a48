"""Generation through Lightning."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from safetensors.torch import load_file

from bigain.backbones.pixel_dit import PixelDiT
from bigain.cli.main import main
from bigain.data.captions import CaptionPrompts
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.prompts import ClassPrompts
from bigain.errors import DataError, SettingError
from bigain.metrics.base import GeneratedImages, GenerationMetric
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.frechet import FrechetDistance
from bigain.reducers.lgtm import LGTM
from bigain.results.scores import Score, scores_of
from bigain.tasks.generation import GenerationTask, tile_images
from tests.trainers import QUIET


class StopAt(Callback):
    """Presses Ctrl-C before a batch."""

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            raise KeyboardInterrupt


@pytest.fixture
def run(tiny_reference, tiny_weights, tiny_features, tmp_path):
    def runner(name="result", chunk=4, callbacks=(), prompts=None, **settings):
        usual = {"reducer": LGTM(0.5), "steps": 3, "rows": 4, "reference": tiny_reference}
        settings = {**usual, "features": EmbeddedFeatures(tiny_features), **settings}
        task = GenerationTask(PixelDiT(tiny_weights), output=tmp_path / name, **settings)
        prompts = prompts or ClassPrompts(count=10, chunk=chunk)
        Trainer(**QUIET, callbacks=[*callbacks]).test(task, datamodule=prompts, verbose=False)
        return tmp_path / name

    return runner


def samples(folder):
    """Every image of a result, with index, label and seed."""
    chunks = [load_file(path) for path in sorted((folder / "samples").glob("*.safetensors"))]
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}


def test_it_writes_samples_a_sheet_and_the_distance(run, tiny_reference, tiny_features):
    place = run()
    drawn, result = samples(place), json.loads((place / "result.json").read_text())
    assert drawn["image"].shape == (10, 3, 8, 8)
    assert drawn["label"].tolist() == list(range(10))
    assert drawn["seed"].tolist() == list(range(10))
    assert (place / "grid.png").exists()
    expected = (
        FrechetDistance(EmbeddedFeatures(tiny_features), tiny_reference)
        .score(GeneratedImages(lambda: [drawn["image"]]))
        .value
    )
    (score,) = scores_of(result).values()
    assert score.name == "frechet_distance"
    assert score.value == pytest.approx(expected)
    assert result["evaluations_per_image"] == 6
    assert result["generated"] == 10


def test_batches_change_no_image(run):
    expected, found = samples(run("a")), samples(run("b", chunk=3, rows=7))
    assert (found["image"].int() - expected["image"].int()).abs().max() <= 1


def test_an_interrupted_run_resumes_to_the_same_images(run):
    expected = samples(run("whole"))
    with pytest.raises(SystemExit):
        run("stopped", callbacks=[StopAt()])
    found = samples(run("stopped", resume=True))
    for key, value in expected.items():
        assert torch.equal(found[key], value)


def test_half_precision_rounds_the_model_and_not_the_features(tiny_weights, tiny_features, tiny_reference, tmp_path):
    features = EmbeddedFeatures(tiny_features)
    before = {name: value.clone() for name, value in features.state_dict().items()}
    task = GenerationTask(
        PixelDiT(tiny_weights),
        LGTM(0.5),
        features=features,
        reference=tiny_reference,
        steps=2,
        rows=4,
        output=tmp_path / "half",
    )
    prompts = ClassPrompts(count=4, chunk=4)
    Trainer(**QUIET, precision="bf16-true").test(task, datamodule=prompts, verbose=False)
    assert next(task.backbone.parameters()).dtype == torch.bfloat16
    for name, value in features.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.slow
def test_two_devices_give_the_distance_of_one(
    root, run, tiny_reference, tiny_weights, tiny_features, tmp_path, forking
):
    expected = json.loads((run("one") / "result.json").read_text())
    options = {
        "model.backbone.init_args.weights": tiny_weights,
        "model.features": "bigain.metrics.features.EmbeddedFeatures",
        "model.features.folder": tiny_features,
        "model.reference": tiny_reference,
        "model.steps": 3,
        "model.rows": 4,
        "data.count": 10,
        "data.chunk": 4,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp_fork",  # by starting the command again: tests/tasks/test_classification.py
        "trainer.precision": "32-true",
        "output": tmp_path / "two",
    }
    recipe = root / "recipes/generate/cifar10_lgtm.yaml"
    main(["test", f"--config={recipe}", *(f"--{k}={v}" for k, v in options.items())])
    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert found["generated"] == 10
    (ours,), (theirs,) = scores_of(found).values(), scores_of(expected).values()
    assert ours.value == pytest.approx(theirs.value, rel=0.02)
    images = samples(tmp_path / "two")["image"]
    assert ours.value == pytest.approx(
        FrechetDistance(EmbeddedFeatures(tiny_features), tiny_reference).score(GeneratedImages(lambda: [images])).value
    )


def test_a_missing_reference_ends_before_any_work(run, tmp_path):
    with pytest.raises(DataError, match="No images at"):
        run(reference=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_another_number_of_classes_are_refused(run):
    with pytest.raises(SettingError, match=r"the model 10: give --data\.classes"):
        run(prompts=ClassPrompts(count=4, classes=("cat", "dog", "ship")))


def test_captions_are_no_labels(run, tmp_path):
    captions = [{"image_id": number, "id": number, "caption": "A cat."} for number in range(10)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": captions}))
    with pytest.raises(SettingError, match="PixelDiT takes labels: captions are for models that take prompts"):
        run(prompts=CaptionPrompts(tmp_path / "captions.json"))


def test_guidance_of_a_model_without_an_unconditional_prediction_ends_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(PixelDiT, "null", lambda self, condition: None)
    with pytest.raises(SettingError, match=r"guidance is 1 for it; got 1\.5"):
        run()
    assert list(tmp_path.iterdir()) == []
    assert (run(guidance=1.0) / "grid.png").exists()


def test_metrics_and_a_reference_are_refused(run):
    with pytest.raises(SettingError, match="belong to the default metric"):
        run(metrics=[FrechetDistance()])


def test_another_scheduler_draws_other_images(run):
    expected = samples(run("own"))["image"]
    found = samples(run("euler", scheduler="diffusers.EulerDiscreteScheduler"))["image"]
    assert not torch.equal(found, expected)
    with pytest.raises(SettingError, match="beta_end"):
        run("other", scheduler={"init_args": {"beta_end": 0.5}})


@pytest.mark.parametrize("settings", [{"count": 1}, {"classes": ()}, {"chunk": 0}])
def test_impossible_prompts_are_refused(settings):
    with pytest.raises(SettingError, match="accepted are"):
        ClassPrompts(**settings)


def test_tiles_stand_in_rows():
    images = torch.stack([torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (10, 20, 30)])
    sheet = tile_images(images, columns=2)
    assert sheet.size == (4, 4)
    assert [sheet.getpixel(at)[0] for at in ((0, 0), (2, 0), (0, 2), (2, 2))] == [10, 20, 30, 255]


def test_images_are_pngs_on_request(run):
    place = run("with", png=True)
    drawn = samples(place)["image"]
    files = sorted((place / "samples").glob("*.png"))
    assert [file.name for file in files] == [f"{number:05d}.png" for number in range(10)]
    for file, image in zip(files, drawn, strict=True):
        assert torch.equal(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1), image)
    assert torch.equal(samples(run("without"))["image"], drawn)
    assert not list((place.parent / "without").rglob("0*.png"))


def test_metrics_know_the_prompts_and_refuse_before_any_work(run, tmp_path):
    class Prompted(GenerationMetric):
        def __init__(self, least=0):
            self.least = least

        def identity(self):
            return {"metric": "prompted"}

        def check(self, prompts):
            if prompts.count < self.least:
                raise SettingError("too few")

        def score(self, images):
            assert images.prompts == [f"a photo of a {name}" for name in CIFAR10_CLASSES]
            return Score("prompted", float(sum(len(chunk) for chunk in images)))

    with pytest.raises(SettingError, match="too few"):
        run(metrics=[Prompted(11)], features=None, reference=None)
    assert list(tmp_path.iterdir()) == []
    result = json.loads((run(metrics=[Prompted()], features=None, reference=None) / "result.json").read_text())
    assert scores_of(result)["prompted"].value == 10
