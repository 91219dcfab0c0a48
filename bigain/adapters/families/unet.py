"""diffusers' `UNet2DConditionModel`: Stable Diffusion 1.x, 2.x, XL."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, PlanFrom, Seam, Site, spread_timesteps
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.errors import SiteError
from bigain.grid import Grid

__all__ = ["UNetAdapter"]

_PARAMETERS = ("sample", "timestep", "encoder_hidden_states")
"""Order of the arguments of `UNet2DConditionModel.forward`, as far as they matter."""

_TEXT_TOKENS = 77
"""Tokens of CLIP's text encoder."""

_PATCHES = 257
"""Tokens of the CLIP image encoder that IP-Adapters use, ViT-H/14 at 224 x 224, with its class token."""

_OF_PATCHES = ("IPAdapterPlusImageProjection", "IPAdapterFullImageProjection")
"""Projections of IP-Adapters that see every patch of an image, rather than one vector for it."""


class UNetAdapter(Adapter):
    """Text-to-image U-Nets: transformer blocks at several resolutions.

    Plans are made from a block's input, before the norm, as the published methods do
    on Stable Diffusion. Stages are `down_blocks.0`, .., `mid_block`, `up_blocks.0`, ..
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "Stable Diffusion (diffusers UNet2DConditionModel)"
    classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    plan_from: ClassVar[PlanFrom] = "block"

    def sites(self, model: nn.Module) -> list[Site]:
        found: list[Site] = []
        for stage, module, downsample in _stages(model):
            for number, attention in enumerate(getattr(module, "attentions", None) or ()):
                for index, block in enumerate(getattr(attention, "transformer_blocks", ())):
                    name = f"{stage}.attentions.{number}.transformer_blocks.{index}"
                    found.append(Site(name, block, len(found), self.parts(block), stage, downsample))
        return found

    def parts(self, block: Any) -> dict[Part, Seam]:
        """Return the parts of a block, and how each takes its tokens."""
        found: dict[Part, Seam] = {}
        if not block.only_cross_attention:
            found["self"] = AttentionSeam("attn1")
        if block.attn2 is not None and not block.double_self_attention:
            found["cross"] = AttentionSeam("attn2")
        return {**found, "mlp": TokenSeam("ff")}

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
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        return {
            "sample": torch.randn(rows, config.in_channels, *shape, **options),
            "timestep": spread_timesteps(rows, device),
            "encoder_hidden_states": torch.randn(rows, _TEXT_TOKENS, _text_width(config), **options),
            **_class_labels(model, rows, options),
            **_added_conditions(model, rows, options),
        }


def _text_width(config: Any) -> int:
    """Return C of the text at the U-Net's input, before any projection of its own."""
    width = config.cross_attention_dim if config.encoder_hid_dim is None else config.encoder_hid_dim
    return int(max(width) if isinstance(width, list | tuple) else width)


def _class_labels(model: Any, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    """Make class labels for a U-Net that takes them: the x4 upscaler's noise levels, unCLIP's image embeddings."""
    if model.class_embedding is None:
        return {}
    if isinstance(model.class_embedding, nn.Embedding):
        return {"class_labels": torch.zeros(rows, device=options["device"], dtype=torch.long)}
    if model.config.class_embed_type == "timestep":
        return {"class_labels": torch.zeros(rows, **options)}
    return {"class_labels": torch.randn(rows, model.config.projection_class_embeddings_input_dim, **options)}


def _added_conditions(model: Any, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    """Make SDXL's pooled text and sizes, and the image embeddings of IP-Adapters."""
    config: Any = model.config
    made: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":  # SDXL
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        made = {"text_embeds": torch.randn(rows, pooled, **options), "time_ids": torch.zeros(rows, 6, **options)}
    if config.encoder_hid_dim_type == "ip_image_proj":
        layers = model.encoder_hid_proj.image_projection_layers
        made["image_embeds"] = [torch.randn(rows, 1, *_image_shape(layer), **options) for layer in layers]
    return {"added_cond_kwargs": made} if made else {}


def _image_shape(projection: nn.Module) -> tuple[int, ...]:
    """Return the shape of an image's embedding for an IP-Adapter: one vector, or one for each patch."""
    width = next(layer.in_features for layer in projection.modules() if isinstance(layer, nn.Linear))
    return (_PATCHES, width) if type(projection).__name__ in _OF_PATCHES else (width,)


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
