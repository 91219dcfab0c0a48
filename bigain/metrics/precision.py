"""Which share of the generated images looks real."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.manifold import in_manifold
from bigain.metrics.base import FeatureNetwork, GeneratedImages
from bigain.metrics.intervals import share
from bigain.metrics.reference import FeatureMetric
from bigain.results.scores import Score

__all__ = ["Precision"]


class Precision(FeatureMetric):
    """The share of generated images within the manifold of the real ones.

    Estimated from nearest neighbours: it depends on the number of images, and is comparable among equal numbers only.
    The features of all images, generated and real, lie in memory.

    Args:
        features: The embedded ones by default, or `bigain.metrics.inception.InceptionFeatures`.
        reference: Real images to compare with: a parquet file, class folders, a folder of images, or a known data set.
            Default: the embedded test images.
        neighbors: The neighbour whose distance is the radius of a ball.

    Raises:
        SettingError: Fewer than one neighbour.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019), equation 2.
        The authors take VGG-16's features, most papers since take Inception's.
    """

    metric = "precision"
    label = "Precision"
    has_interval = True  # the generated images are a sample, and each is in the manifold or not
    meaning = "generated images that lie among the real ones"

    def __init__(
        self, features: FeatureNetwork | None = None, reference: Path | None = None, neighbors: int = 3
    ) -> None:
        super().__init__(features, reference)
        if neighbors < 1:
            raise SettingError(f"neighbors is 1 or more; got {neighbors}.")
        self.neighbors, self.least = neighbors, neighbors + 1

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "neighbors": self.neighbors}

    def score(self, images: GeneratedImages) -> Score:
        generated, size = self.generated_features(images)
        real = self.real.features(self.network, size, self.device)
        inside = self.inside(generated.to(self.device), real.to(self.device))
        found = share(int(inside.sum()), len(inside))
        label = self.network.named(self.label, self.label.lower())
        note = f"{self.counted(len(generated))} The share of {self.meaning}, by {self.neighbors} nearest neighbours."
        low, high = (found.low, found.high) if self.has_interval else (None, None)
        return Score(self.metric, found.value, low, high, label, "share", "higher", note)

    def inside(self, generated: Tensor, real: Tensor) -> Tensor:
        """Say which images count: bool, one for each that is asked about."""
        return in_manifold(generated, real, self.neighbors)
