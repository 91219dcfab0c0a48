"""The Fréchet distance between generated and real images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from bigain.metrics.base import FeatureNetwork
from bigain.results.provenance import fingerprint

__all__ = ["FrechetReference"]


@dataclass(frozen=True)
class FrechetReference:
    """Real images, seen once through a feature network, and compared with many sets.

    Args:
        metric: torchmetrics' metric, its real half filled.
        images: Number of real images.
        features: Name of the features. Only Inception's figure may be called FID.
        source: Fingerprint of the real images.
    """

    metric: FrechetInceptionDistance
    images: int
    features: str
    source: str

    @classmethod
    def of(cls, images: Tensor, network: FeatureNetwork, batch_size: int = 250) -> "FrechetReference":
        """See real images.

        Args:
            images: uint8, `[N, 3, H, W]`.
            network: Where features come from; also decides the device.
            batch_size: Images at once.
        """
        # Every process sees all images, so that a sum over processes would count them twice.
        metric = FrechetInceptionDistance(feature=network, reset_real_features=False, sync_on_compute=False)
        metric = metric.to(next(network.parameters()).device)
        with torch.inference_mode():
            for batch in _batches(images, batch_size):
                metric.update(batch.to(metric.device), real=True)
        return cls(metric, len(images), network.label, fingerprint([images]))

    def distance(self, images: Tensor, batch_size: int = 250) -> float:
        """Return the distance of generated images, uint8, `[N, 3, H, W]`, N >= 2."""
        self.metric.reset()
        with torch.inference_mode():
            for batch in _batches(images, batch_size):
                self.metric.update(batch.to(self.metric.device), real=False)
            return float(self.metric.compute())


def _batches(images: Tensor, size: int) -> Iterator[Tensor]:
    for first in range(0, len(images), size):
        yield images[first : first + size]
