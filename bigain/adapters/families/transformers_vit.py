"""transformers' vision transformers: ViT, CLIP's and SigLIP's image towers, DINOv2 without and with registers."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Moment, Part, Seam, Site
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.adapters.hooks.vit import Call, ViTAttentionSeam, author
from bigain.adapters.progressive.merging import Branch
from bigain.adapters.progressive.pools import AttentionPool, MeanPool, Pool
from bigain.adapters.progressive.steps import ProgressiveAdapter
from bigain.errors import SiteError
from bigain.grid import Grid

__all__ = ["TransformersViTAdapter"]


@dataclass(frozen=True)
class Family:
    """The modules of one family's blocks.

    Args:
        layers: Path of the blocks in the body.
        attention: Name of the attention in a block.
        norm: Name of the module that takes the block's input.
        branch: Where the block's tokens merge.
        prefix: Number of class tokens.
    """

    layers: str
    attention: str
    norm: str
    branch: Branch
    prefix: int = 1


_CLIP = Family("encoder.layers", "self_attn", "layer_norm1", Branch("layer_norm2", "mlp"))
_DINO = Family("encoder.layer", "attention", "norm1", Branch("norm2", "drop_path"))

FAMILIES: Mapping[str, Family] = {
    # One dropout module serves attention and MLP.
    "ViTLayer": Family("layers", "attention", "layernorm_before", Branch("layernorm_after", "dropout")),
    "CLIPEncoderLayer": _CLIP,
    "SiglipEncoderLayer": Family(_CLIP.layers, _CLIP.attention, _CLIP.norm, _CLIP.branch, prefix=0),
    "Dinov2Layer": _DINO,
    "Dinov2WithRegistersLayer": _DINO,
}
"""Families by the class of their blocks."""


@dataclass(frozen=True)
class Tower:
    """Where a class of models has its image encoder.

    Args:
        block: Class of its blocks.
        body: Path of the body in the model; empty for a bare model.
        mean: Whether a classifier is given the mean of the body's tokens.
    """

    block: str
    body: str = ""
    mean: bool = False


MODELS: Mapping[str, Tower] = {
    "ViTModel": Tower("ViTLayer"),
    "ViTForImageClassification": Tower("ViTLayer", "vit"),
    "CLIPVisionModel": Tower("CLIPEncoderLayer"),
    "CLIPVisionModelWithProjection": Tower("CLIPEncoderLayer", "vision_model"),
    "CLIPForImageClassification": Tower("CLIPEncoderLayer", "vision_model", mean=True),
    "SiglipVisionModel": Tower("SiglipEncoderLayer"),
    "SiglipForImageClassification": Tower("SiglipEncoderLayer", "vision_model", mean=True),
    "Dinov2Model": Tower("Dinov2Layer"),
    "Dinov2ForImageClassification": Tower("Dinov2Layer", "dinov2", mean=True),
    "Dinov2WithRegistersModel": Tower("Dinov2WithRegistersLayer"),
    "Dinov2WithRegistersForImageClassification": Tower("Dinov2WithRegistersLayer", "dinov2_with_registers", mean=True),
}
"""Classes of models that the adapter serves."""


class TransformersViTAdapter(ProgressiveAdapter):
    """transformers' image encoders, bare and as classifiers: every block attends over one grid.

    Class and register tokens stand before the grid and are never reduced. Plans are made
    from the attention's own input, behind the norm; in progressive placements from its
    keys. By default every block merges, as published for vision transformers (Bolya et
    al., 2023). BiGain itself has no figures on them.

    In progressive placements `last_hidden_state`, and the hidden states if they are asked
    for, have fewer tokens from block to block.
    """

    library: ClassVar[str] = "transformers"
    family: ClassVar[str] = "ViT (transformers ViT, CLIP and SigLIP image towers, DINOv2)"
    classes: ClassVar[tuple[str, ...]] = tuple(MODELS)
    tested: ClassVar[str] = "5.23.0"

    def sites(self, model: nn.Module) -> list[Site]:
        tower = _tower(model)
        family = FAMILIES[tower.block]
        path = f"{tower.body}.{family.layers}" if tower.body else family.layers
        blocks = cast("nn.ModuleList", model.get_submodule(path))
        attention = TransformersAttentionSeam(family.attention, family.norm)
        parts: dict[Part, Seam] = {"self": attention, "mlp": TokenSeam("mlp")}
        return [Site(f"{path}.{index}", block, index, parts) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return [site.layer for site in sites]

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape, prefix=_prefix(model))

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        config = _config(model)
        sides = zip(_pair(config.image_size), _pair(config.patch_size), strict=True)
        height, width = (length // patch for length, patch in sides)
        return (height, width)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        images: Tensor = args[0] if args else kwargs["pixel_values"]
        patch = _pair(_config(model).patch_size)
        return Moment((images.shape[-2] // patch[0], images.shape[-1] // patch[1]))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        config = _config(model)
        size = [length * patch for length, patch in zip(shape, _pair(config.patch_size), strict=True)]
        images = torch.randn(rows, config.num_channels, *size, device=device, dtype=dtype)
        if tuple(shape) == self.configured_shape(model) or _tower(model).block.startswith("Dinov2"):
            return {"pixel_values": images}  # DINOv2 interpolates its positions unasked
        return {"pixel_values": images, "interpolate_pos_encoding": True}

    def branch(self, site: Site) -> Branch:
        family = FAMILIES.get(author(site.block, self.library) or "")
        if family is None:
            raise SiteError(
                f"{site.name} is a {type(site.block).__name__}; tokens stay merged in {', '.join(FAMILIES)}, with "
                "transformers' forward."
            )
        return family.branch

    def pools(self, model: nn.Module) -> list[Pool]:
        tower = _tower(model)
        body: Any = model.get_submodule(tower.body)
        pools: list[Pool] = [MeanPool(tower.body, "classifier", _prefix(model))] if tower.mean else []
        if getattr(body, "use_head", False):
            path = f"{tower.body}.head.attention" if tower.body else "head.attention"
            pools.append(AttentionPool(path, "key_padding_mask", spread=False, tokens=1))
        return pools


@dataclass(frozen=True)
class TransformersAttentionSeam(ViTAttentionSeam):
    """transformers' attention modules; attention runs in the backend that the configuration names."""

    library: ClassVar[str] = "transformers"
    known: ClassVar[tuple[str, ...]] = (
        "ViTAttention",
        "CLIPAttention",
        "SiglipAttention",
        "Dinov2Attention",
        "Dinov2WithRegistersAttention",
    )
    mask: ClassVar[str] = "attention_mask"
    key: ClassVar[str] = "k_proj"

    def check_mask(self, path: str, attention: Any) -> None:
        backend = attention.config._attn_implementation  # noqa: SLF001 transformers names it nowhere else
        if backend not in (None, "eager", "sdpa"):
            raise SiteError(
                f"{path} attends with {backend}, which cannot add to the logits, as weighting keys by how many tokens "
                'they stand for does: set_attn_implementation("sdpa"), or leave proportional off.'
            )

    def mean_key(self, attention: Any, output: Tensor) -> Tensor:
        return torch.unflatten(output, 2, (-1, attention.head_dim)).mean(dim=2)

    def attend(self, attention: Any, call: Call) -> tuple[Tensor, Any]:
        given = (attention.q_proj, call.queries), (attention.k_proj, call.keys), (attention.v_proj, call.keys)
        query, key, value = (
            torch.unflatten(project(tokens), 2, (-1, attention.head_dim)).transpose(1, 2) for project, tokens in given
        )
        clip = hasattr(attention, "out_proj")  # CLIP and SigLIP have other names for the same attributes
        dropout = attention.dropout if clip else attention.attention_dropout
        mixed, weights = _backend(attention)(
            attention,
            query,
            key,
            value,
            call.mask,
            scaling=attention.scale if clip else attention.scaling,
            dropout=dropout if attention.training else 0.0,
            **(call.others | {"is_causal": False}),
        )
        project = attention.out_proj if clip else attention.o_proj
        return project(mixed.flatten(2)), weights


def _backend(attention: Any) -> Any:
    """Return the attention function that the configuration names."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # The module of a subclass may lack an eager attention; the one that defines forward has it.
    eager = sys.modules[inspect.unwrap(type(attention).forward).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)  # noqa: SLF001


def _tower(model: nn.Module) -> Tower:
    return next(MODELS[base.__name__] for base in type(model).__mro__ if base.__name__ in MODELS)


def _prefix(model: nn.Module) -> int:
    """Count the class and register tokens before the grid."""
    return FAMILIES[_tower(model).block].prefix + getattr(_config(model), "num_register_tokens", 0)


def _config(model: nn.Module) -> Any:
    """Return the configuration of the image tower."""
    config = cast("Any", model).config
    return getattr(config, "vision_config", config)


def _pair(side: Any) -> tuple[int, int]:
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return height, width
