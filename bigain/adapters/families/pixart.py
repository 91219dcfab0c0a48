"""diffusers' `PixArtTransformer2DModel`: PixArt-alpha and PixArt-Sigma."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from bigain.adapters.base import Part, Seam, spread_timesteps
from bigain.adapters.families.dit import DiTAdapter
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.tokens import TokenSeam

__all__ = ["PixArtAdapter"]

_TEXT_TOKENS = 300
"""T5 tokens of PixArt-Sigma; PixArt-alpha has 120."""


class PixArtAdapter(DiTAdapter):
    """PixArt: DiT's blocks, with cross-attention to the text between self-attention and MLP.

    Nothing is published on which of its blocks to reduce: by default the first 12 of 28,
    as in DiT, whose shape it has. Cross-attention takes its queries from the residual
    stream, which PixArt does not normalise there.
    """

    family: ClassVar[str] = "PixArt-alpha and -Sigma (diffusers PixArtTransformer2DModel)"
    classes: ClassVar[tuple[str, ...]] = ("PixArtTransformer2DModel",)
    parameters: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return {
            "self": AttentionSeam("attn1"),
            "cross": AttentionSeam("attn2"),
            "mlp": TokenSeam("ff"),
        }

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        network: Any = model
        config = network.config
        size = [length * config.patch_size for length in shape]
        text = config.caption_channels or config.cross_attention_dim
        extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:  # 1024 x 1024 of PixArt-alpha
            pixels = torch.tensor(size, device=device, dtype=dtype) * 8
            ratio = torch.full((rows, 1), size[0] / size[1], device=device, dtype=dtype)
            extra = {"resolution": pixels.expand(rows, -1), "aspect_ratio": ratio}
        return {
            "hidden_states": torch.randn(rows, config.in_channels, *size, device=device, dtype=dtype),
            "encoder_hidden_states": torch.randn(rows, _TEXT_TOKENS, text, device=device, dtype=dtype),
            "timestep": spread_timesteps(rows, device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, device=device, dtype=dtype),
            "added_cond_kwargs": extra,
        }
