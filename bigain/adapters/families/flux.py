"""diffusers' `FluxTransformer2DModel`: FLUX.1, and Chroma and FLUX's ControlNet, which share its attention."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Seam, Site, Undo, first_blocks, spread_timesteps
from bigain.adapters.families._arguments import Orders, named_arguments
from bigain.adapters.families._positions import read_positions
from bigain.adapters.hooks._diffusers_attention import ReducedAttention
from bigain.adapters.hooks.diffusers import AttentionSeam, RegionSeam
from bigain.adapters.hooks.image_prompt import ImagePrompt
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.grid import Grid, checked_shape

__all__ = ["FluxAdapter"]

_SIDE = 64
"""Tokens along an axis at the pipelines' default of 1024 x 1024 pixels."""

_TEXT_TOKENS = 512

_VAE_SCALE = 8
"""Pixels along an axis that a latent spans."""

_ORDERS: Orders = {
    "FluxTransformer2DModel": (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
    ),
    "ChromaTransformer2DModel": ("hidden_states", "encoder_hidden_states", "timestep", "img_ids"),
    "FluxControlNetModel": (
        "hidden_states",
        "controlnet_cond",
        "controlnet_mode",
        "conditioning_scale",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
    ),
}


class FluxAdapter(Adapter):
    """FLUX.1: double blocks, with weights of their own for image and text, then single blocks over both at once.

    Image tokens alone are reduced. Positions are rotary: a merged token has its
    destination's. In a single block, attention and MLP run side by side from one norm to
    one projection, so that its part `self` is both of them; only double blocks have a
    part `mlp`. Plans are made from the attention's image tokens, after the modulated layer
    norm, as on DiT.

    How tokens lie is read from `img_ids`, once for each tensor. In a pass that is compiled
    or captured as a whole it cannot be read: tokens then lie in the shape attached for
    (64 x 64 by default), and another number is an error. With `compile_repeated_blocks` it
    can be read. Of several images in one sequence (Kontext), the first is reduced, and the
    others stay as they are.

    By default all single blocks but the first 5 of 38, the placement published for FLUX;
    in a model without single blocks, the first 12/28, DiT's share.

    Args:
        shape: Rows and columns of tokens where `attach` is given no shape; configurations
            have no size.

    Raises:
        SettingError: The shape is not two whole numbers of at least 1.

    References:
        ToMA: Token Merge with Attention for Diffusion Models (Lu et al., 2025): the
        blocks that its authors' code merges in.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = (
        "FLUX.1 and Chroma (diffusers FluxTransformer2DModel, ChromaTransformer2DModel, FluxControlNetModel)"
    )
    classes: ClassVar[tuple[str, ...]] = tuple(_ORDERS)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"

    def __init__(self, shape: Sequence[int] = (_SIDE, _SIDE)) -> None:
        self.shape = checked_shape(shape, ("height", "width"))

    def sites(self, model: nn.Module) -> list[Site]:
        double, single = (cast("nn.ModuleList", getattr(model, name)) for name in (_DOUBLE, _SINGLE))
        sites = [Site(f"{_DOUBLE}.{index}", block, index, _IN_DOUBLE) for index, block in enumerate(double)]
        for index, block in enumerate(single):
            # Chroma joins text and image before its single blocks, FLUX inside each of them.
            joined = "encoder_hidden_states" not in inspect.signature(type(block).forward).parameters
            sites.append(Site(f"{_SINGLE}.{index}", block, len(double) + index, _IN_SINGLE, after_text=joined))
        return sites

    def default_layers(self, sites: list[Site]) -> list[int]:
        single = [site.layer for site in sites if site.name.startswith(_SINGLE)]
        return single[len(single) * 5 // 38 :] or first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        return self.shape

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        given = named_arguments(model, _ORDERS, args, kwargs)
        ids: Tensor | None = given.get("img_ids")
        layout = None if ids is None else read_positions(ids)
        time: Tensor | None = given.get("timestep")
        timestep = None if time is None else time.float() * 1000  # FLUX runs from 0 to 1
        if layout is None:
            return Moment(None, timestep, tokens=given["hidden_states"].shape[1])
        shape, behind = layout
        return Moment(shape, timestep, suffix=behind)

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config

        def noise(*size: int) -> Tensor:
            return torch.randn(rows, *size, device=device, dtype=dtype)

        lines, columns = (torch.arange(length, device=device, dtype=dtype) for length in shape)
        places = torch.meshgrid(lines, columns, indexing="ij")
        made: dict[str, Any] = {
            "hidden_states": noise(math.prod(shape), config.in_channels),
            "encoder_hidden_states": noise(_TEXT_TOKENS, config.joint_attention_dim),
            "timestep": (spread_timesteps(rows, device) / 1000).to(dtype),
            "img_ids": torch.stack([torch.zeros_like(places[0]), *places], dim=-1).flatten(0, 1),
            "txt_ids": torch.zeros(_TEXT_TOKENS, 3, device=device, dtype=dtype),
        }
        if "pooled_projection_dim" in config:
            made["pooled_projections"] = noise(config.pooled_projection_dim)
        if config.get("guidance_embeds"):
            made["guidance"] = torch.full((rows,), 3.5, device=device, dtype=dtype)
        return made | (_condition(config, shape, noise) if "num_mode" in config else {})


def _condition(config: Any, shape: tuple[int, ...], noise: Any) -> dict[str, Any]:
    """Make a ControlNet's further arguments: tokens, or an image that it encodes itself, and a mode."""
    image = [3, *(length * _VAE_SCALE * config.patch_size for length in shape)]
    encoded = config.conditioning_embedding_channels is not None
    condition: Tensor = noise(*image) if encoded else noise(math.prod(shape), config.in_channels)
    if config.num_mode is None:
        return {"controlnet_cond": condition}
    mode = torch.zeros(condition.shape[0], 1, device=condition.device, dtype=torch.long)
    return {"controlnet_cond": condition, "controlnet_mode": mode}


@dataclass(frozen=True)
class _DoubleSeam(AttentionSeam):
    """The attention of a double block, which may have image prompts to attend to."""

    def around(self, work: ReducedAttention, attention: nn.Module, block: nn.Module) -> Undo:
        return [*ImagePrompt().around(attention), *super().around(work, attention, block)]


_DOUBLE, _SINGLE = "transformer_blocks", "single_transformer_blocks"

_IN_DOUBLE: dict[Part, Seam] = {
    "self": _DoubleSeam(
        "attn", joint=True, rotary=Rotary(layout="tokens_first", text=("norm_added_q", "norm_added_k"))
    ),
    "mlp": TokenSeam("ff"),
}

_IN_SINGLE: dict[Part, Seam] = {"self": RegionSeam("attn", rotary=Rotary(layout="tokens_first"))}
