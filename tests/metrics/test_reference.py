"""Real images and features of both sides: what is computed once, and what is read again."""

import io
import os
import shutil
import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bigain.data.dataset import ImageDataset
from bigain.data.sources.folder import FolderSource
from bigain.errors import DataError
from bigain.metrics import reference
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.kernel_distance import KernelDistance
from bigain.metrics.precision import Precision
from bigain.metrics.recall import Recall
from bigain.results.cache import cache_folder, clear_cache


@pytest.fixture
def network(tiny_features):
    return EmbeddedFeatures(tiny_features)


@pytest.fixture
def folder(real, tmp_path):
    """The real images as class folders."""
    for number, image in enumerate(real[1]):
        place = tmp_path / "real" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:02d}.png")
    return tmp_path / "real"


def metrics(network, path):
    return [
        FrechetDistance(network, path),
        KernelDistance(network, path, 3, 20),
        Precision(network, path),
        Recall(network, path),
    ]


def test_every_image_is_seen_once_by_all_metrics(tiny_features, real, images, drawn):
    """Metrics of a recipe have feature networks of their own, with the same weights."""
    seen = []
    found = drawn(*images(50, 1).split(20))
    for number in range(4):
        network = EmbeddedFeatures(tiny_features)
        network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        metrics(network, real[0])[number].score(found)
    assert sum(seen) == 50 + 60


def test_another_network_sees_them_again(tiny_features, real, images, drawn):
    found = drawn(images(50, 1))
    first = FrechetDistance(EmbeddedFeatures(tiny_features), real[0]).score(found).value
    network = EmbeddedFeatures(tiny_features)
    with torch.no_grad():
        next(network.parameters()).mul_(-1)
    other = FrechetDistance(network, real[0]).score(found).value
    clear_cache()
    assert other != first
    assert FrechetDistance(network, real[0]).score(drawn(images(50, 1))).value == pytest.approx(other)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_second_run_reads_no_real_image(network, real, folder, images, drawn, monkeypatch, kind):
    place, found = {"folder": folder, "parquet": real[0]}[kind], drawn(*images(50, 1).split(20))

    def run():
        return [(metric.identity(), metric.score(found).value) for metric in metrics(network, place)]

    expected = run()

    def refused(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        for source in (FolderSource, type(ImageDataset.open(real[0], 32)._source)):
            patch.setattr(source, "read", refused)
        assert run() == expected
        clear_cache()
        with pytest.raises((AssertionError, DataError), match="read again"):
            run()
    assert run() == expected


def test_images_that_changed_are_read_again(network, folder, images, drawn):
    found = drawn(images(50, 1))
    metric = FrechetDistance(network, folder)
    before = metric.identity(), metric.score(found).value
    file = sorted(folder.rglob("*.png"))[0]
    about = file.stat()
    content = io.BytesIO()
    Image.fromarray(images(1, 9)[0].permute(1, 2, 0).numpy()).save(content, "PNG")
    file.write_bytes(content.getvalue())
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = FrechetDistance(network, folder)
    assert after.identity()["reference_images"] != before[0]["reference_images"]
    assert after.score(found).value != before[1]
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 60 images cannot be read"):
        FrechetDistance(network, folder).identity()


def test_features_of_very_many_images_are_not_kept(network, real, images, drawn, monkeypatch):
    found = drawn(images(50, 1))
    expected = [metric.score(found).value for metric in metrics(network, real[0])]
    clear_cache()
    monkeypatch.setattr(reference, "_MOST_KEPT", 59)
    assert [metric.score(found).value for metric in metrics(network, real[0])] == pytest.approx(expected)
    kept = {name for file in cache_folder().rglob("*.safetensors") for name in load_file(file)}
    assert "real_features_sum" in kept
    assert "features" not in kept


def test_a_folder_of_images_is_a_reference(network, folder, real, images, drawn, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*.png"):
        shutil.copy(file, flat)
    expected = FrechetDistance(network, real[0]).score(drawn(images(50, 1))).value
    assert FrechetDistance(network, flat).score(drawn(images(50, 1))).value == pytest.approx(expected)


def test_nothing_at_a_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="No images at"):
        _ = reference.RealImages(tmp_path / "none").images
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        _ = reference.RealImages(tmp_path / "empty").images


def test_features_of_changed_code_are_computed_anew(real, images, drawn, tmp_path, monkeypatch):
    file = tmp_path / "features_of_mine.py"
    code = """
from bigain.metrics.base import FeatureNetwork

class Mine(FeatureNetwork):
    name, num_features = "my", 3

    def forward(self, images):
        return FACTOR * images.float().mean((2, 3))
"""

    def value(factor):
        file.write_text(code.replace("FACTOR", factor))
        module = ModuleType("features_of_mine")
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, "features_of_mine", module)
        exec(file.read_text(), module.__dict__)
        return FrechetDistance(module.Mine(), real[0]).score(drawn(images(50, 1, bright=9))).value

    one = value("1.0")
    assert value("2.0") == pytest.approx(4 * one, rel=1e-3)
