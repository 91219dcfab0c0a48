"""What evaluation and training need to know of a generative model."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from bigain.diffusion.process import NoiseSchedule

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A class-conditional diffusion model.

    Attributes:
        network: The transformer or U-Net that reducers are attached to.
        schedule: The noise schedule it was trained with.
        image_size: Side of the images it sees, in pixels.
        latent_shape: Shape of one latent, `(C, h, w)`.
        classes: Class names in label order.
    """

    network: nn.Module
    schedule: NoiseSchedule
    image_size: int
    latent_shape: tuple[int, int, int]
    classes: tuple[str, ...]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to float32 latents `[B, C, h, w]`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Map latents `[B, C, h, w]` to uint8 images `[B, 3, H, W]`."""

    @abstractmethod
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Predict the noise in each row.

        Args:
            noisy: `[B, C, h, w]`.
            timesteps: int64, `[B]`; rows may differ.
            labels: int64, `[B]`; `len(classes)` means unconditional.

        Returns:
            `[B, C, h, w]`, float32.
        """

    @property
    def null_label(self) -> int:
        """The label that stands for no condition."""
        return len(self.classes)
