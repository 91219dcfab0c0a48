"""diffusers' `UNet2DConditionModel`: Stable Diffusion 1.x, 2.x, XL."""

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, PlanFrom, Site
from bigain.errors import SiteError
from bigain.grid import Grid

__all__ = ["UNetAdapter"]

_PARAMETERS = ("sample", "timestep", "encoder_hidden_states")
"""Order of the arguments of `UNet2DConditionModel.forward`, as far as they matter."""

_TEXT_TOKENS = 77
"""What CLIP's text encoder gives."""


class UNetAdapter(Adapter):
    """Text-to-image U-Nets: transformer blocks at several resolutions.

    Plans are made from a block's input, before the norm, as the published methods do
    on Stable Diffusion. Stages are `down_blocks.0`, .., `mid_block`, `up_blocks.0`, ..
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "Stable Diffusion (diffusers UNet2DConditionModel)"
    plan_from: ClassVar[PlanFrom] = "block"

    def matches(self, model: nn.Module) -> bool:
        diffusers = sys.modules.get("diffusers")
        return diffusers is not None and isinstance(model, diffusers.UNet2DConditionModel)

    def sites(self, model: nn.Module) -> list[Site]:
        found: list[Site] = []
        for stage, module, downsample in _stages(model):
            for number, attention in enumerate(getattr(module, "attentions", None) or ()):
                for index, block in enumerate(getattr(attention, "transformer_blocks", ())):
                    name = f"{stage}.attentions.{number}.transformer_blocks.{index}"
                    found.append(Site(name, block, len(found), _parts(block), stage, downsample))
        return found

    def default_layers(self, sites: list[Site]) -> list[int]:
        # The paper: full latent resolution, 5 of SD 2.0's 16 blocks. SDXL has no block there.
        finest = min(site.downsample for site in sites)
        return [site.layer for site in sites if site.downsample == finest]

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        # A strided convolution rounds up.
        return Grid(tuple(-(-length // site.downsample) for length in shape))

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config: Any = model.config
        side = config.sample_size
        if side is None:
            raise SiteError(
                "The configuration of this U-Net has no sample_size, the side of its latents: "
                "give one with model.register_to_config(sample_size=64)."
            )
        return tuple(side) if isinstance(side, list | tuple) else (side, side)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
        sample: Tensor = given["sample"]
        return Moment((sample.shape[-2], sample.shape[-1]), given["timestep"])

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config: Any = model.config
        text = config.cross_attention_dim
        text = max(text) if isinstance(text, list | tuple) else text
        made: dict[str, Any] = {
            "sample": torch.randn(rows, config.in_channels, *shape, device=device, dtype=dtype),
            "timestep": torch.arange(rows, device=device) * 389 % 1000,
            "encoder_hidden_states": torch.randn(rows, _TEXT_TOKENS, text, device=device, dtype=dtype),
        }
        if config.addition_embed_type == "text_time":  # SDXL
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            made["added_cond_kwargs"] = {
                "text_embeds": torch.randn(rows, pooled, device=device, dtype=dtype),
                "time_ids": torch.zeros(rows, 6, device=device, dtype=dtype),
            }
        return made


def _stages(model: Any) -> Iterator[tuple[str, nn.Module, int]]:
    """List the stages from the input to the output, each with how much coarser its grid is."""
    downsample = 1
    for index, block in enumerate(model.down_blocks):
        yield f"down_blocks.{index}", block, downsample
        downsample *= 2 if getattr(block, "downsamplers", None) else 1
    if model.mid_block is not None:
        yield "mid_block", model.mid_block, downsample
    for index, block in enumerate(model.up_blocks):
        yield f"up_blocks.{index}", block, downsample
        downsample //= 2 if getattr(block, "upsamplers", None) else 1


def _parts(block: Any) -> dict[Part, str]:
    parts: dict[Part, str] = {}
    if not block.only_cross_attention:
        parts["self"] = "attn1"
    if block.attn2 is not None and not block.double_self_attention:
        parts["cross"] = "attn2"
    return {**parts, "mlp": "ff"}
