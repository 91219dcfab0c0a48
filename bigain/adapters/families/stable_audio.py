"""diffusers' `StableAudioDiTModel`: Stable Audio Open."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, Site, StackAdapter, spread_timesteps
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.grid import Grid

__all__ = ["StableAudioAdapter"]

_TEXT_TOKENS = 130
"""128 of T5, and one each for where the audio starts and how long it is."""


class StableAudioAdapter(StackAdapter):
    """Stable Audio: latents of a waveform along one axis, behind one token of time and length.

    That token, which the model puts first, is never reduced; the table of positions
    covers it. Self-attention rotates the first half of a head's channels. In
    cross-attention, several heads of queries share one of keys.

    Nothing is published on which of its blocks to reduce: by default the first 12 of 28
    (of 24 blocks, 10), as in DiT.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "Stable Audio (diffusers StableAudioDiTModel)"
    classes: ClassVar[tuple[str, ...]] = ("StableAudioDiTModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    parameters: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return {
            "self": AttentionSeam("attn1", rotary=Rotary("rotary_emb", halves=True)),
            "cross": AttentionSeam("attn2"),
            "mlp": TokenSeam("ff"),
        }

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape, prefix=1)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        return (cast("Any", model).config.sample_size,)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        given = self.named(args, kwargs)
        sample: Tensor = given["hidden_states"]
        timestep: Tensor = given["timestep"]
        # Its timestep is 2/pi * atan(sigma), from 0 to 1.
        return Moment((sample.shape[-1],), timestep * 1000)

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        config = cast("Any", model).config

        def normal(*size: int) -> Tensor:
            return torch.randn(rows, *size, device=device, dtype=dtype)

        positions = torch.arange(shape[0] + 1, device=device)
        rotary = get_1d_rotary_pos_embed(
            config.attention_head_dim // 2, positions, use_real=True, repeat_interleave_real=False
        )
        return {
            "hidden_states": normal(config.in_channels, *shape),
            "timestep": (spread_timesteps(rows, device) / 1000).to(dtype),
            "encoder_hidden_states": normal(_TEXT_TOKENS, config.cross_attention_input_dim),
            "global_hidden_states": normal(1, config.global_states_input_dim),
            "rotary_embedding": tuple(part.to(dtype) for part in rotary),
            # As in its pipeline: making the output class warns, which a compiled graph cannot contain.
            "return_dict": False,
        }
