"""Classification through Lightning: figures, files, resuming, devices."""

import json
import shutil
import subprocess
import sys
from functools import partialmethod

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from bigain.adapters.placement import Placement
from bigain.backbones.pixel_dit import PixelDiT
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.module import ImageData
from bigain.diffusion.noise_set import Stages
from bigain.errors import NumericalError, SettingError, SiteError
from bigain.metrics.base import ClassificationMetric
from bigain.metrics.confusion import Confusion
from bigain.metrics.per_class import PerClass
from bigain.metrics.top1 import Top1
from bigain.profiling.modes import GRAPHS
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome import ToMe
from bigain.results.predictions import Predictions
from bigain.results.rescoring import rescored
from bigain.results.scores import Score, scores_of
from bigain.results.store import read_result
from bigain.tasks.classification import ClassificationTask
from bigain.tasks.method import Reduced
from tests.trainers import QUIET


class StopAt(Callback):
    """Presses Ctrl-C before a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Seven random images in class folders, named as CIFAR-10's classes."""
    top = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for number in range(7):
        place = top / CIFAR10_CLASSES[number]
        place.mkdir()
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / "x.png")
    return top


@pytest.fixture
def run(folder, tiny_weights, tmp_path):
    """Run a task; returns the result folder's files."""

    def runner(name="result", chunk=3, trainer=None, backbone=None, data=None, **settings):
        settings = {"reducer": LGTM(0.5), "stages": Stages((2, 4), (3, 1)), "rows": 8, **settings}
        task = ClassificationTask(backbone or PixelDiT(tiny_weights), output=tmp_path / name, **settings)
        data = data or ImageData(test=folder, image_size=8, chunk=chunk)
        (trainer or Trainer(**QUIET)).test(task, datamodule=data, verbose=False)
        return tmp_path / name

    return runner


def found_in(folder):
    """The predictions of a result, and every error, `[N, K, M]`."""
    predictions = Predictions.load(folder)
    return predictions.predicted, predictions.errors.dense(len(predictions), 10)


def test_it_writes_figures_predictions_and_every_error(run):
    place = run()
    result = json.loads((place / "result.json").read_text())
    predictions = Predictions.load(place)
    scores = scores_of(result)
    right = [found in labels for found, labels in zip(predictions.predicted.tolist(), predictions.labels, strict=True)]
    files = ["errors.safetensors", "manifest.txt", "predictions.csv", "result.json"]
    assert sorted(path.name for path in place.iterdir()) == files
    assert (place / "manifest.txt").read_text().splitlines() == [*predictions.names]
    assert result["images"] == 7
    assert scores["evaluations_per_image"].value == Stages((2, 4), (3, 1)).evaluations(10)
    assert scores["top1"].value == pytest.approx(sum(right) / 7)
    assert scores["top1"].low < scores["top1"].value < scores["top1"].high or not any(right)
    assert len(predictions.errors) == 7 * Stages((2, 4), (3, 1)).evaluations(10)
    assert predictions.labels == tuple((number,) for number in range(7))
    assert result["sites"] == [{"name": "transformer_blocks.0.attn1", "before": 64, "after": 32}]
    assert {"git_revision", "versions", "device", "command"} <= set(result)
    rows = (place / "predictions.csv").read_text().splitlines()
    assert len(rows) == 8
    assert rows[1].startswith("airplane/x.png,airplane,")


def test_the_manifest_is_the_subset_and_says_what_a_seed_chose(run, folder):
    chosen = {}
    for seed in (0, 1):
        data = ImageData(test=folder, image_size=8, limit=3, subset="balanced", subset_seed=seed)
        place = run(f"seed {seed}", data=data)
        chosen[seed] = (place / "manifest.txt").read_text().splitlines()
        assert chosen[seed] == [*data.test_set.names]
        assert json.loads((place / "result.json").read_text())["settings"]["subset_seed"] == seed
    assert chosen[0] != chosen[1]
    assert len(chosen[0]) == 3


def test_skipped_images_are_counted_and_other_images_are_not_compared(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / CIFAR10_CLASSES[1] / "x.png").write_text("no image")
    data = ImageData(test=tmp_path / "copy", image_size=8, chunk=3, skip_corrupt=True)
    whole, part = run("whole"), run("part", data=data)
    settings = json.loads((part / "result.json").read_text())["settings"]
    assert (settings["skipped"], settings["images"]) == (1, 6)
    assert "skipped" not in json.loads((whole / "result.json").read_text())["settings"]
    names = (part / "manifest.txt").read_text().splitlines()
    assert names == [name for name in (whole / "manifest.txt").read_text().splitlines() if "automobile" not in name]
    kept = [0, *range(2, 7)]  # an image's errors are its own, whatever was before it
    torch.testing.assert_close(found_in(part), tuple(one[kept] for one in found_in(whole)), equal_nan=True)
    with pytest.raises(SettingError, match="on the same images in the same order; one has 7 images"):
        Top1().compare(Predictions.load(whole), Predictions.load(part))


def test_metrics_write_their_tables_beside_the_result(run):
    place = run(metrics=[Top1(), PerClass(), Confusion()])
    scores, predictions = scores_of(read_result(place)), Predictions.load(place)
    assert scores["per_class"] == PerClass().score(predictions)
    assert scores["worst_confusion"] == Confusion().score(predictions)
    assert len((place / "per_class.csv").read_text().splitlines()) == 1 + 10
    assert sum(int(row.split(",")[2]) for row in (place / "confusion.csv").read_text().splitlines()[1:]) == 7


def test_predictions_can_be_scored_again_from_the_file(run):
    predicted, errors = found_in(run())
    seen_throughout = errors.isfinite().all(-1)
    mean = errors.nanmean(-1).masked_fill(~seen_throughout, torch.inf)
    assert torch.equal(mean.argmin(-1), predicted)


NUMBERS = (0.5, 3.0, 0.0, 1.0)


@pytest.mark.parametrize("stages", [Stages((2, 4), (3, 1), 2), Stages((2, 4), (3, 1), 2, NUMBERS)], ids=str)
def test_several_noises_and_weights_are_stored_and_scored_again(run, stages):
    """A run without pruning has all errors: scored with stages, it is the run with these stages."""
    whole, place = run("whole", stages=Stages((4,), (1,), 2)), run("staged", stages=stages)
    settings, found = read_result(place)["settings"], Predictions.load(place)
    assert settings["noises"] == 2
    assert settings.get("timestep_weights") == ([*NUMBERS] if stages.weights == NUMBERS else None)
    assert found.errors.timesteps.tolist() == [125, 125, 375, 375, 625, 625, 875, 875]
    assert len(found.errors) == 7 * stages.evaluations(10) == 7 * 2 * (2 * 10 + 2 * 3)
    process = PixelDiT().process
    again = rescored(Predictions.load(whole), stages, process)
    assert torch.equal(again.predicted, found.predicted)
    torch.testing.assert_close(again.errors.dense(7, 10), found.errors.dense(7, 10), equal_nan=True)
    twins = found.errors.dense(7, 10).unflatten(2, (4, 2))
    assert not torch.allclose(twins[..., 0], twins[..., 1], equal_nan=True)
    means = found.errors.dense(7, 10)[:, 0]
    weights = torch.tensor(NUMBERS if stages.weights == NUMBERS else [1.0] * 4).repeat_interleave(2)
    expected = (means.nan_to_num() * weights).sum(-1) / (means.isfinite() * weights).sum(-1)
    written = [float(row.split(",")[4]) for row in (place / "predictions.csv").read_text().splitlines()[1:]]
    assert written == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_run_is_not_resumed_with_other_weights_or_noises(run):
    with pytest.raises(SystemExit):
        run("stopped", trainer=Trainer(**QUIET, callbacks=[StopAt(1)]))
    with pytest.raises(SettingError, match="timestep_weights: None then, velocity now"):
        run("stopped", resume=True, stages=Stages((2, 4), (3, 1), weights="velocity"))
    with pytest.raises(SettingError, match="noises: None then, 2 now"):
        run("stopped", resume=True, stages=Stages((2, 4), (3, 1), 2))


@pytest.mark.parametrize("reducer", [LGTM(0.5), ToMe(0.5), ToMe(0.5, randomize=False)])
@pytest.mark.parametrize("settings", [{"chunk": 1}, {"rows": 64}])
def test_batches_change_no_figure(run, reducer, settings):
    expected, found = found_in(run("a", reducer=reducer)), found_in(run("b", reducer=reducer, **settings))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_half_precision_keeps_the_noise_and_the_model_keeps_nothing(run, tiny_weights):
    backbone = PixelDiT(tiny_weights)
    processors = [block.attn1.processor for block in backbone.network.transformer_blocks]
    stages = Stages((4,), (1,))
    _, full = found_in(run("a", stages=stages))
    _, half = found_in(run("b", stages=stages, backbone=backbone, trainer=Trainer(precision="bf16-true", **QUIET)))
    torch.testing.assert_close(half, full, equal_nan=True, rtol=0.05, atol=0.01)
    assert [block.attn1.processor for block in backbone.network.transformer_blocks] == processors
    assert not backbone.network._forward_pre_hooks


def test_an_interrupted_run_resumes_to_the_same_figures(run, tmp_path):
    expected = found_in(run("whole"))

    with pytest.raises(SystemExit):
        run("stopped", trainer=Trainer(**QUIET, callbacks=[StopAt(2)]))
    assert not (tmp_path / "stopped").exists()
    with pytest.raises(SettingError, match="--resume"):
        run("stopped")
    with pytest.raises(SettingError, match="seed: 0 then, 1 now"):
        run("stopped", resume=True, seed=1)
    with pytest.raises(SettingError, match="precision: 32-true then, bf16-true now"):
        run("stopped", resume=True, trainer=Trainer(precision="bf16-true", **QUIET))
    with pytest.raises(SettingError, match="chunk: 3 then, 2 now"):
        run("stopped", resume=True, chunk=2)
    torch.testing.assert_close(found_in(run("stopped", resume=True)), expected, equal_nan=True)
    assert not (tmp_path / "stopped.partial").exists()


def test_a_result_says_whether_classes_share_plans(run):
    settings = {"rows": 16, "stages": Stages((4,), (1,))}
    alone, shared = run("alone", **settings), run("shared", share_plans=True, **settings)
    written = [json.loads((place / "result.json").read_text())["settings"]["share_plans"] for place in (alone, shared)]
    assert written == [False, True]
    _, found = found_in(shared)
    assert found.isfinite().all()
    assert not torch.allclose(found, found_in(alone)[1], rtol=1e-3)
    # A group is one image, whatever the batch; passes of 10 rows or of 40 hold the same groups.
    for name, other in {"b": {"chunk": 1}, "c": {"rows": 45}}.items():
        _, again = found_in(run(name, share_plans=True, **{**settings, **other}))
        torch.testing.assert_close(again, found)


def test_without_a_reducer_sharing_plans_changes_nothing(run):
    settings = {"reducer": Identity(), "rows": 16}
    alone, shared = found_in(run("alone", **settings)), found_in(run("shared", share_plans=True, **settings))
    torch.testing.assert_close(shared, alone, equal_nan=True)


def test_a_run_that_shared_plans_is_resumed_as_such(run):
    settings = {"share_plans": True, "rows": 16}
    expected = found_in(run("whole", **settings))
    with pytest.raises(SystemExit):
        run("stopped", trainer=Trainer(**QUIET, callbacks=[StopAt(1)]), **settings)
    with pytest.raises(SettingError, match="share_plans: True then, False now"):
        run("stopped", resume=True, rows=16)
    found = found_in(run("stopped", resume=True, **settings))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_nan_leaves_no_result(run, tiny_weights, tmp_path):
    backbone = PixelDiT(tiny_weights)
    with torch.no_grad():
        backbone.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[4] = torch.nan
    with pytest.raises(NumericalError, match=r"image airplane/x\.png, class 4, timestep"):
        run(backbone=backbone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"reducer": LGTM(0.9)}, SettingError, "at most 48"),
        ({"placement": Placement(layers=[9])}, SiteError, "blocks 0 to 3"),
        ({"loss": "l3"}, SettingError, "l2"),
        ({"stages": Stages((2,), (11,))}, SettingError, "more classes"),
        ({"share_plans": True, "rows": 9}, SettingError, "rows must be 10 or more; got 9"),
    ],
)
def test_impossible_settings_end_before_any_work(run, tmp_path, settings, error, told):
    with pytest.raises(error, match=told):
        run(**settings)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_trainers_is_refused(folder, tiny_weights, tmp_path):
    """Lightning would load it after the result had taken down other weights."""
    task = ClassificationTask(PixelDiT(tiny_weights), output=tmp_path / "r")
    torch.save({"state_dict": task.state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "x.ckpt")
    data = ImageData(test=folder, image_size=8)
    with pytest.raises(SettingError, match=r"init_args\.weights=FOLDER"):
        Trainer(**QUIET).test(task, datamodule=data, ckpt_path=tmp_path / "x.ckpt", verbose=False)
    assert not (tmp_path / "r.partial").exists()


def test_another_number_of_classes_is_refused(run, folder):
    with pytest.raises(SettingError, match=r"the model 10: give --data\.classes, every class in the model's order"):
        run(data=ImageData(test=folder, image_size=8, classes=(*CIFAR10_CLASSES, "lion")))


def test_images_that_a_data_set_leaves_out_stand_in_the_result(run, tmp_path):
    """COCO's, of which the first has no label and the second has two."""
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "coco" / "val2017" / "b.jpg")
    content = {
        "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "category_id": kind, "iscrowd": 0} for kind in (90, 11)],
        "categories": [{"id": 10 * label + 1 - label // 9, "name": f"kind {label}"} for label in range(10)],
    }
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    place = run(data=ImageData(test=tmp_path / "coco", image_size=8))
    settings = json.loads((place / "result.json").read_text())["settings"]
    assert (settings["images"], settings["left_out"]) == (1, 1)
    assert Predictions.load(place).labels == ((1, 9),)


def test_a_reducer_and_a_method_are_refused(tiny_weights):
    with pytest.raises(SettingError, match="not both"):
        ClassificationTask(PixelDiT(tiny_weights), LGTM(0.5), method=Reduced(ToMe(0.5)))


def test_a_metric_of_ones_own_stands_in_the_result(run):
    class Busiest(ClassificationMetric):
        def score(self, predictions):
            return Score("busiest", float(predictions.predicted.bincount().max()), unit="count")

    result = json.loads((run(metrics=[Busiest()]) / "result.json").read_text())
    assert [score["name"] for score in result["scores"]] == ["busiest"]


def test_the_compiler_is_left_as_it_was(run, monkeypatch):
    limit, graphs = torch._dynamo.config.recompile_limit, []

    def backend(graph, inputs):
        graphs.append(torch._dynamo.config.recompile_limit)
        return graph

    # The default backend would write and compile C++, which takes a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    run(compile=True, trainer=Trainer(**QUIET), data=None, stages=Stages((1,), (1,)), chunk=7)
    assert graphs == [GRAPHS]
    assert torch._dynamo.config.recompile_limit == limit


def test_images_of_another_size_are_refused(run, folder):
    with pytest.raises(SettingError, match="16 pixels wide"):
        run(data=ImageData(test=folder, image_size=16))


@pytest.mark.slow
def test_two_devices_give_the_figures_of_one(root, run, folder, tiny_weights, tmp_path):
    """Two processes on the CPU; four chunks of at most two images, none of them twice."""
    expected = found_in(run("one", chunk=2))
    command = [sys.executable, "-m", "bigain", "test", "--config", "recipes/classify/cifar10_lgtm.yaml"]
    options = {
        "model.backbone.init_args.weights": tiny_weights,
        "model.stages.trials": "[2,4]",
        "model.stages.keeps": "[3,1]",
        "model.rows": 8,
        "model.output": tmp_path / "two",
        "data.test": folder,
        "data.image_size": 8,
        "data.chunk": 2,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.precision": "32-true",
    }
    subprocess.run([*command, *(f"--{k}={v}" for k, v in options.items())], cwd=root, check=True, timeout=240)
    torch.testing.assert_close(found_in(tmp_path / "two"), expected, equal_nan=True)
