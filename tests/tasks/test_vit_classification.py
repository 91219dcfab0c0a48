"""Classifying with vision transformers: the library's own forward, with reducers attached by hand."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import bigain
from bigain.adapters.placement import Placement
from bigain.backbones.timm_classifier import TimmClassifier
from bigain.backbones.transformers_classifier import TransformersClassifier
from bigain.benchmark.pair import compare_pair
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.errors import NumericalError, SettingError
from bigain.metrics.label_ranking import LabelRankingPrecision
from bigain.metrics.top_k import TopK
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome_vit import ToMeViT
from bigain.results.predictions import Predictions
from bigain.results.scores import scores_of
from bigain.results.store import read_result
from bigain.tasks.vit_classification import ViTClassification, vit_metrics
from tests.classifiers import save_images, save_timm, save_transformers
from tests.trainers import QUIET

CLASSES = ("cat", "cow", "fox", "hen", "tabby_dog")
LABELS = [0, 2, 4, 3, 1]
PLACEMENTS = {
    "none": (Identity(), Placement()),
    "given back": (LGTM(0.5), Placement(layers=[0, 2], parts=("self", "mlp"))),
    "progressive": (ToMeViT(), Placement(progressive=[4, 3, 2])),
}


@pytest.fixture(scope="module", params=["timm", "transformers"])
def classifier_of(request, tmp_path_factory):
    """Load a classifier afresh."""
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "timm":
        save_timm(folder)
        return lambda: TimmClassifier(folder)
    save_transformers(folder)
    return lambda: TransformersClassifier(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def run(images, tmp_path):
    """Run a task; returns the result folder."""

    def runner(classifier, name="result", chunk=4, trainer=None, data=None, **settings):
        task = ViTClassification(classifier, output=tmp_path / name, **{"rows": 3, **settings})
        data = data or ImageData(test=images, chunk=chunk)
        (trainer or Trainer(**QUIET)).test(task, datamodule=data, verbose=False)
        return tmp_path / name

    return runner


@torch.no_grad()
def by_hand(classifier, images, reducer, placement):
    """Minus the log-probability of each class, image by image, `[N, 5]`."""
    network, found = classifier.network, []
    with bigain.attach(network, reducer, placement=placement):
        for file in sorted(images.rglob("*.png")):
            output = network(classifier.preparation(Image.open(file).convert("RGB"))[None])
            logits = output if isinstance(output, torch.Tensor) else output.logits
            found.append(-logits.softmax(-1).log()[0, LABELS])
    return torch.stack(found)


@pytest.mark.parametrize("placed", PLACEMENTS)
def test_errors_are_those_of_the_network_with_the_reducer_attached_by_hand(run, classifier_of, images, placed):
    reducer, placement = PLACEMENTS[placed]
    place = run(classifier_of(), reducer=reducer, placement=placement)
    found, result = Predictions.load(place), read_result(place)
    expected = by_hand(classifier_of(), images, reducer, placement)
    torch.testing.assert_close(found.errors.dense(10, 5)[:, :, 0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.predicted, expected.argmin(dim=1))
    assert (found.classes, found.labels[2]) == (CLASSES, (1,))
    right = (expected.argmin(dim=1) == torch.arange(5).repeat_interleave(2)).double().mean()
    scores = scores_of(result)
    assert [*scores] == ["top1", "top5", "images_per_second"]
    assert scores["top1"].value == pytest.approx(float(right))
    assert scores["top5"].value == 1
    assert 0 < scores["images_per_second"].value < 1e6
    tokens = {"none": [(17, 17)] * 3, "given back": [(17, 9)] * 4, "progressive": [(17, 13), (13, 10), (10, 8)]}[placed]
    assert [(site["before"], site["after"]) for site in result["sites"]] == tokens
    assert result["settings"]["labels"] == LABELS
    assert result["settings"]["kind"] == "vit_classification"
    if placed != "none":
        plain = by_hand(classifier_of(), images, Identity(), Placement())
        assert not torch.allclose(expected, plain, rtol=1e-2)


def test_chunks_rows_and_order_change_nothing_and_the_network_is_left_as_it_was(run, classifier_of):
    classifier = classifier_of()
    reducer, placement = PLACEMENTS["progressive"]
    first = run(classifier, "a", reducer=reducer, placement=placement)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in classifier.network.modules())
    second = run(classifier, "b", chunk=7, reducer=reducer, placement=placement, rows=10)
    one, other = (Predictions.load(place).errors.dense(10, 5) for place in (first, second))
    torch.testing.assert_close(one, other)
    half = run(classifier, "c", reducer=reducer, placement=placement, trainer=Trainer(precision="bf16-true", **QUIET))
    torch.testing.assert_close(Predictions.load(half).errors.dense(10, 5), one, rtol=0.1, atol=0.1)


def test_two_of_them_are_a_pair(run, classifier_of, tmp_path):
    reducer, placement = PLACEMENTS["progressive"]
    one, other = run(classifier_of(), "a"), run(classifier_of(), "b", reducer=reducer, placement=placement)
    pair = compare_pair(one, other)
    assert pair.images == 10
    assert set(pair.differences) == {"method", "placement"}


def test_compiled_it_is_the_same(run, classifier_of):
    reducer, placement = PLACEMENTS["given back"]
    plain = run(classifier_of(), "a", reducer=reducer, placement=placement)
    classifier = classifier_of()
    network, seen = classifier.network, []
    torch._dynamo.reset()
    original = torch.nn.Module.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module, "compile", lambda self, **how: seen.append(how) or original(self, backend="eager", **how)
        )
        compiled = run(classifier, "b", reducer=reducer, placement=placement, compile=True)
    assert seen == [{"dynamic": False, "fullgraph": True}]
    assert network._compiled_call_impl is None
    one, other = (Predictions.load(place).errors.dense(10, 5) for place in (plain, compiled))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_of_many_classes_the_best_are_stored_and_rank_as_all_do(run, images, tmp_path, monkeypatch):
    classifier = TimmClassifier(save_timm(tmp_path / "vit"))
    metrics = [TopK(1), TopK(3)]
    whole = run(classifier, "a", metrics=metrics)
    monkeypatch.setattr("bigain.tasks.vit_classification._STORED", 3)
    few = run(classifier, "b", metrics=metrics)
    one, other = Predictions.load(whole), Predictions.load(few)
    assert (len(one.errors), len(other.errors)) == (50, 30)
    best = one.ranks() < 3
    assert torch.equal(other.ranks() < 3, best)
    assert torch.equal(one.ranks()[best], other.ranks()[best])
    assert torch.equal(other.errors.dense(10, 5)[..., 0].isfinite(), best)
    assert scores_of(read_result(few))["top3"] == scores_of(read_result(whole))["top3"]


def test_interrupted_it_resumes(run, classifier_of, tmp_path):
    class StopError(KeyboardInterrupt):
        pass

    expected = run(classifier_of(), "whole")
    classifier = classifier_of()
    logits, calls = classifier.logits, []

    def interrupted(images):
        calls.append(len(images))
        if len(calls) > 4:
            raise StopError
        return logits(images)

    classifier.logits = interrupted
    with pytest.raises(SystemExit):
        run(classifier, "stopped")
    assert set(calls) == {3}
    with pytest.raises(SettingError, match=r"labels: \[0, 2, 4, 3, 1\] then, \[0, 1, 2, 3, 4\] now"):
        run(classifier_of(), "stopped", resume=True, labels="order")
    with pytest.raises(SettingError, match="compile: False then, True now"):  # its images a second are others
        run(classifier_of(), "stopped", resume=True, compile=True)
    found = run(classifier_of(), "stopped", resume=True)
    torch.testing.assert_close(Predictions.load(found).errors.error, Predictions.load(expected).errors.error)


def test_what_cannot_work_is_refused_before_any_image(run, classifier_of, images, tmp_path):
    classifier = classifier_of()
    with pytest.raises(SettingError, match="'wolf' is no label of the model"):
        run(classifier, data=ImageData(test=images, classes=(*CLASSES, "wolf")))
    with pytest.raises(SettingError, match="needs labelled images"):
        run(classifier, data=ClassPrompts(count=2))
    with pytest.raises(SettingError, match="rows is the number of images"):
        run(classifier, rows=0)
    with pytest.raises(SettingError, match="at most"):
        run(classifier, reducer=LGTM(0.99))
    assert not (tmp_path / "result").exists()
    parameter = next(classifier.network.parameters())
    parameter.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match=r"for image cat/0\.png \(4 of 4 images of this chunk\)"):
        run(classifier)


def test_labels_rank_with_several_labels_too(run, classifier_of, images):
    place = run(classifier_of(), metrics=[*vit_metrics(), LabelRankingPrecision()])
    assert 0 < scores_of(json.loads((place / "result.json").read_text()))["label_ranking"].value <= 1


def test_images_that_were_skipped_are_counted(run, classifier_of, tmp_path):
    folder = save_images(tmp_path / "images")
    file = sorted(folder.rglob("*.png"))[3]
    name = file.relative_to(folder).as_posix()
    whole = read_result(run(classifier_of(), "whole", data=ImageData(test=folder, chunk=4)))
    assert "skipped" not in whole["settings"]
    file.write_bytes(b"no image")
    place = run(classifier_of(), data=ImageData(test=folder, chunk=4, skip_corrupt=True))
    assert (read_result(place)["settings"]["skipped"], read_result(place)["images"]) == (1, 9)
    assert name not in Predictions.load(place).names
    with pytest.raises(SettingError, match="no pair"):
        compare_pair(tmp_path / "whole", place)
