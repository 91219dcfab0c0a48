"""What a feature network is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["FeatureNetwork"]


class FeatureNetwork(nn.Module, ABC):
    """Maps images to the features a Fréchet distance is computed on.

    Attributes:
        label: What reports call the distance: `FID` for Inception's features only.
        num_features: Length of a feature vector; torchmetrics reads it.
    """

    label: str
    num_features: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to features `[B, num_features]`."""
