"""diffusers' `DiTTransformer2DModel`: class-conditional DiT."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, StackAdapter, spread_timesteps
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.tokens import TokenSeam

__all__ = ["DiTAdapter"]


class DiTAdapter(StackAdapter):
    """DiT: every block attends over one grid; class and time enter by modulation.

    Plans are made from the attention's own input, after the adaptive layer norm,
    as the published method does on DiT.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "DiT (diffusers DiTTransformer2DModel)"
    classes: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    parameters: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return {"self": AttentionSeam("attn1"), "mlp": TokenSeam("ff")}

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        side = config.sample_size // config.patch_size
        return (side, side)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        patch = cast("Any", model).config.patch_size
        given = self.named(args, kwargs)
        sample: Tensor = given["hidden_states"]
        return Moment((sample.shape[-2] // patch, sample.shape[-1] // patch), given.get("timestep"))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config
        size = [length * config.patch_size for length in shape]
        return {
            "hidden_states": torch.randn(rows, config.in_channels, *size, device=device, dtype=dtype),
            "timestep": spread_timesteps(rows, device),
            "class_labels": torch.arange(rows, device=device) % config.num_embeds_ada_norm,
        }
