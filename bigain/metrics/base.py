"""What a metric is.

A metric is one file: a class with a `score` that returns a `Score`. Tables, pages and
stores take any score, and know no metric by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigain.errors import SettingError
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["ClassificationMetric", "FeatureNetwork", "GenerationMetric", "check_same_images"]


class ClassificationMetric(ABC):
    """A figure of one method's predictions."""

    @abstractmethod
    def score(self, predictions: Predictions) -> Score:
        """Score one method."""

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


class GenerationMetric(ABC):
    """A figure of one method's generated images."""

    @abstractmethod
    def score(self, chunks: Iterable[Tensor]) -> Score:
        """Score chunks of generated images, each uint8 `[B, 3, H, W]`."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what the figure depends on beside the generated images; equal identities mean equal figures.

        Called before any work, so that what the metric needs is read and refused here.
        """

    def to(self, device: torch.device | str) -> "GenerationMetric":
        """Move what computes the figure to a device."""
        return self


class FeatureNetwork(nn.Module, ABC):
    """Maps images to the features a Fréchet distance is computed on.

    Attributes:
        label: What tables and pages call the distance: `FID` for Inception's features only.
        num_features: Length of a feature vector; torchmetrics reads it.
    """

    label: str
    num_features: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to features `[B, num_features]`."""
