"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigain.backbones.pipeline import PromptBackbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError

__all__ = ["SD3"]

_T5 = "text_encoder_3"

_T5_TOKENS = 256


class SD3(PromptBackbone):
    """The transformer of Stable Diffusion 3 or 3.5, which predicts a flow.

    Text is seen by two CLIPs, 77 tokens, and by T5, 256 tokens. A prompt may be as long as
    T5 sees: CLIP sees its beginning, as in diffusers' pipeline. In a folder without T5, zeros
    take its place, and a prompt is as long as CLIP sees. The unconditional prediction is that
    of the empty prompt.

    The scheduler's shift belongs to sampling: elsewhere timestep t has
    `sigma = t / 1000`.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the transformer and the text encoders: fp32, fp16 or bf16.
        image_size: Side of the images, in pixels. Default: the size of the transformer's
            configuration.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE and the patches cannot divide, or one that
            the transformer has no positions for.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al.,
        2024).
    """

    usual_guidance = 7.0
    pipelines = ("StableDiffusion3Pipeline",)
    networks = ("SD3Transformer2DModel",)
    encoders = {  # noqa: RUF012 a constant
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        _T5: ("T5EncoderModel",),
    }
    optional = (_T5,)

    def _checked_size(self, size: int | None) -> int:
        found = super()._checked_size(size)
        places = self.network.config.pos_embed_max_size
        if places and found > places * self._patch * self._factor:
            raise SettingError(
                f"image_size is at most {places * self._patch * self._factor}, which this transformer has positions "
                f"for; got {found}."
            )
        return found

    def longest_prompt(self, name: str) -> int | None:
        if name == _T5:
            return _T5_TOKENS
        return None if _T5 in self._tokenizers else super().longest_prompt(name)

    def encode_prompt(self, prompt: str, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        states, pooled = [], []
        for name in ("text_encoder", "text_encoder_2"):
            encoder = encoders[name]
            ids = self.token_ids(prompt, name, self._tokenizers[name].model_max_length, encoder)
            found = encoder(ids, output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled.append(found.text_embeds)
        clip = torch.cat(states, dim=-1)
        if _T5 in encoders:
            t5 = encoders[_T5](self.token_ids(prompt, _T5, _T5_TOKENS, encoders[_T5]))[0]
        else:
            t5 = clip.new_zeros(1, _T5_TOKENS, self.network.config.joint_attention_dim)
        # CLIP's states are narrower than T5's, behind which they would not fit.
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {"states": torch.cat([clip, t5], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.states is not None
        assert condition.pooled is not None
        dtype = self.network.dtype
        (found,) = self.network(
            noisy.to(dtype),
            encoder_hidden_states=condition.states.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
            timestep=t,
            return_dict=False,
        )
        predicted: Tensor = found.float()
        return predicted
