"""diffusers' `CogVideoXTransformer3DModel`: CogVideoX 1.0 and 1.5."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, StackAdapter, spread_timesteps
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam

__all__ = ["CogVideoXAdapter"]


class CogVideoXAdapter(StackAdapter):
    """CogVideoX: every block attends over text and all frames as one sequence, text first.

    Text is never reduced. Plans are made from the attention's video tokens, after the
    modulated layer norm, as on DiT. For video no placement is published: by default the
    first 12/28 of the blocks, DiT's share.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "CogVideoX (diffusers CogVideoXTransformer3DModel)"
    classes: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    parameters: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return _PARTS

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        # The pipelines of 1.5 pad the last patch with frames.
        frames = -(-frames // (config.patch_size_t or 1))
        return (frames, config.sample_height // config.patch_size, config.sample_width // config.patch_size)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        config = cast("Any", model).config
        given = self.named(args, kwargs)
        sample: Tensor = given["hidden_states"]
        _, frames, _, height, width = sample.shape
        shape = (frames // (config.patch_size_t or 1), height // config.patch_size, width // config.patch_size)
        return Moment(shape, given["timestep"])

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config
        frames, height, width = shape[0] * (config.patch_size_t or 1), *(n * config.patch_size for n in shape[1:])
        text = (rows, config.max_text_seq_length, config.text_embed_dim)
        made: dict[str, Any] = {
            "hidden_states": torch.randn(rows, frames, config.in_channels, height, width, device=device, dtype=dtype),
            "encoder_hidden_states": torch.randn(*text, device=device, dtype=dtype),
            "timestep": spread_timesteps(rows, device),
        }
        if config.use_rotary_positional_embeddings:
            # The pipelines make the table; for counting and timing, any angles do.
            size = (shape[0] * shape[1] * shape[2], config.attention_head_dim // 2)
            angles = torch.randn(*size, device=device, dtype=dtype).repeat_interleave(2, dim=1)
            made["image_rotary_emb"] = (angles.cos(), angles.sin())
        if config.ofs_embed_dim:
            made["ofs"] = torch.full((1,), 2.0, device=device, dtype=dtype)
        return made


_PARTS: dict[Part, Seam] = {
    "self": AttentionSeam("attn1", joint=True, rotary=Rotary("image_rotary_emb", "heads_first")),
    "mlp": TokenSeam("ff", joint=True),
}
