import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from bigain.errors import DataError
from bigain.metrics.features import EmbeddedFeatures, ResidualClassifier
from bigain.metrics.frechet import FrechetReference
from bigain.metrics.inception import InceptionFeatures, _Inception


def images(count, seed, bright=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 200, (count, 3, 32, 32), generator=generator) + bright).to(torch.uint8)


def closed_form(network, first, second):
    a, b = (network(x).double().numpy() for x in (first, second))
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return mean + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def test_the_distance_is_the_formula(tiny_features):
    network = EmbeddedFeatures(tiny_features)
    real, fake = images(60, 0), images(50, 1, bright=40)
    found = FrechetReference.of(real, network, batch_size=17).distance(fake, batch_size=13)
    assert found == pytest.approx(closed_form(network, real, fake), rel=1e-3)


def test_equal_sets_have_no_distance_and_a_reference_serves_again(tiny_features):
    reference = FrechetReference.of(images(60, 0), EmbeddedFeatures(tiny_features))
    first = reference.distance(images(50, 1, bright=40))
    assert reference.distance(images(60, 0)) == pytest.approx(0, abs=1e-3)
    assert reference.distance(images(50, 1, bright=40)) == pytest.approx(first)


def test_only_inceptions_figure_is_called_fid(tiny_features):
    assert InceptionFeatures.label == "FID"
    assert EmbeddedFeatures(tiny_features).label != "FID"


def test_features_feed_the_classifiers_head():
    network = ResidualClassifier(10, 4).eval()
    pixels = images(3, 0)
    assert network.features(pixels).shape == (3, network.features_dim)
    torch.testing.assert_close(network(pixels), network.head(network.features(pixels)))


def test_missing_feature_weights_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        EmbeddedFeatures(tmp_path)


def test_inception_loads_published_names_and_gives_2048_features(tmp_path):
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


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_missing_or_foreign_files_are_told(tmp_path, content):
    path = tmp_path / "x.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pth"):
        InceptionFeatures(path)
