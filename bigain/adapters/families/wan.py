"""diffusers' `WanTransformer3DModel`: Wan 2.1 and 2.2, text to video and image to video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, StackAdapter, Undo, spread_timesteps
from bigain.adapters.families._video import row_timesteps
from bigain.adapters.hooks._diffusers_attention import ReducedAttention
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.rotary import Rotary
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.grid import checked_shape

__all__ = ["WanAdapter"]

_LATENTS = (21, 60, 104)
"""Latent frames, height and width of the pipelines' default: 81 frames of 480 x 832."""

_TEXT_TOKENS = 512
_IMAGE_TOKENS = 257
"""Tokens of Wan's encoders for a prompt and for an image; the attention relies on the number for a prompt."""


class WanAdapter(StackAdapter):
    """Wan: every block attends over all frames at once, then to the text, and to an image if there is one.

    Plans are made from the attention's own input, after the modulated layer norm, as
    on DiT. For video no placement is published: by default the first 12/28 of the
    blocks, DiT's share. Of VACE, which adds a branch of blocks for its control video,
    the main branch is served.

    Args:
        shape: Tokens along frames, height and width that count as configured: the
            configuration has no size. Default: the pipelines', 81 frames of 480 x 832.

    Raises:
        SettingError: The shape is not three whole numbers of at least 1.
    """

    library: ClassVar[str] = "diffusers"
    family: ClassVar[str] = "Wan (diffusers WanTransformer3DModel, WanVACETransformer3DModel)"
    classes: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel", "WanVACETransformer3DModel")
    tested: ClassVar[str] = "0.38.0 and 0.42.1"
    blocks: ClassVar[str] = "blocks"
    parameters: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
    )

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        self.shape = None if shape is None else checked_shape(shape, ("frames", "height", "width"))

    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        return _PARTS

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        return self.shape or _patches(model, _LATENTS)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        given = self.named(args, kwargs)
        sample: Tensor = given["hidden_states"]
        return Moment(_patches(model, tuple(sample.shape[-3:])), row_timesteps(given["timestep"]))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = cast("Any", model).config

        def noise(*size: int) -> Tensor:
            return torch.randn(*size, device=device, dtype=dtype)

        size = [length * patch for length, patch in zip(shape, config.patch_size, strict=True)]
        made: dict[str, Any] = {
            "hidden_states": noise(rows, config.in_channels, *size),
            "timestep": spread_timesteps(rows, device),
            "encoder_hidden_states": noise(rows, _TEXT_TOKENS, config.text_dim),
        }
        if config.image_dim is not None:
            # First and last frame come as two rows of half the tokens that positions are learned for.
            both = config.pos_embed_seq_len
            images = (rows, _IMAGE_TOKENS) if both is None else (2 * rows, both // 2)
            made["encoder_hidden_states_image"] = noise(*images, config.image_dim)
        if "vace_in_channels" in config:
            made["control_hidden_states"] = noise(rows, config.vace_in_channels, *size)
        return made


@dataclass(frozen=True)
class _WanSelfAttention(AttentionSeam):
    """Wan's self-attention: its processor does not reshape masks, and its projections can be fused."""

    def around(self, work: ReducedAttention, attention: nn.Module, block: nn.Module) -> Undo:
        # Fused after attaching, it would project keys from all tokens, not from the reduced ones.
        planner = work.planner
        planner.attachment.watch(planner.site.path(work.part), attention, "fused_projections")
        undo = super().around(work, attention, block)
        return [*undo, attention.register_forward_pre_hook(_mask_all_heads, with_kwargs=True).remove]


def _mask_all_heads(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bring a mask `[B, 1, M]` to `[B, 1, 1, M]`, in a pre-hook that runs after the reducing one."""
    mask: Tensor | None = kwargs.get("attention_mask")
    return None if mask is None else (args, kwargs | {"attention_mask": mask[:, None]})


def _patches(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    patch = cast("Any", model).config.patch_size
    return tuple([length // side for length, side in zip(size, patch, strict=True)])


_PARTS: dict[Part, Seam] = {
    "self": _WanSelfAttention("attn1", rotary=Rotary("rotary_emb", "joined")),
    "cross": AttentionSeam("attn2"),
    "mlp": TokenSeam("ffn"),
}
