"""Other packages that merge tokens, timed beside bigain's where they are installed."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from bigain.grid import Grid

__all__ = ["HOW_TO_INSTALL", "Merging", "has_tomesd", "tomesd_matching", "tomesd_network"]

Merging = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""A function that merges tokens, and one that restores them."""

HOW_TO_INSTALL = "tomesd is not installed, and not timed: pip install 'bigain[bench]'."


def has_tomesd() -> bool:
    """Say whether tomesd is installed."""
    return find_spec("tomesd") is not None


def tomesd_matching(grid: Grid, ratio: float) -> Callable[[Tensor], Merging] | None:
    """Return tomesd's own matching, with fixed destinations; `None` if it is not installed or the grid not an image's.

    Random destinations would need a generator, which a CUDA graph would have to register.

    Args:
        grid: How the tokens lie, in rows and columns.
        ratio: Share of the tokens to merge.
    """
    if not has_tomesd() or grid.axes != 2 or grid.prefix or grid.suffix:
        return None
    from tomesd.merge import bipartite_soft_matching_random2d

    height, width = grid.shape

    def matching(tokens: Tensor) -> Merging:
        count = int(tokens.shape[1] * ratio)
        found: Any = bipartite_soft_matching_random2d(tokens, width, height, 2, 2, count, no_rand=True)
        return found  # type: ignore[no-any-return]

    return matching


def tomesd_network(
    network: nn.Module, ratio: float, downsample: int, inputs: Mapping[str, Any]
) -> Callable[[nn.Module], Callable[[], Any]] | None:
    """Return a function that patches a U-Net of diffusers with tomesd and returns a pass of it.

    tomesd works in all blocks whose grid is at most `downsample` times coarser than the latents.

    Args:
        network: The network; `None` is returned if tomesd does not know it.
        ratio: Share of the tokens to merge.
        downsample: Coarseness of the coarsest grid that is merged.
        inputs: Arguments of a pass, the latents under `sample`.
    """
    if not has_tomesd() or type(network).__name__ != "UNet2DConditionModel":
        return None
    import tomesd

    def patch(copied: nn.Module) -> Callable[[], Any]:
        patched: Any = tomesd.apply_patch(copied, ratio=ratio, max_downsample=downsample, use_rand=False)
        sample = inputs["sample"]
        # tomesd needs a generator even if it draws nothing; making one here breaks no graph.
        patched._tome_info["args"]["generator"] = torch.Generator(sample.device)  # noqa: SLF001 its only seam
        others = {name: value for name, value in inputs.items() if name != "sample"}
        return lambda: patched(sample, **others)  # tomesd reads the latents' size from the first argument

    return patch
