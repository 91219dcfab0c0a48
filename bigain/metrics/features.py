"""Feature networks for the Fréchet distance."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bigain.assets import asset
from bigain.errors import DataError
from bigain.metrics.base import FeatureNetwork
from bigain.results.store import read_json

__all__ = ["EmbeddedFeatures", "ResidualClassifier", "load_failure"]


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


class ResidualClassifier(nn.Module):
    """A small residual network on 32 x 32 images; its penultimate layer gives features.

    Args:
        classes: Number of classes.
        width: Channels of the first stage; features have four times as many.
    """

    def __init__(self, classes: int = 10, width: int = 48) -> None:
        super().__init__()
        self.features_dim = 4 * width
        self.body = nn.Sequential(
            _convolution(3, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _Residual(4 * width),
            _convolution(4 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to features `[B, 4 * width]`."""
        features: Tensor = self.body(images.to(self.head.weight.dtype) / 127.5 - 1)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to class scores `[B, classes]`."""
        scores: Tensor = self.head(self.features(images))
        return scores


class EmbeddedFeatures(FeatureNetwork):
    """Features of the embedded residual classifier, trained on CIFAR-10 (JPEG).

    Distances on these features are not FID and compare among themselves only.

    Args:
        folder: Folder with `config.json` and `model.safetensors`; default: the embedded one.

    Raises:
        DataError: Missing or unreadable weights.
    """

    name = "embedded CIFAR-10"

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        folder = folder or asset("cifar10_features")
        try:
            classifier = ResidualClassifier(**read_json(folder / "config.json"))
            state = load_file(folder / "model.safetensors")
            classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"The feature network in {folder} cannot be loaded: {load_failure(error)}") from error
        self.classifier = classifier.eval().requires_grad_(requires_grad=False)
        self.num_features = classifier.features_dim

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images).float()


def load_failure(error: BaseException) -> str:
    """Say in one line why weights cannot be loaded.

    For a state dict that does not fit, torch puts the reason below a heading without one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]) or type(error).__name__
