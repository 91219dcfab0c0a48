"""diffusers' `SD3Transformer2DModel`: Stable Diffusion 3 and 3.5, and their ControlNet."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, StackAdapter, spread_timesteps
from bigain.adapters.families._arguments import Orders, named_arguments
from bigain.adapters.hooks.diffusers import AttentionSeam, UnitedSeam
from bigain.adapters.hooks.tokens import TokenSeam

__all__ = ["SD3Adapter"]

_TEXT_TOKENS = 77 + 256
"""The pipelines' default: CLIP's tokens, then T5's."""

_ORDERS: Orders = {
    "SD3Transformer2DModel": ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
    "SD3ControlNetModel": (
        "hidden_states",
        "controlnet_cond",
        "conditioning_scale",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
    ),
}


class SD3Adapter(StackAdapter):
    """Stable Diffusion 3 and 3.5: image and text attend together, each with weights of its own.

    Image tokens alone are reduced; text takes part in the attention as it is. Some blocks
    of SD3.5 have a second attention, over the image alone: it belongs to the part `self`
    too, and follows the same plan. Plans are made from the first attention's image
    tokens, after the modulated layer norm, as on DiT.

    No placement of these methods is published for it: by default the first 12/28 of the
    blocks, DiT's share.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "Stable Diffusion 3 and 3.5 (diffusers SD3Transformer2DModel, SD3ControlNetModel)"
    classes: ClassVar[tuple[str, ...]] = tuple(_ORDERS)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        attention: Seam = AttentionSeam("attn", joint=True)
        if getattr(block, "attn2", None) is not None:
            # joint, though it sees the image alone: its processor would take separate keys for text.
            attention = UnitedSeam((attention, AttentionSeam("attn2", joint=True)))
        return {"self": attention, "mlp": TokenSeam("ff")}

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        side = config.sample_size // config.patch_size
        return (side, side)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        patch = cast("Any", model).config.patch_size
        given = named_arguments(model, _ORDERS, args, kwargs)
        # A ControlNet may be given tokens instead of latents; its condition is always an image.
        sample: Tensor = given.get("controlnet_cond", given["hidden_states"])
        return Moment((sample.shape[-2] // patch, sample.shape[-1] // patch), given.get("timestep"))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config

        def noise(*size: int) -> Tensor:
            return torch.randn(rows, *size, device=device, dtype=dtype)

        size = [length * config.patch_size for length in shape]
        made: dict[str, Any] = {
            "hidden_states": noise(config.in_channels, *size),
            "pooled_projections": noise(config.pooled_projection_dim),
            "timestep": spread_timesteps(rows, device),
        }
        if config.joint_attention_dim is not None:
            made["encoder_hidden_states"] = noise(_TEXT_TOKENS, config.joint_attention_dim)
        if "extra_conditioning_channels" in config:  # a ControlNet
            made["controlnet_cond"] = noise(config.in_channels + config.extra_conditioning_channels, *size)
            if not config.use_pos_embed:
                made["hidden_states"] = noise(
                    shape[0] * shape[1], config.num_attention_heads * config.attention_head_dim
                )
        return made
