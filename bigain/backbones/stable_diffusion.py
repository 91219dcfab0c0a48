"""Stable Diffusion 1.x, 2.x and XL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from bigain.backbones.folder import Dtype
from bigain.backbones.pipeline import PromptBackbone
from bigain.diffusion.condition import Condition
from bigain.diffusion.schedulers import from_configuration
from bigain.errors import DataError

__all__ = ["StableDiffusion"]


class StableDiffusion(PromptBackbone):
    """The U-Net of Stable Diffusion 1.x, 2.x (noise or velocity prediction) or XL.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the U-Net and the text encoders: fp32, fp16 or bf16.
        image_size: Side of the images, in pixels. Default: the size of the U-Net's training.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE cannot divide.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022);
        SDXL (Podell et al., 2024).
    """

    pipelines = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    network_name = "unet"
    usual_guidance = 7.5
    networks = ("UNet2DConditionModel",)
    encoders = {  # noqa: RUF012 a constant
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }

    def __init__(self, model: str | Path, dtype: Dtype = "fp32", image_size: int | None = None) -> None:
        super().__init__(model, dtype, image_size)
        if not self._is_xl:
            # Checkpoints from before these settings: the pipeline corrects them in the same way.
            config = from_configuration(self.scheduler).config
            corrections = {"steps_offset": 1, "clip_sample": False}
            self.scheduler = {**self.scheduler, **{name: corrections[name] for name in corrections if name in config}}
        self._refuse_what_is_ignored()

    def _refuse_what_is_ignored(self) -> None:
        vae = self._vae.network.config
        ignored = {
            "unet/config.json: time_cond_proj_dim": self.network.config.time_cond_proj_dim,
            "vae/config.json: latents_mean": getattr(vae, "latents_mean", None),
            "vae/config.json: latents_std": getattr(vae, "latents_std", None),
        }
        if named := [name for name, value in ignored.items() if value is not None]:
            raise DataError(f"{self._folder.path} has {', '.join(named)}, which this backbone would ignore.")

    @property
    def _is_xl(self) -> bool:
        return str(self._folder.index["_class_name"]) == "StableDiffusionXLPipeline"

    def _needs(self, name: str) -> bool:
        return name == "text_encoder" or self._is_xl

    @property
    def _default_side(self) -> int:
        config = self.network.config
        # Versions before 0.9 wrote a size for U-Nets trained on 64 latents that is not theirs, as the pipeline knows.
        old = Version(str(config.get("_diffusers_version") or "0.9")) < Version("0.9")
        return max(64, int(config.sample_size)) if old else int(config.sample_size)

    def encode_prompt(self, prompt: str, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self._is_xl:
            (encoder,) = encoders.values()
            ids, mask = self._tokens(prompt, "text_encoder", encoder)
            return {"states": encoder(ids, attention_mask=mask)[0]}
        states = []
        for name, encoder in encoders.items():
            found = encoder(self._tokens(prompt, name, encoder)[0], output_hidden_states=True)
            states.append(found.hidden_states[-2])
        # The last encoder is the one with a projection.
        return {"states": torch.cat(states, dim=-1), "pooled": found[0]}

    def _tokens(self, prompt: str, name: str, encoder: Any) -> tuple[Tensor, Tensor | None]:
        tokenizer = self._tokenizers[name]
        most = self.longest_prompt(name)
        found = tokenizer(prompt, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
        masked = getattr(encoder.config, "use_attention_mask", False)
        return found.input_ids.to(encoder.device), found.attention_mask.to(encoder.device) if masked else None

    def null(self, condition: Condition) -> Condition | None:
        if self._is_xl and self._folder.index.get("force_zeros_for_empty_prompt", True):
            zeros = {name: torch.zeros_like(value) for name, value in condition.tensors.items()}
            return Condition(**zeros, added=condition.added)
        return super().null(condition)

    def added(self) -> Mapping[str, Tensor]:
        if not self._is_xl:
            return {}
        # Original size, upper left corner of the crop, and target size.
        side = float(self.image_size)
        return {"time_ids": torch.tensor([[side, side, 0, 0, side, side]])}

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype, others = self.network.dtype, {}
        assert condition.states is not None
        if condition.pooled is not None:
            sizes = condition.added["time_ids"].to(dtype).expand(len(noisy), -1)
            others["added_cond_kwargs"] = {"text_embeds": condition.pooled.to(dtype), "time_ids": sizes}
        (found,) = self.network(
            noisy.to(dtype), t, encoder_hidden_states=condition.states.to(dtype), return_dict=False, **others
        )
        predicted: Tensor = found.float()
        return predicted
