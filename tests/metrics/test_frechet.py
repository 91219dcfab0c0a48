import copy
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from bigain.data.dataset import ImageDataset
from bigain.errors import DataError, SettingError
from bigain.metrics.features import EmbeddedFeatures, ResidualClassifier
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.inception import InceptionFeatures, _Inception


def closed_form(network, first, second):
    a, b = (network(x).double().numpy() for x in (first, second))
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return mean + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def test_the_distance_is_the_formula(tiny_features, real, images, drawn):
    network, fake = EmbeddedFeatures(tiny_features), images(50, 1, bright=40)
    score = FrechetDistance(network, real[0]).score(drawn(*fake.split(13)))
    assert score.value == pytest.approx(closed_form(network, real[1], fake), rel=1e-3)
    assert (score.name, score.label, score.better) == ("frechet_distance", network.label, "lower")
    assert score.note == "50 generated images against 60 real ones."


def test_real_images_are_seen_once_and_serve_every_set(tiny_features, real, monkeypatch, images, drawn):
    metric = FrechetDistance(EmbeddedFeatures(tiny_features), real[0])
    before = metric.identity()
    first = metric.score(drawn(*images(50, 1, bright=40).split(25))).value
    monkeypatch.delattr(ImageDataset, "batch")
    assert metric.score(drawn(real[1])).value == pytest.approx(0, abs=1e-3)
    assert metric.score(drawn(*images(50, 1, bright=40).split(25))).value == pytest.approx(first)
    assert metric.identity() == before


def test_real_images_are_seen_at_the_size_of_the_generated_ones(tiny_features, real, drawn):
    metric = FrechetDistance(EmbeddedFeatures(tiny_features), real[0])
    small = ImageDataset.open(real[0], 16).batch(range(60))["image"]
    assert metric.score(drawn(*small.split(20))).value == pytest.approx(0, abs=1e-3)
    assert metric.score(drawn(real[1])).value == pytest.approx(0, abs=1e-3)


def test_the_embedded_features_and_images_are_the_default():
    metric = FrechetDistance()
    before = metric.identity()
    assert before["features"] == "embedded"
    assert before["reference"] == "embedded test images"
    assert copy.deepcopy(metric).identity() == before


def test_the_identity_is_of_images_and_features(tiny_features, real, tmp_path):
    network = EmbeddedFeatures(tiny_features)
    first = FrechetDistance(network, real[0]).identity()
    assert FrechetDistance(network, real[0]).identity() == first
    table = pq.read_table(real[0]).slice(1)
    pq.write_table(table, tmp_path / "fewer.parquet")
    assert (
        FrechetDistance(network, tmp_path / "fewer.parquet").identity()["reference_images"]
        != (first["reference_images"])
    )
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert FrechetDistance(network, real[0]).identity()["features"] != first["features"]


def test_fewer_than_two_images_have_no_distance(tiny_features, real, tmp_path, images, drawn):
    metric = FrechetDistance(EmbeddedFeatures(tiny_features), real[0])
    for chunks in ([], [images(1, 0)]):
        with pytest.raises(SettingError, match="needs 2 images or more, generated"):
            metric.score(drawn(*chunks))
    pq.write_table(pq.read_table(real[0]).slice(0, 1), tmp_path / "one.parquet")
    with pytest.raises(SettingError, match="needs two reference images or more"):
        FrechetDistance(reference=tmp_path / "one.parquet").identity()


def test_a_broken_reference_is_refused_before_any_work(tiny_features, tmp_path):
    pq.write_table(pa.table({"image": [b"no"] * 2, "label": [0, 0]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        FrechetDistance(EmbeddedFeatures(tiny_features), tmp_path / "x.parquet").identity()


def test_only_inceptions_figure_is_called_fid(tiny_features):
    assert InceptionFeatures.name == "Inception"
    network = EmbeddedFeatures(tiny_features)
    assert network.label == "Fréchet distance (embedded CIFAR-10 features)"
    network.name = "Inception"
    assert (network.label, network.named("Kernel distance", "KID")) == ("FID", "KID")


def test_features_feed_the_classifiers_head(images):
    network = ResidualClassifier(10, 4).eval()
    pixels = images(3, 0)
    assert network.features(pixels).shape == (3, network.features_dim)
    torch.testing.assert_close(network(pixels), network.head(network.features(pixels)))


def test_missing_feature_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        EmbeddedFeatures(tmp_path)


def test_inception_loads_published_names_and_gives_2048_features(tmp_path, images):
    """Its parameter count is that of Inception-v3 without its two heads: 23,834,568 - 2,049,000."""
    torch.manual_seed(0)
    network = _Inception()
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 - 2_049_000
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, tmp_path / "inception.pth")
    loaded = InceptionFeatures(tmp_path / "inception.pth")
    found = loaded(images(2, 0))
    assert found.shape == (2, 2048)
    assert found.isfinite().all()
    pixels = torch.nn.functional.interpolate(images(2, 0).float() / 255, (299, 299), mode="bilinear")
    torch.testing.assert_close(found, network.eval()(2 * pixels - 1))


def test_other_weights_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(DataError, match="does not hold pytorch-fid's"):
        InceptionFeatures(tmp_path / "resnet.safetensors")


@pytest.mark.parametrize("content", [None, b"no weights", b""])
def test_missing_or_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "x.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pth"):
        InceptionFeatures(path)


def test_weights_that_do_not_fit_are_refused_with_the_reason(tiny_features, tmp_path):
    """torch's first line says only that something is wrong."""
    folder = tmp_path / "features"
    shutil.copytree(tiny_features, folder)
    (folder / "config.json").write_text(json.dumps({"classes": 10, "width": 8}))
    with pytest.raises(DataError, match=r"cannot be loaded: .*size mismatch for body\."):
        EmbeddedFeatures(folder)
    (folder / "config.json").write_text("[10, 4]")
    with pytest.raises(DataError, match=r"config\.json holds a JSON list; accepted is an object"):
        EmbeddedFeatures(folder)
    (folder / "config.json").write_text(json.dumps({"classes": 10, "wide": 8}))
    with pytest.raises(DataError, match="wide"):
        EmbeddedFeatures(folder)


def test_inception_weights_of_another_shape_or_kind_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"does not hold .*size mismatch for Conv2d_1a_3x3\.conv\.weight"):
        InceptionFeatures(path)
    path.write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"x\.safetensors cannot be read as weights: "):
        InceptionFeatures(path)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds no mapping of names to tensors"):
        InceptionFeatures(tmp_path / "list.pth")
