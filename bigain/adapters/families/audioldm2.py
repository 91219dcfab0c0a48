"""diffusers' `AudioLDM2UNet2DConditionModel`: AudioLDM 2."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bigain.adapters.base import Part, Planner, Seam, Site, Undo, spread_timesteps
from bigain.adapters.families.unet import UNetAdapter
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.reducers.base import TokenReducer

__all__ = ["AudioLDM2Adapter", "PairSeam"]

_FREQUENCIES = 16
"""Latents along the frequency axis: a quarter of the 64 mel bands that all released models have."""

_GENERATED_TOKENS = 8
"""Tokens that the language model generates from the prompt."""

_TEXT_TOKENS = 32
"""T5's tokens; it pads to the longest prompt of a batch."""


@dataclass(frozen=True)
class PairSeam(AttentionSeam):
    """Two self-attentions of one block, one after the other, which share its plan.

    Args:
        second: Path of the second in the block.
    """

    second: str = "attn2"

    @property
    def covers(self) -> tuple[str, ...]:
        return (self.module, self.second)

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        for module in self.covers:
            seam = AttentionSeam(module)
            seam.check(replace(site, parts={part: seam}), part, reducer, proportional)

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        first, second = (AttentionSeam(module).install(planner, part, proportional) for module in self.covers)
        return first + second


class AudioLDM2Adapter(UNetAdapter):
    """AudioLDM 2: a U-Net over the latents of a spectrogram, time by frequency.

    Where a U-Net for images has one transformer, this one has several: one with
    self-attention alone, two in each block, and one for each text. The two self-attentions
    of a block are reduced together.

    Nothing is published on which of its blocks to reduce: by default those at full
    resolution, and plans from the block's input, as in Stable Diffusion.
    """

    family: ClassVar[str] = "AudioLDM 2 (diffusers AudioLDM2UNet2DConditionModel)"
    classes: ClassVar[tuple[str, ...]] = ("AudioLDM2UNet2DConditionModel",)

    def parts(self, block: Any) -> dict[Part, Seam]:
        found = super().parts(block)
        return {**found, "self": PairSeam("attn1")} if block.double_self_attention else found

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        side, *_ = shape = super().configured_shape(model)
        given: Any = model.config
        # One number is the length in time.
        return shape if isinstance(given.sample_size, list | tuple) else (side, _FREQUENCIES)

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config: Any = model.config
        made: dict[str, Any] = {
            "sample": torch.randn(rows, config.in_channels, *shape, device=device, dtype=dtype),
            "timestep": spread_timesteps(rows, device),
            "encoder_hidden_states": None,
        }
        for suffix, tokens, width in zip(
            ("", "_1"), (_GENERATED_TOKENS, _TEXT_TOKENS), _text_widths(model), strict=True
        ):
            if width:
                states = torch.randn(rows, tokens, width, device=device, dtype=dtype)
                made[f"encoder_hidden_states{suffix}"] = states
                made[f"encoder_attention_mask{suffix}"] = torch.ones(rows, tokens, device=device, dtype=dtype)
        return made


def _text_widths(model: Any) -> tuple[int | None, int | None]:
    """Return the channels of the two texts.

    Of the transformers at one place, the first two see the first text, the others the second.
    """
    stages = [*model.down_blocks, model.mid_block, *model.up_blocks]
    places = [stage.cross_attention_dim for stage in stages if hasattr(stage, "cross_attention_dim")]
    first = [width for place in places for width in place[:2] if width]
    second = [width for place in places for width in place[2:] if width]
    return (first[0] if first else None), (second[0] if second else None)
