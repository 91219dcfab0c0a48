"""FLUX.1."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bigain.backbones.folder import Dtype
from bigain.backbones.pipeline import PromptBackbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError

__all__ = ["Flux"]

_T5 = "text_encoder_2"

_T5_TOKENS = 512

_PACKED = 2
"""Latents along an axis that one token holds; the configuration's `patch_size` is 1."""

_SIDE = 128
"""Latents along an axis of the pipeline's images by default; configurations have no size."""

_TIME = 1000
"""Timesteps to the network's unit of time."""


class Flux(PromptBackbone):
    """The transformer of FLUX.1 (dev, schnell), which predicts a flow.

    T5 sees 512 tokens of a prompt, and its states are attended to; of CLIP, which sees the
    beginning, only the pooled text is used. There is no unconditional prediction: a sampler's
    guidance is 1, and that which the network was distilled with is one of its inputs.

    The scheduler's shift belongs to sampling: elsewhere timestep t has
    `sigma = t / 1000`.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the transformer and the text encoders: fp32, fp16 or bf16.
        image_size: Side of the images, in pixels. Default: 128 latents, 1024 pixels.
        guidance: Guidance scale that the network is told. One without such an input
            (`guidance_embeds`; FLUX.1 schnell) is not told.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE and the packing cannot divide, or a guidance
            scale that is negative or not finite.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al.,
        2024), for the flow and its shift by resolution; On Distillation of Guided Diffusion
        Models (Meng et al., 2023), for guidance as an input.
    """

    usual_guidance = 1.0
    half_precision = "bf16"
    pipelines = ("FluxPipeline",)
    networks = ("FluxTransformer2DModel",)
    encoders = {"text_encoder": ("CLIPTextModel",), _T5: ("T5EncoderModel",)}  # noqa: RUF012 a constant

    def __init__(
        self, model: str | Path, dtype: Dtype = "fp32", image_size: int | None = None, guidance: float = 3.5
    ) -> None:
        if not (math.isfinite(guidance) and guidance >= 0):
            raise SettingError(f"guidance is a scale that the network is told, 0 or more; got {guidance}.")
        super().__init__(model, dtype, image_size)
        self.guidance = float(guidance)
        self._places: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def _patch(self) -> int:
        return _PACKED

    @property
    def _default_side(self) -> int:
        return _SIDE

    def sampling_sigmas(self, steps: int) -> list[float]:
        sigmas: list[float] = np.linspace(1, 1 / steps, steps).tolist()
        return sigmas

    def longest_prompt(self, name: str) -> int | None:
        return _T5_TOKENS if name == _T5 else None

    @property
    def grid_shape(self) -> tuple[int, int]:
        return self.latent_shape[1] // _PACKED, self.latent_shape[2] // _PACKED

    def encode_prompt(self, prompt: str, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        clip, t5 = encoders["text_encoder"], encoders[_T5]
        most = self._tokenizers["text_encoder"].model_max_length
        pooled = clip(self.token_ids(prompt, "text_encoder", most, clip)).pooler_output
        return {"states": t5(self.token_ids(prompt, _T5, _T5_TOKENS, t5))[0], "pooled": pooled}

    def null(self, condition: Condition) -> None:
        return None

    def added(self) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor([self.guidance])} if self.network.config.guidance_embeds else {}

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.states is not None
        assert condition.pooled is not None
        dtype, guidance = self.network.dtype, condition.added.get("guidance")
        lines, columns = (side // _PACKED for side in noisy.shape[2:])
        (found,) = self.network(
            F.pixel_unshuffle(noisy.to(dtype), _PACKED).flatten(2).transpose(1, 2).contiguous(),
            encoder_hidden_states=condition.states.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
            timestep=t.to(dtype) / _TIME,
            img_ids=self._placed(lines, columns, noisy.device),
            txt_ids=torch.zeros(condition.states.shape[1], 3, device=noisy.device),
            guidance=None if guidance is None else guidance.float().expand(len(noisy)),
            return_dict=False,
        )
        packed: Tensor = found.float().transpose(1, 2).unflatten(2, (lines, columns))
        return F.pixel_shuffle(packed, _PACKED)

    def _placed(self, lines: int, columns: int, device: torch.device) -> Tensor:
        """Return image, line and column of each token, `[N, 3]`."""
        # The same tensor in every pass: an adapter reads it on the host, once for each tensor.
        key = (lines, columns, device)
        if key not in self._places:
            sides = (torch.arange(side, dtype=torch.float32, device=device) for side in (1, lines, columns))
            self._places[key] = torch.cartesian_prod(*sides)
        return self._places[key]
