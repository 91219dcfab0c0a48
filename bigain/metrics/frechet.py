"""The Fréchet distance between generated and real images."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from bigain.assets import asset
from bigain.data.dataset import ImageDataset
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork, GenerationMetric
from bigain.metrics.features import EmbeddedFeatures
from bigain.results.provenance import fingerprint
from bigain.results.scores import Score

__all__ = ["FrechetDistance"]

_CHUNK = 250
"""Real images in memory at once."""

_SIZE = 32
"""The size at which real images are opened, in pixels; features see them at the size of the generated ones."""


class FrechetDistance(GenerationMetric):
    """The Fréchet distance between the features of generated and of real images.

    The features of the real images are computed once for each size of generated images.
    The figure is called FID with Inception's features only.

    Args:
        features: The embedded ones by default, or `bigain.metrics.inception.InceptionFeatures` for FID.
        reference: Real images to compare with: a parquet file or class folders.
            Default: the embedded test images.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium (Heusel et al., 2017), equation 6.
    """

    def __init__(self, features: FeatureNetwork | None = None, reference: Path | None = None) -> None:
        self.features, self.reference = features, reference
        self._device = torch.device("cpu")
        self._network = features
        self._real: ImageDataset | None = None
        self._metric: FrechetInceptionDistance | None = None
        self._size = 0

    def identity(self) -> Mapping[str, Any]:
        given, images = self.features, self._real_images()
        return {
            "metric": "frechet",
            "features": "embedded" if given is None else f"{given.label} {fingerprint(given.state_dict())}",
            "reference": str(self.reference or "embedded test images"),
            "reference_images": images.fingerprint,
        }

    def to(self, device: torch.device | str) -> "FrechetDistance":
        self._device = torch.device(device)
        if self._metric is not None:
            self._metric.to(self._device)
        return self

    def score(self, chunks: Iterable[Tensor]) -> Score:
        count, metric = 0, self._metric
        with torch.inference_mode():
            for images in chunks:
                if not count:
                    metric = self._filled(images.shape[-1])
                    metric.reset()
                assert metric is not None
                metric.update(images.to(self._device), real=False)
                count += len(images)
            if count < 2 or metric is None:
                raise SettingError(f"A Fréchet distance needs two generated images or more; got {count}.")
            value = float(metric.compute())
        label = self._load_network().label
        name = "fid" if label == "FID" else "frechet_distance"
        note = f"{count:,} generated images against {len(self._real_images()):,} real ones."
        return Score(name, value, label=label, unit="number", better="lower", note=note)

    def _load_network(self) -> FeatureNetwork:
        self._network = self._network or EmbeddedFeatures()
        return self._network

    def _real_images(self) -> ImageDataset:
        """Open the real images and check that each can be read."""
        if self._real is None:
            path = self.reference or asset("cifar10_test/test.parquet")
            images = ImageDataset.open(path, _SIZE)
            if len(images) < 2:
                raise SettingError(f"{path}: a distance needs two reference images or more.")
            images.check()
            self._real = images
        return self._real

    def _filled(self, size: int) -> FrechetInceptionDistance:
        """Return torchmetrics' metric with the real images at this size."""
        if self._metric is None or self._size != size:
            network = self._load_network().to(self._device, torch.float32)
            # Every process sees all images: a sum over processes would count them twice.
            metric = FrechetInceptionDistance(feature=network, reset_real_features=False, sync_on_compute=False)
            metric = metric.to(self._device)
            images = self._real_images().resized(size)
            for first in range(0, len(images), _CHUNK):
                chosen = images.batch(range(first, min(first + _CHUNK, len(images))))
                metric.update(chosen["image"].to(self._device), real=True)
            self._metric, self._size = metric, size
        return self._metric
