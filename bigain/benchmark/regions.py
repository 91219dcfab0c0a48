"""Compile a network region by region, so that equal blocks are compiled once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import nn

from bigain.profiling.modes import Backend, compiled_apart

__all__ = ["CompiledRegions", "regions_of"]


class CompiledRegions:
    """Compiled regions; code for unchanged regions serves all cases.

    Dynamo's guards ignore hooks, so that it could run an unhooked block's code for one with
    hooks. So the blocks that a case changes have code of their own.

    Args:
        backend: Backend of `torch.compile`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._bare = compiled_apart(_call, backend)

    def compile(
        self, network: nn.Module, blocks: Sequence[nn.Module], changed: Sequence[nn.Module], breaks: bool = False
    ) -> None:
        """Compile each region of a network.

        Args:
            network: The network, a copy that is thrown away.
            blocks: Its transformer blocks.
            changed: The blocks that a case changes.
            breaks: Whether a changed block may be several graphs.
        """
        own, taken = compiled_apart(_call, self._backend, whole=not breaks), {id(block) for block in changed}
        for region in regions_of(network, blocks):
            code: Callable[..., Any] = own if id(region) in taken else self._bare
            region._compiled_call_impl = partial(code, region)  # noqa: SLF001 what nn.Module.compile sets, too


def regions_of(network: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """List the transformer blocks of a network, and other modules in lists, such as convolutional blocks of a U-Net."""
    inside = {id(block) for block in blocks}

    def found(module: nn.Module, listed: bool) -> list[nn.Module]:
        has_block = any(id(inner) in inside for inner in module.modules())
        if id(module) in inside or (listed and not has_block):
            return [module]
        is_list = isinstance(module, nn.ModuleList)
        return [region for child in module.children() for region in found(child, is_list)]

    return found(network, False)


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return cast("Any", module)._call_impl(*args, **kwargs)  # noqa: SLF001 the call with its hooks, which nn.Module.compile compiles
