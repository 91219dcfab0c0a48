"""diffusers' `HunyuanDiT2DModel`: Hunyuan-DiT."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn

from bigain.adapters.base import Part, Seam, spread_timesteps
from bigain.adapters.families.dit import DiTAdapter
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam

__all__ = ["HunyuanDiTAdapter"]


class HunyuanDiTAdapter(DiTAdapter):
    """Hunyuan-DiT: self-attention, cross-attention to the text and MLP, with long skips between blocks.

    Self-attention rotates queries and keys by their position in the image, and
    cross-attention its queries. A block of the second half first adds its skip; with
    `plan_from="block"`, plans are made from the input before that.

    Nothing is published on which of its blocks to reduce: by default the first 12 of 28
    (of 40 blocks, 17), as in DiT.
    """

    family: ClassVar[str] = "Hunyuan-DiT (diffusers HunyuanDiT2DModel)"
    classes: ClassVar[tuple[str, ...]] = ("HunyuanDiT2DModel",)
    blocks: ClassVar[str] = "blocks"

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        rotary = Rotary("image_rotary_emb")
        return {
            "self": AttentionSeam("attn1", rotary=rotary),
            "cross": AttentionSeam("attn2", rotary=rotary),
            "mlp": TokenSeam("ff"),
        }

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        config = cast("Any", model).config
        size = [length * config.patch_size for length in shape]
        # diffusers 0.38 returns tensors only if asked to.
        rotary = get_2d_rotary_pos_embed(
            config.attention_head_dim, ((0, 0), shape), shape, device=device, output_type="pt"
        )

        def text(tokens: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
            states = torch.randn(rows, tokens, channels, device=device, dtype=dtype)
            return states, torch.ones(rows, tokens, device=device, dtype=torch.long)

        clip, clip_mask = text(config.text_len, config.cross_attention_dim)
        t5, t5_mask = text(config.text_len_t5, config.cross_attention_dim_t5)
        made: dict[str, Any] = {
            "hidden_states": torch.randn(rows, config.in_channels, *size, device=device, dtype=dtype),
            # The model computes its embedding in the type of the timestep.
            "timestep": spread_timesteps(rows, device).to(dtype),
            "encoder_hidden_states": clip,
            "text_embedding_mask": clip_mask,
            "encoder_hidden_states_t5": t5,
            "text_embedding_mask_t5": t5_mask,
            "image_rotary_emb": tuple(part.to(dtype) for part in rotary),
        }
        if config.use_style_cond_and_image_meta_size:  # up to version 1.1
            pixels = [8 * length for length in (*size, *size)]
            sizes = torch.tensor([*pixels, 0, 0], device=device, dtype=dtype)
            made["image_meta_size"] = sizes.expand(rows, -1).contiguous()
            made["style"] = torch.zeros(rows, device=device, dtype=torch.long)
        return made
