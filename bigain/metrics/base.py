"""What a metric is.

A metric is one file: a class with a `score` that returns a `Score`. Tables, pages and
stores take any score, and know no metric by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigain.data.prompts import ClassPrompts
from bigain.errors import SettingError
from bigain.results.predictions import Predictions
from bigain.results.provenance import fingerprint
from bigain.results.scores import Score

__all__ = [
    "ClassificationMetric",
    "FeatureNetwork",
    "GeneratedImages",
    "GenerationMetric",
    "check_same_images",
    "features_in_parts",
]

_PART = 100
"""Images that a feature network sees at once."""


class ClassificationMetric(ABC):
    """A figure of one method's predictions."""

    @abstractmethod
    def score(self, predictions: Predictions) -> Score:
        """Score one method."""

    def identity(self) -> Mapping[str, Any]:
        """Return which figure it is: its class, and the settings that are numbers or words."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (int, float, str))}
        return {"metric": type(self).__name__, **plain}

    def compare(self, first: Predictions, second: Predictions) -> Score | None:
        """Score the difference of two methods on the same images, first minus second; `None` if it has no score."""
        return None

    def write(self, predictions: Predictions, folder: Path) -> None:  # noqa: B027 most have nothing to write
        """Write what one figure cannot say, such as a table, beside `result.json`."""


def check_same_images(first: Predictions, second: Predictions) -> None:
    """Refuse to compare methods on different images.

    Raises:
        SettingError: Names or their order differ.
    """
    if first.names != second.names:
        raise SettingError(
            f"Methods are compared on the same images in the same order; one has {len(first)} images "
            f"({first.names[0] if first.names else 'none'}, ..), the other {len(second)} "
            f"({second.names[0] if second.names else 'none'}, ..)."
        )


class FeatureNetwork(nn.Module, ABC):
    """Maps images to the features that distances are computed on.

    Attributes:
        name: What tables call the features, such as `embedded CIFAR-10`; `Inception` for those that FID, KID and the
            published precision and recall are defined on.
        num_features: Length of a feature vector.
    """

    name: str
    num_features: int

    @property
    def label(self) -> str:
        """What tables and pages call the Fréchet distance: `FID` for Inception's features only."""
        return self.named("Fréchet distance", "FID")

    def named(self, figure: str, published: str) -> str:
        """Return a figure's label: the published name for Inception's features, else one that names the features."""
        return published if self.name == "Inception" else f"{figure} ({self.name} features)"

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 over the weights."""
        return fingerprint(self.state_dict())

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to features `[B, num_features]`."""


class GeneratedImages:
    """The images of one method, read chunk by chunk, and what each was asked to show.

    Args:
        read: Reads the chunks from the first one on, each uint8 `[B, 3, H, W]`.
        prompts: The prompt of each image, in the order of the images.
    """

    def __init__(self, read: Callable[[], Iterable[Tensor]], prompts: Sequence[str] = ()) -> None:
        self._read, self.prompts = read, prompts
        self._features: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._read())

    def features(self, network: FeatureNetwork, device: torch.device) -> Tensor:
        """Compute the features of every image; metrics with the same network share them.

        Returns:
            float32, `[N, num_features]`, on the host: 8 KB an image with Inception.
        """
        key = f"{type(network).__name__} {network.name} {network.fingerprint}"
        if key not in self._features:
            found = [*features_in_parts(network, self, device)]
            self._features[key] = torch.cat(found) if found else torch.empty(0, network.num_features)
        return self._features[key]


def features_in_parts(network: FeatureNetwork, chunks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Compute features, float32 `[B, D]` on the host, of chunks of uint8 images `[B, 3, H, W]`."""
    network = network.eval().to(device, torch.float32)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for chunk in chunks:
            for images in torch.split(chunk, _PART):
                yield network(images.to(device)).float().cpu()


class GenerationMetric(ABC):
    """A figure of one method's generated images."""

    @abstractmethod
    def score(self, images: GeneratedImages) -> Score:
        """Score generated images; a pass over `images` yields their chunks."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what the figure depends on beside the generated images; equal identities mean equal figures.

        Called before any work, so that what the metric needs is read and refused here.
        """

    def check(self, prompts: ClassPrompts) -> None:  # noqa: B027 most metrics score whatever is drawn
        """Refuse, before any work, images that it cannot score: too few, or of prompts that it cannot read.

        Raises:
            SettingError: It cannot score them; the message says why.
        """

    def to(self, device: torch.device | str) -> "GenerationMetric":
        """Move what computes the figure to a device."""
        return self
