"""timm's vision transformers: `VisionTransformer` (ViT, DeiT, DINOv2, SigLIP, CLIP) and `Eva` (EVA, EVA-02, DINOv3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigain.adapters.attachment import Attachment
from bigain.adapters.base import Moment, Part, Seam, Site, Undo
from bigain.adapters.hooks.tokens import TokenSeam
from bigain.adapters.hooks.vit import Call, ViTAttentionSeam, author
from bigain.adapters.progressive.merging import Branch
from bigain.adapters.progressive.pools import AttentionPool, Pool, Progress
from bigain.adapters.progressive.steps import ProgressiveAdapter
from bigain.errors import SettingError, SiteError
from bigain.functional.weighted import mean_by_size
from bigain.grid import Grid

__all__ = ["TimmViTAdapter"]


class TimmViTAdapter(ProgressiveAdapter):
    """timm's `VisionTransformer` and `Eva`: every block attends over one grid.

    Class, distillation and register tokens stand before the grid and are never reduced.
    Plans are made from the attention's own input, behind the norm; in progressive
    placements from its keys, before they are rotated. By default every block merges, as
    published for vision transformers (Bolya et al., 2023). BiGain itself has no figures
    on them.
    """

    library: ClassVar[str] = "timm"
    family: ClassVar[str] = "ViT (timm VisionTransformer and Eva: ViT, DeiT, DINOv2, SigLIP, EVA-02)"
    classes: ClassVar[tuple[str, ...]] = ("VisionTransformer", "Eva")
    tested: ClassVar[str] = "1.0.31"
    spatial: ClassVar[tuple[str, ...]] = ("forward_intermediates",)

    def sites(self, model: nn.Module) -> list[Site]:
        parts: dict[Part, Seam] = {"self": TimmAttentionSeam("attn"), "mlp": TokenSeam("mlp")}
        blocks = cast("nn.Sequential", model.blocks)
        return [Site(f"blocks.{index}", block, index, parts, tokens="x") for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return [site.layer for site in sites]

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape, prefix=cast("Any", model).num_prefix_tokens)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        size = cast("Any", model).patch_embed.grid_size
        if size is None:
            raise SettingError(
                f"This {type(model).__name__} has no image size of its own; say how its tokens lie, as in "
                "attach(model, ..., shape=(14, 14))."
            )
        return tuple(size)

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        images: Tensor = args[0] if args else kwargs["x"]
        height, width = cast("Any", model).patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        return Moment((height, width))

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        network = cast("Any", model)
        sides = [length * side for length, side in zip(shape, _patch(network), strict=True)]
        return {"x": torch.randn(rows, network.in_chans, *sides, device=device, dtype=dtype)}

    def branch(self, site: Site) -> Branch:
        found = _BRANCHES.get(author(site.block, self.library) or "")
        if found is None:
            raise SiteError(
                f"{site.name} is a {type(site.block).__name__}; tokens stay merged in {', '.join(_BRANCHES)}, with "
                "timm's forward."
            )
        return found

    def pools(self, model: nn.Module) -> list[Pool]:
        network = cast("Any", model)
        pool = network.attn_pool
        if pool is None:
            return [TimmPool()]  # whatever global_pool is now: it can be changed later
        if author(pool, self.library) != "AttentionPoolLatent":
            raise SiteError(
                f"This model pools with attn_pool, a {type(pool).__name__}, in which merged tokens cannot be weighted "
                "by their size; leave progressive off."
            )
        return [AttentionPool("attn_pool", "attn_mask", spread=True, prefix=network.num_prefix_tokens)]


@dataclass(frozen=True)
class TimmAttentionSeam(ViTAttentionSeam):
    """timm's attention modules.

    Where the fused projection of queries, keys and values is a plain linear layer, it is
    sliced, so that keys and values are computed for reduced tokens alone; any other
    (LoRA, quantised, with hooks) runs twice, on all tokens and on the reduced ones.
    """

    library: ClassVar[str] = "timm"
    known: ClassVar[tuple[str, ...]] = ("Attention", "AttentionRope", "EvaAttention")
    mask: ClassVar[str] = "attn_mask"
    rope: ClassVar[str] = "rope"
    key: ClassVar[str] = "k_norm"

    def mean_key(self, attention: Any, output: Tensor) -> Tensor:
        return output.mean(dim=1)

    def attend(self, attention: Any, call: Call) -> Tensor:
        query, key, value = (
            torch.unflatten(part, 2, (-1, attention.head_dim)).transpose(1, 2) for part in _project(attention, call)
        )
        query, key = attention.q_norm(query), attention.k_norm(key)
        if call.rope is not None:
            prefix, halves = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
            query = _rotate(query, call.rope[0], prefix, halves).type_as(value)
            key = _rotate(key, call.rope[1], prefix, halves).type_as(value)
        groups = getattr(attention, "num_kv_groups", 1)
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        mixed = attention.norm(_mix(attention, query, key, value, call.mask).transpose(1, 2).flatten(2))
        if attention.gate is not None:
            mixed = mixed * attention.gate(call.queries).sigmoid()
        output: Tensor = attention.proj_drop(attention.proj(mixed))
        return output


class TimmPool(Pool):
    """timm's `pool` method, with means weighted by size.

    No hook sees its calls, which often come alone (`forward_head`); so the method is
    replaced, on this one model.
    """

    def install(self, attachment: Attachment, progress: Progress) -> Undo:
        model: Any = attachment.model
        model.pool = WeightedPool(attachment, progress)
        attachment.watch(type(model).__name__, model, "pool")
        return [partial(delattr, model, "pool")]


class WeightedPool:
    """Stands in for a timm model's `pool`.

    Args:
        attachment: The reducer's attachment to the model.
        progress: How many tokens each token stands for.
    """

    def __init__(self, attachment: Attachment, progress: Progress) -> None:
        self._attachment, self._progress = attachment, progress
        self._inner = cast("Any", attachment.model).pool

    def __call__(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens, `[B, N, C]`, to `[B, C]`."""
        model: Any = self._attachment.model
        pool_type = model.global_pool if pool_type is None else pool_type
        sizes = self._progress.pooled(x, self._attachment)
        if sizes is None or "avg" not in pool_type:
            pooled: Tensor = self._inner(x, pool_type)
            return pooled
        prefix = 0 if getattr(model, "pool_include_prefix", False) else model.num_prefix_tokens
        mean = mean_by_size(x[:, prefix:], sizes[:, prefix:])
        # Copies of a token do not change a maximum.
        return (x[:, prefix:].amax(dim=1) + mean) / 2 if pool_type == "avgmax" else mean


def _project(attention: Any, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Project queries from all tokens, keys and values from the reduced ones; each `[B, N or M, H * D]`."""
    if attention.qkv is None:
        return attention.q_proj(call.queries), attention.k_proj(call.keys), attention.v_proj(call.keys)
    fused, bias = attention.qkv, _own_bias(attention)
    apart = getattr(attention, "qkv_bias_separate", False)
    width = fused.out_features // 3
    # Where biases are beside the projection, timm too uses the layer's weight alone.
    if _is_plain(fused) or (bias is not None and not apart):
        bias = fused.bias if bias is None else bias
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(call.queries, fused.weight[:width], first)
        key, value = F.linear(call.keys, fused.weight[width:], rest).chunk(2, dim=-1)
        return query, key, value
    query, (_, key, value) = fused(call.queries).chunk(3, dim=-1)[0], fused(call.keys).chunk(3, dim=-1)
    if bias is None:
        return query, key, value
    return query + bias[:width], key + bias[width : 2 * width], value + bias[2 * width :]


def _own_bias(attention: Any) -> Tensor | None:
    """Return the biases that EVA has beside its projection, `[3 * H * D]`."""
    if getattr(attention, "q_bias", None) is None:
        return None
    return torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])


def _is_plain(layer: Any) -> bool:
    """Say whether a layer is a bare `nn.Linear` whose weight can be sliced."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks  # noqa: SLF001 torch lists hooks nowhere else
    # Quantised or sharded weights are of other types.
    changed = hooks or "forward" in vars(layer) or type(layer.weight) is not nn.Parameter
    return type(layer) is nn.Linear and not changed


def _rotate(heads: Tensor, table: Tensor, prefix: int, halves: bool) -> Tensor:
    """Rotate queries or keys, `[B, H, N, D]`, behind the prefix."""
    from timm.layers import apply_rot_embed_cat

    turned = apply_rot_embed_cat(heads[:, :, prefix:], table, half=halves)
    return torch.cat([heads[:, :, :prefix], turned], dim=2)


def _mix(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with fused attention, or step by step where timm does (`TIMM_FUSED_ATTN=0`)."""
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    logits = (query * attention.scale) @ key.transpose(-2, -1)
    weights = (logits if mask is None else logits + mask).softmax(dim=-1)
    mixed: Tensor = attention.attn_drop(weights) @ value
    return mixed


def _patch(network: Any) -> tuple[int, int]:
    ratio = network.patch_embed.feat_ratio(as_scalar=False)
    return ratio if isinstance(ratio, tuple) else (ratio, ratio)


_BRANCHES: Mapping[str, Branch] = {
    "Block": Branch("norm2", "drop_path2"),
    "ResPostBlock": Branch("mlp", "drop_path2"),
    "EvaBlock": Branch("norm2", "drop_path2"),
    "EvaBlockPostNorm": Branch("mlp", "drop_path2"),
}
"""Where tokens merge in timm's blocks: between the two residual branches."""
