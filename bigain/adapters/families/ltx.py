"""diffusers' `LTXVideoTransformer3DModel`: LTX-Video."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, StackAdapter, spread_timesteps
from bigain.adapters.families._video import row_timesteps
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.errors import SiteError
from bigain.grid import checked_shape

__all__ = ["LTXAdapter"]

_LATENTS = (21, 16, 22)
"""Latent frames, height and width of the pipelines' default: 161 frames of 512 x 704."""

_SCALE = (8 / 25, 32.0, 32.0)
"""Seconds and pixels that a latent spans, as the pipelines pass them for 25 frames a second."""

_TEXT_TOKENS = 128


class LTXAdapter(StackAdapter):
    """LTX-Video: every block attends over all frames at once, then to the text.

    Plans are made from the attention's own input, after the modulated norm, as on
    DiT. For video no placement is published: by default the first 12/28 of the
    blocks, DiT's share.

    Args:
        shape: Tokens along frames, height and width, as if configured; also used in calls
            that do not say them. `LTXConditionPipeline` makes such calls; it is served as
            long as it puts no tokens in front of the video's own:
            `attach(pipe, "tome", ratio=0.5, adapter={"name": "ltx", "shape": [21, 16, 22]})`.

    Raises:
        SettingError: The shape is not three whole numbers of at least 1.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "LTX-Video (diffusers LTXVideoTransformer3DModel)"
    classes: ClassVar[tuple[str, ...]] = ("LTXVideoTransformer3DModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    parameters: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "num_frames",
        "height",
        "width",
    )

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        self.shape = None if shape is None else checked_shape(shape, ("frames", "height", "width"))

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return _PARTS

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        # The configuration has no size.
        return self.shape or _LATENTS

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        given = self.named(args, kwargs)
        tokens: int = given["hidden_states"].shape[1]
        shape = self._latent_shape(given)
        if shape is None or math.prod(shape) != tokens:
            said = "nothing says" if shape is None else f"frames, height and width of {list(shape)} do not say"
            raise SiteError(
                f"LTX was called with {tokens} tokens, and {said} how they lie. A call by coordinates "
                "(LTXConditionPipeline) needs the latents' size, and no tokens besides the video's own: "
                "attach(..., adapter={'name': 'ltx', 'shape': [21, 16, 22]})."
            )
        return Moment(shape, row_timesteps(given["timestep"]))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config

        def noise(*size: int) -> Tensor:
            return torch.randn(rows, *size, device=device, dtype=dtype)

        return {
            "hidden_states": noise(math.prod(shape), config.in_channels),
            "encoder_hidden_states": noise(_TEXT_TOKENS, config.caption_channels),
            "timestep": spread_timesteps(rows, device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, device=device, dtype=dtype),
            **dict(zip(("num_frames", "height", "width"), shape, strict=True)),
            "rope_interpolation_scale": _SCALE,
        }

    def _latent_shape(self, given: dict[str, Any]) -> tuple[int, ...] | None:
        """Return how the latents lie by the call, or else by the settings."""
        named: list[Any] = [given.get(name) for name in ("num_frames", "height", "width")]
        # Given coordinates, the model ignores the three.
        return self.shape if given.get("video_coords") is not None or None in named else tuple(named)


_PARTS: dict[Part, Seam] = {
    "self": AttentionSeam("attn1", rotary=Rotary("image_rotary_emb", "whole")),
    "cross": AttentionSeam("attn2"),
    "mlp": TokenSeam("ff"),
}
