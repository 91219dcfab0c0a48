"""The Fréchet distance between generated and real images."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from bigain.metrics.base import GeneratedImages
from bigain.metrics.reference import FeatureMetric
from bigain.results.scores import Score

__all__ = ["FrechetDistance", "GivenFeatures"]

_MOMENTS = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")
"""What torchmetrics keeps of the real images."""

_PART = 1000
"""Features that are added up at once."""


class GivenFeatures(nn.Module):
    """Stands for torchmetrics' feature network where features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return `[B, num_features]` as they are."""
        return features


class FrechetDistance(FeatureMetric):
    """The Fréchet distance between the features of generated and of real images.

    The mean and covariance of the real images' features are kept on disk for each size of generated images.
    The figure is called FID with Inception's features only.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium (Heusel et al., 2017), equation 6.
    """

    metric = "frechet"

    def score(self, images: GeneratedImages) -> Score:
        generated, size = self.generated_features(images)
        moments = self.real.kept("moments", self.network, size, self.device, lambda: self._moments(size))
        distance = self._distance()
        for name in _MOMENTS:
            setattr(distance, name, moments[name].to(self.device))
        for part in torch.split(generated, _PART):
            distance.update(part.to(self.device), real=False)
        label = self.network.label
        name = "fid" if label == "FID" else "frechet_distance"
        note = self.counted(len(generated))
        return Score(name, float(distance.compute()), label=label, unit="number", better="lower", note=note)

    def _distance(self) -> FrechetInceptionDistance:
        # Every process sees all images: a sum over processes would count them twice.
        network = GivenFeatures(self.network.num_features)
        return FrechetInceptionDistance(feature=network, sync_on_compute=False).to(self.device)

    def _moments(self, size: int) -> dict[str, Tensor]:
        distance = self._distance()
        for part in self.real.parts(self.network, size, self.device):
            distance.update(part.to(self.device), real=True)
        return {name: getattr(distance, name) for name in _MOMENTS}
