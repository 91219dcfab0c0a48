"""PixArt-alpha and PixArt-Sigma."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigain.backbones.pipeline import PromptBackbone
from bigain.diffusion.condition import Condition

__all__ = ["PixArt"]

_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""T5 tokens of a prompt, by pipeline: shorter ones are padded."""

_SIZES = ("resolution", "aspect_ratio")


class PixArt(PromptBackbone):
    """The transformer of PixArt-alpha or PixArt-Sigma, on prompts that T5 embeds.

    A prompt is put into lower case and stripped of surrounding white space, as the pipelines do
    with `clean_caption=False` and also where bs4 or ftfy is not installed; with both installed,
    they remove addresses, markup and more by default. Images have the size that was asked for,
    as with `use_resolution_binning=False`. The learned variance is dropped. The unconditional
    prediction is that of the empty prompt.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the transformer and the text encoder: fp32, fp16 or bf16. In fp16,
            transformers keeps some weights of T5 in float32, where half precision overflows.
        image_size: Side of the images, in pixels. Default: the size of the transformer's
            training.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE and the patches cannot divide.

    References:
        PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image
        Synthesis (Chen et al., 2024); PixArt-Sigma: Weak-to-Strong Training of Diffusion
        Transformer for 4K Text-to-Image Generation (Chen et al., 2024).
    """

    usual_guidance = 4.5
    pipelines = tuple(_TOKENS)
    networks = ("PixArtTransformer2DModel",)
    encoders = {"text_encoder": ("T5EncoderModel",)}  # noqa: RUF012 a constant

    def longest_prompt(self, name: str) -> int:
        return _TOKENS[self._folder.index["_class_name"]]

    def check_prompt(self, prompt: str) -> None:
        super().check_prompt(_cleaned(prompt))

    def encode_prompt(self, prompt: str, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        (encoder,), (tokenizer,) = encoders.values(), self._tokenizers.values()
        length = {"padding": "max_length", "max_length": self.longest_prompt("text_encoder"), "truncation": True}
        found = tokenizer(_cleaned(prompt), **length, return_tensors="pt").to(encoder.device)
        # Without values, as operations are counted, T5 cannot see whether a mask leaves anything out.
        seen = None if found.input_ids.is_meta else found.attention_mask
        return {"states": encoder(found.input_ids, attention_mask=seen)[0], "mask": found.attention_mask}

    def added(self) -> Mapping[str, Tensor]:
        if not self.network.use_additional_conditions:  # only PixArt-alpha of 1024 pixels takes sizes
            return {}
        side = float(self.image_size)
        return {"resolution": torch.tensor([[side, side]]), "aspect_ratio": torch.tensor([[1.0]])}

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.network.dtype
        assert condition.states is not None
        sizes = {name: value.to(dtype).expand(len(noisy), -1) for name, value in condition.added.items()}
        (found,) = self.network(
            noisy.to(dtype),
            encoder_hidden_states=condition.states.to(dtype),
            encoder_attention_mask=condition.mask,
            timestep=t,
            added_cond_kwargs={name: sizes.get(name) for name in _SIZES},
            return_dict=False,
        )
        return self.without_variance(found)


def _cleaned(prompt: str) -> str:
    return prompt.lower().strip()
