"""What evaluation and training need to know of a generative model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from bigain.diffusion.condition import Condition
from bigain.diffusion.process import Process
from bigain.errors import SettingError

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A conditional diffusion model. It has no class names: they belong to the data.

    Attributes:
        network: The transformer or U-Net that reducers are attached to.
        scheduler: The checkpoint's own scheduler configuration, as diffusers'
            `scheduler_config.json` has it. Classifier and sampler both follow it.
        image_size: Side of the images it sees, in pixels.
        latent_shape: Shape of one latent, `(C, h, w)`.
        conditioned_on: Whether `embed` takes labels or prompts.
        label_count: Number of classes of a model that takes labels.
        usual_guidance: Guidance scale that the family's pipeline takes by default.
        guidance: Guidance scale that the network itself is given; `None` for all but distilled ones.
        class_names: Class names of a model that takes labels, in label order, where it has them; synonyms
            have commas between them.
        text_device: Where text encoders work. Default: where the network is, which in Lightning comes to its device
            after the prompts were embedded.

    Raises:
        SettingError: A subclass was written for the interface of bigain 0.1.
    """

    network: nn.Module
    scheduler: Mapping[str, Any]
    image_size: int
    latent_shape: tuple[int, int, int]
    conditioned_on: ClassVar[Literal["labels", "prompts"]] = "labels"
    label_count: int | None = None
    usual_guidance: ClassVar[float] = 1.5
    guidance: float | None = None
    class_names: tuple[str, ...] | None = None
    text_device: torch.device | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        old = [name for name in ("predict_noise", "schedule", "null_label") if _defines(cls, name)]
        if old and cls.predict is Backbone.predict:
            raise SettingError(
                f"{cls.__qualname__} defines {', '.join(old)}, as a backbone of bigain 0.1 does. Since 0.2 a backbone "
                "defines predict(noisy, t, condition), embed(labels or prompts) and null(condition), and sets "
                "scheduler, a diffusers scheduler configuration, from which the noise schedule and predict_noise "
                "follow; class names belong to the data."
            )

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 images `[B, 3, H, W]` to float32 latents `[B, C, h, w]`."""

    def encode_to_train(self, images: Tensor) -> Tensor:
        """Map images as `encode` does, all at once on their device, and keep nothing; may round otherwise."""
        return self.encode(images)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Map latents `[B, C, h, w]` to uint8 images `[B, 3, H, W]`."""

    @abstractmethod
    def embed(self, conditions: Sequence[int] | Sequence[str] | Tensor) -> Condition:
        """Embed labels or prompts, a row for each, on the host.

        Raises:
            SettingError: Prompts instead of labels or the reverse, or a label out of range.
        """

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that cannot be embedded, before any work.

        Raises:
            SettingError: It is too long.
        """

    @abstractmethod
    def null(self, condition: Condition) -> Condition | None:
        """Return the unconditional counterpart of each row; `None` for a model that has none."""

    @abstractmethod
    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the network on rows.

        Args:
            noisy: `[B, C, h, w]`.
            t: Timesteps, `[B]`; they may differ between rows, and a sampler's may be fractional.
            condition: B rows, on the device of `noisy`.

        Returns:
            What the network predicts (`process.prediction`), without a learned sigma:
            `[B, C, h, w]`, float32.
        """

    @final
    def predict_noise(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict the noise in each row, whatever the network itself predicts. See `predict`."""
        return self.process.to_noise(self.predict(noisy, t, condition), noisy, t)

    def identity(self) -> dict[str, Any]:
        """Return what figures depend on beside the network's weights and the process, in types that JSON has."""
        return {"image_size": self.image_size, **({} if self.guidance is None else {"told": self.guidance})}

    @cached_property
    def process(self) -> Process:
        """The forward process of `scheduler`."""
        return Process.of(self.scheduler)

    @property
    def image_tokens(self) -> int:
        """Image tokens that the network sees; schedulers that shift by resolution depend on it."""
        return self.grid_shape[0] * self.grid_shape[1]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of these tokens."""
        patch = int(getattr(getattr(self.network, "config", None), "patch_size", None) or 1)
        return self.latent_shape[1] // patch, self.latent_shape[2] // patch

    def sampling_sigmas(self, steps: int) -> list[float] | None:
        """Return the sigmas that this family's pipeline passes to its scheduler; `None` where it passes none."""
        return None


def _defines(cls: type, name: str) -> bool:
    return name in vars(cls) or name in vars(cls).get("__annotations__", {})
