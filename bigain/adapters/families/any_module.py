"""Any model: torch's own transformer modules, and attention modules that the user names."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Seam, Site, first_blocks
from bigain.adapters.hooks._paths import common_block, find_named, names_of, parameter_name
from bigain.adapters.hooks.named import NamedSeam
from bigain.adapters.hooks.torch_attention import FeedForwardSeam, MultiheadSeam
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid

__all__ = ["ModulesAdapter"]


class ModulesAdapter(Adapter):
    """Models that no other adapter knows, by their attention modules.

    Without `attention`, these are every `nn.TransformerEncoderLayer` of the model or,
    where there is none, every `nn.MultiheadAttention` outside of decoder layers. It must
    be called as self-attention without masks and without asking for weights; any other
    call is refused. As soon as a layer has hooks, torch does not take its fused kernel
    for whole layers (`torch.backends.mha`), which no reducer could reach into.

    With `attention`, these are the modules named. Each maps tokens, `[B, N, C]`, to as
    many, or to a tuple that begins with them. It runs on fewer tokens, and its output is
    restored; its other arguments stay as they are. So positions (rotary or other) that
    the module adds by itself do not follow the tokens: it counts merged tokens from 0.
    Keys and values alone are shortened at the input of the projections named as `keys`,
    and the module must take their number from the output of these.

    Such a model does not say how its tokens lie, so `shape` has to be given, here or
    to `bigain.attach`. A grid of one axis follows the number of tokens in each call; any
    other has to fit.

    Plans are made from the input of a block's first reduced part. Blocks are counted in
    the order in which the model declares them, which should be the order in which they
    run. By default all named modules are taken; of torch's own, for which nothing is
    published, the first 12 of 28 as in DiT. Operations are counted for an encoder or an
    encoder layer; for another model, derive a class that overrides `inputs`.

    Args:
        attention: Path of an attention module in the model, or pattern of paths, or
            several: `layers.*.attn`.
        mlp: The same for MLPs, one for each attention module, in the same order: the
            MLP of its block, which shares its plan.
        shape: Tokens along each axis of the grid.
        prefix: Tokens before the grid that are never reduced (class, register, text).
        suffix: Tokens after it.
        tokens: Name of the argument that holds the tokens; default: the first.
        keys: Paths, inside of each attention module, of its projections of keys and
            values: `["to_k", "to_v"]`.

    Raises:
        SettingError: A setting that is not accepted, or that means nothing without `attention`.
    """

    library: ClassVar[str] = "torch"
    family: ClassVar[str] = "any model, by its attention modules (torch.nn, or named)"
    classes: ClassVar[tuple[str, ...]] = ("TransformerEncoder", "TransformerEncoderLayer", "MultiheadAttention")
    tested: ClassVar[str] = "2.13.0"
    general: ClassVar[bool] = True

    def __init__(
        self,
        attention: Sequence[str] | str | None = None,
        mlp: Sequence[str] | str | None = None,
        shape: Sequence[int] | None = None,
        prefix: int = 0,
        suffix: int = 0,
        tokens: str | None = None,
        keys: Sequence[str] | str = (),
    ) -> None:
        self.attention, self.mlp = names_of("attention", attention), names_of("mlp", mlp)
        self.keys = names_of("keys", keys)
        self.shape = None if shape is None else Grid(cast("tuple[int, ...]", shape), prefix, suffix).shape
        self.prefix, self.suffix = Grid((1,), prefix, suffix).prefix, suffix
        self.tokens = tokens
        if tokens is not None and (not isinstance(tokens, str) or not tokens):
            raise SettingError(f"tokens is the name of an argument; got {tokens!r}.")
        if not self.attention and (self.mlp or self.keys or tokens):
            raise SettingError("mlp, tokens and keys say more of the modules that attention names; it names none.")

    def matches(self, model: nn.Module) -> bool:
        if not self.attention:
            return bool(_torch_modules(model))
        try:
            return bool(find_named(model, "attention", self.attention))
        except SiteError:
            return False

    def sites(self, model: nn.Module) -> list[Site]:
        own = _torch_modules(model)
        if not self.attention and own and isinstance(own[0][1], nn.TransformerEncoderLayer):
            return [_layer_site(number, *found) for number, found in enumerate(own)]
        attention = find_named(model, "attention", self.attention) if self.attention else [path for path, _ in own]
        mlps = find_named(model, "mlp", self.mlp) if self.mlp else [None] * len(attention)
        if len(mlps) != len(attention):
            raise SiteError(
                f"attention names {len(attention)} modules and mlp {len(mlps)}; give patterns that name one MLP "
                "for each attention module."
            )
        pairs = enumerate(zip(attention, mlps, strict=True))
        return [self._named(model, number, path, mlp) for number, (path, mlp) in pairs]

    def _named(self, model: nn.Module, number: int, path: str, mlp: str | None) -> Site:
        module, parent = model.get_submodule(path), path.rpartition(".")[0]
        own = _is_multihead(module)
        if own and (self.tokens or self.keys):
            raise SiteError(f"{path} is an nn.MultiheadAttention, whose call is known: leave tokens and keys out.")
        layer = model.get_submodule(parent)
        if mlp is None and isinstance(layer, nn.TransformerEncoderLayer) and module is layer.self_attn:
            return _layer_site(number, parent, layer)
        name = common_block(model, path, mlp)
        block, start = model.get_submodule(name), len(name) + 1 if name else 0
        seam = MultiheadSeam(path[start:]) if own else NamedSeam(path[start:], self.tokens, self.keys)
        parts: dict[Part, Seam] = {"self": seam}
        if mlp is not None:
            parts["mlp"] = NamedSeam(mlp[start:])
        rows_first = bool(module.batch_first) if own else True
        return Site(name, block, number, parts, tokens=parameter_name(block), batch_first=rows_first)

    def default_layers(self, sites: list[Site]) -> list[int]:
        # A user who names modules means all of them. For torch's own nothing is published: DiT's share, 12 of 28.
        return [site.layer for site in sites] if self.attention else first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape, self.prefix, self.suffix)

    def fit(self, grid: Grid, tokens: Tensor) -> Grid:
        fixed = self.prefix + self.suffix
        if grid.axes > 1 or tokens.ndim != 3 or tokens.shape[1] <= fixed:
            return grid  # which refuses tokens that do not lie on it
        return Grid((tokens.shape[1] - fixed,), self.prefix, self.suffix)

    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        if self.shape is None:
            raise SiteError(
                f"Nothing in a {type(model).__name__} tells how its tokens lie. Say so: shape=(77,) for a sequence, "
                "shape=(14, 14) for an image."
            )
        return self.shape

    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        return Moment(None)

    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        if not isinstance(model, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            raise SiteError(f"cannot make inputs for a {type(model).__name__}, whose arguments are not known.")
        first = next(module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
        count = Grid(shape, self.prefix, self.suffix).tokens
        size = (rows, count) if first.batch_first else (count, rows)
        return {"src": torch.randn(*size, first.embed_dim, device=device, dtype=dtype)}


def _torch_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List encoder layers or, where there are none, attention modules outside of decoder layers."""
    found: list[tuple[str, nn.Module]] = list(model.named_modules())
    layers = [entry for entry in found if isinstance(entry[1], nn.TransformerEncoderLayer)]
    if layers:
        return layers
    inside = [f"{name}." if name else "" for name, module in found if isinstance(module, nn.TransformerDecoderLayer)]
    return [(name, module) for name, module in found if _is_multihead(module) and not name.startswith(tuple(inside))]


def _is_multihead(module: nn.Module) -> bool:
    """Say whether a module runs the forward of `nn.MultiheadAttention`, perhaps by inheritance."""
    return type(module).forward is nn.MultiheadAttention.forward


def _layer_site(number: int, name: str, layer: nn.Module) -> Site:
    attention: Any = layer.get_submodule("self_attn")
    parts: dict[Part, Seam] = {"self": MultiheadSeam("self_attn"), "mlp": FeedForwardSeam()}
    return Site(name, layer, number, parts, tokens=parameter_name(layer), batch_first=bool(attention.batch_first))
