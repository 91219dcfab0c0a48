"""diffusers' `DiTTransformer2DModel`: class-conditional DiT."""

import sys
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Site
from bigain.grid import Grid

__all__ = ["DiTAdapter"]


class DiTAdapter(Adapter):
    """DiT: every block attends over one grid; class and time enter by modulation.

    Plans are made from the attention's own input, after the adaptive layer norm,
    as the published method does on DiT.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "DiT (diffusers DiTTransformer2DModel)"

    def matches(self, model: nn.Module) -> bool:
        diffusers = sys.modules.get("diffusers")
        return diffusers is not None and isinstance(model, diffusers.DiTTransformer2DModel)

    def sites(self, model: nn.Module) -> list[Site]:
        blocks = cast("nn.ModuleList", model.transformer_blocks)
        parts: dict[Part, str] = {"self": "attn1", "mlp": "ff"}
        return [Site(f"transformer_blocks.{index}", block, index, parts) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        # The paper: the first 12 of DiT-XL/2's 28 blocks.
        return [site.layer for site in sites[: max(1, len(sites) * 12 // 28)]]

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        side = config.sample_size // config.patch_size
        return (side, side)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        patch = cast("Any", model).config.patch_size
        given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
        sample: Tensor = given["hidden_states"]
        return Moment((sample.shape[-2] // patch, sample.shape[-1] // patch), given.get("timestep"))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config
        size = [length * config.patch_size for length in shape]
        return {
            "hidden_states": torch.randn(rows, config.in_channels, *size, device=device, dtype=dtype),
            "timestep": torch.arange(rows, device=device) * 389 % 1000,
            "class_labels": torch.arange(rows, device=device) % config.num_embeds_ada_norm,
        }


_PARAMETERS = ("hidden_states", "timestep", "class_labels", "cross_attention_kwargs", "return_dict")
"""Order of the arguments of `DiTTransformer2DModel.forward`."""
