"""A class-conditional DiT that works on pixels, built on diffusers' own class."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bigain.assets import asset
from bigain.backbones.cards import card, check_weights
from bigain.backbones.labels import LabelBackbone, without_label_dropout
from bigain.data.classes import CIFAR10_CLASSES
from bigain.diffusion.condition import Condition
from bigain.errors import DataError, SettingError, first_line

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

__all__ = ["EMBEDDED", "PixelDiT"]

EMBEDDED = "embedded"
"""Stands for the weights that ship with bigain."""

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
"""The file name that diffusers' `save_pretrained` and `from_pretrained` use."""


SCHEDULER_NAME = "scheduler_config.json"
"""The file name that diffusers' schedulers save their configuration under."""


class PixelDiT(LabelBackbone):
    """A DiT on pixels: one token per patch, adaLN-Zero blocks, conditioned on labels.

    Args:
        weights: `"embedded"` for the CIFAR-10 model that ships with bigain, or a
            folder that `DiTTransformer2DModel.save_pretrained` wrote. `None`
            starts from random weights of the shape below. Under `torch.device("meta")`
            only the shapes are read.
        width: Channels of a token. This and the settings up to `label_count` describe a model
            of random weights; a loaded model has its own shape.
        depth: Number of blocks.
        heads: Attention heads.
        patch_size: Side of a patch in pixels.
        overlap: Side in pixels of the window around each pixel that the model sees: 1 is
            the pixel alone, 5 its 5 x 5 surroundings (an overlapping patch embedding). Odd.
        image_size: Side of the images in pixels.
        label_count: Number of classes.
        scheduler: A scheduler configuration, which defines the process. Default:
            `scheduler_config.json` of the folder or, where it has none, that of the
            embedded model.

    Raises:
        DataError: The weights are missing, unreadable, of another shape, or not those of the card.

    References:
        Scalable Diffusion Models with Transformers (Peebles and Xie, 2023).
    """

    network: "DiTTransformer2DModel"

    def __init__(
        self,
        weights: Path | str | None = EMBEDDED,
        width: int = 192,
        depth: int = 8,
        heads: int = 3,
        patch_size: int = 1,
        overlap: int = 1,
        image_size: int = 32,
        label_count: int = 10,
        scheduler: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        folder = asset("cifar10_dit") if weights is None or str(weights) == EMBEDDED else Path(weights)
        if weights is None:
            self.network = _build(_shape(width, depth, heads, patch_size, overlap, image_size, label_count))
            initialize_adaln_zero(self.network)
        else:
            self.network = _load(folder, embedded=str(weights) == EMBEDDED)
        config = cast("Any", self.network.config)
        self.overlap, self.image_size = math.isqrt(config.in_channels // 3), int(config.sample_size)
        self.latent_shape, self.label_count = (3, self.image_size, self.image_size), int(config.num_embeds_ada_norm)
        if weights is not None and str(weights) == EMBEDDED:
            self.class_names = CIFAR10_CLASSES
        self.scheduler = dict(scheduler) if scheduler is not None else _scheduler(folder)
        _ = self.process  # raises if the configuration is impossible

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.network.pos_embed.proj.weight.dtype
        (found,) = self.network(
            self._windows(noisy.to(dtype)), timestep=t, class_labels=condition.labels, return_dict=False
        )
        predicted: Tensor = found.float()
        return predicted

    def _windows(self, noisy: Tensor) -> Tensor:
        """Give each pixel its surroundings as channels, `[B, 3 * overlap**2, H, W]`."""
        if self.overlap == 1:
            return noisy
        windows = F.unfold(noisy, self.overlap, padding=self.overlap // 2)
        return windows.reshape(len(noisy), -1, *noisy.shape[-2:])


def _shape(width: int, depth: int, heads: int, patch: int, overlap: int, size: int, labels: int) -> dict[str, Any]:
    if width % heads or width % 4 or size % patch or overlap % 2 == 0:
        raise SettingError(
            f"PixelDiT got width={width}, heads={heads}, image_size={size}, patch_size={patch}, "
            f"overlap={overlap}; heads and 4 must divide width, patch_size must divide image_size, and "
            "overlap must be odd."
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": 3 * overlap**2,
        "out_channels": 3,
        "num_layers": depth,
        "sample_size": size,
        "patch_size": patch,
        "num_embeds_ada_norm": labels,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
    }


def _build(shape: dict[str, Any]) -> "DiTTransformer2DModel":
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(**shape)
    without_label_dropout(network)
    return network


def _load(folder: Path, embedded: bool) -> "DiTTransformer2DModel":
    config_file, weights_file = folder / "config.json", folder / WEIGHTS_NAME
    shapes_only = torch.get_default_device().type == "meta"  # as `bigain flops` builds it
    for file in [config_file] if shapes_only else [config_file, weights_file]:
        if not file.is_file():
            raise DataError(
                f"No model at {folder}: {file.name} is missing. Give 'embedded' or a folder that "
                "DiTTransformer2DModel.save_pretrained wrote."
            )
    try:
        settings = json.loads(config_file.read_text())
        network = _build({key: value for key, value in settings.items() if not key.startswith("_")})
        if not shapes_only:
            if embedded:
                check_weights(card(EMBEDDED), weights_file)
            state = load_file(weights_file)
            network.load_state_dict({key: value.float() for key, value in state.items()})
    except DataError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"The model in {folder} cannot be loaded: {first_line(error)}") from error
    channels = settings["in_channels"]
    overlap = math.isqrt(channels // 3)
    if channels != 3 * overlap**2 or overlap % 2 == 0 or settings["out_channels"] != 3:
        raise DataError(
            f"The model in {folder} takes {channels} channels and gives {settings['out_channels']}: no model of RGB "
            "pixels, which takes 3, 27, 75, .. (an odd window squared) and gives 3."
        )
    return network


def _scheduler(folder: Path) -> dict[str, Any]:
    """Read a folder's scheduler configuration, or else the embedded model's."""
    file = folder / SCHEDULER_NAME
    if not file.is_file():
        file = asset("cifar10_dit") / SCHEDULER_NAME
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, Mapping):
        raise DataError(f"{file} holds no scheduler configuration: a mapping is expected.")
    return dict(config)


def initialize_adaln_zero(network: nn.Module) -> None:
    """Initialise in place so that every block starts as the identity (DiT, section 3.2).

    diffusers' class is meant to load weights, and leaves torch's defaults.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) or "timestep_embedder.linear" in name:
            nn.init.normal_(cast("Tensor", module.weight), std=0.02)
        if name.endswith("norm1.linear") or name in {"proj_out_1", "proj_out_2"}:
            nn.init.zeros_(cast("Tensor", module.weight))
