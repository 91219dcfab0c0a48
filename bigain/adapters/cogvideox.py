"""diffusers' `CogVideoXTransformer3DModel`: CogVideoX 1.0 and 1.5."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Seam, Site, Undo
from bigain.adapters.hooks import ReducedTokens, reduce_behind, restore_behind
from bigain.adapters.planning import Planner
from bigain.adapters.rotary import Rotary
from bigain.adapters.seams import AttentionSeam, TokenSeam
from bigain.adapters.video import first_blocks, spread_timesteps
from bigain.grid import Grid

__all__ = ["CogVideoXAdapter"]

_PARAMETERS = ("hidden_states", "encoder_hidden_states", "timestep")
"""Order of the arguments of `CogVideoXTransformer3DModel.forward`, as far as they matter."""


class CogVideoXAdapter(Adapter):
    """CogVideoX: every block attends over text and all frames as one sequence, text first.

    Text is never reduced. Plans are made from the video tokens that attention is
    given, after the modulated layer norm, as on DiT. For video no placement is
    published: by default the first 12/28 of the blocks, DiT's share.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "CogVideoX (diffusers CogVideoXTransformer3DModel)"
    classes: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)
    tested: ClassVar[str] = "0.38.0 and 0.42.1"

    def sites(self, model: nn.Module) -> list[Site]:
        blocks = cast("nn.ModuleList", model.transformer_blocks)
        return [Site(f"transformer_blocks.{index}", block, index, _PARTS) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = cast("Any", model).config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        # The pipelines of 1.5 fill the last patch up with frames.
        frames = -(-frames // (config.patch_size_t or 1))
        return (frames, config.sample_height // config.patch_size, config.sample_width // config.patch_size)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        config = cast("Any", model).config
        given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
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
            # Its pipelines make the table; for counting and timing any angles do.
            size = (shape[0] * shape[1] * shape[2], config.attention_head_dim // 2)
            angles = torch.randn(*size, device=device, dtype=dtype).repeat_interleave(2, dim=1)
            made["image_rotary_emb"] = (angles.cos(), angles.sin())
        if config.ofs_embed_dim:
            made["ofs"] = torch.full((1,), 2.0, device=device, dtype=dtype)
        return made


class _ReducedBehindText(ReducedTokens):
    """Lets a module run on reduced tokens behind text that stays as it is."""

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *rest = args
        count = self.planner.grid.tokens
        plan = self.planner(tokens[:, tokens.shape[1] - count :])
        self._plan = None if plan.kind == "kv" else plan
        return args if self._plan is None else (reduce_behind(plan, tokens, count), *rest)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plan, self._plan = self._plan, None
        return output if plan is None else restore_behind(plan, output)


@dataclass(frozen=True)
class _BehindTextSeam(TokenSeam):
    """A module that maps each token by itself, text before the grid's.

    Args:
        joint: Text tokens come along. They are never reduced.
    """

    joint: bool = True

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        block, work = planner.site.block, _ReducedBehindText(planner)
        planner.attachment.watch(planner.site.name, block, self.module)
        module = block.get_submodule(self.module)
        return [
            module.register_forward_pre_hook(work.before).remove,
            module.register_forward_hook(work.after).remove,
        ]


_PARTS: dict[Part, Seam] = {
    "self": AttentionSeam("attn1", joint=True, rotary=Rotary("image_rotary_emb", "heads_first")),
    "mlp": _BehindTextSeam("ff"),
}
