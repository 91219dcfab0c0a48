"""diffusers' `DiTTransformer2DModel`: class-conditional DiT."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Seam, Site
from bigain.adapters.seams import AttentionSeam, TokenSeam
from bigain.grid import Grid

__all__ = ["DiTAdapter", "first_blocks"]


def first_blocks(sites: Sequence[Site]) -> list[int]:
    """Name the layers of the first 12 of 28 blocks, or of that share of however many there are.

    References:
        BiGain, appendix B.4.1, for DiT-XL/2.
    """
    return [site.layer for site in sites[: max(1, len(sites) * 12 // 28)]]


class DiTAdapter(Adapter):
    """DiT: every block attends over one grid; class and time enter by modulation.

    Plans are made from the attention's own input, after the adaptive layer norm,
    as the published method does on DiT.

    Attributes:
        parameters: Order of the arguments of the model's forward, as far as they matter.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "DiT (diffusers DiTTransformer2DModel)"
    classes: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    parameters: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")

    def sites(self, model: nn.Module) -> list[Site]:
        blocks = cast("nn.ModuleList", model.transformer_blocks)
        parts: dict[Part, Seam] = {"self": AttentionSeam("attn1"), "mlp": TokenSeam("ff")}
        return [Site(f"transformer_blocks.{index}", block, index, parts) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        side = config.sample_size // config.patch_size
        return (side, side)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        patch = cast("Any", model).config.patch_size
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
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
