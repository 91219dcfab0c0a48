"""Models that are one stack of blocks over one grid: what their adapters share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Part, Seam, Site
from bigain.grid import Grid

__all__ = ["StackAdapter", "first_blocks", "spread_timesteps"]


def first_blocks(sites: Sequence[Site]) -> list[int]:
    """Name the layers of the first 12 of 28 blocks, or of that share of however many there are.

    References:
        BiGain, appendix B.4.1, for DiT-XL/2.
    """
    return [site.layer for site in sites[: max(1, len(sites) * 12 // 28)]]


def spread_timesteps(rows: int, device: torch.device) -> Tensor:
    """Make timesteps that differ from row to row, int64 `[B]`, from 0 to 999."""
    return torch.arange(rows, device=device) * 389 % 1000


class StackAdapter(Adapter):
    """Every block sees the model's whole grid.

    By default a reducer works in the first 12 of 28 blocks, or that share of them.

    Attributes:
        blocks: Name of the list of blocks in the model.
        parameters: Order of the arguments of the model's forward, as far as they matter.
    """

    blocks: ClassVar[str] = "transformer_blocks"
    parameters: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        """Say which parts a block has, and how each takes its tokens."""

    def sites(self, model: nn.Module) -> list[Site]:
        blocks = cast("nn.ModuleList", getattr(model, self.blocks))
        return [Site(f"{self.blocks}.{index}", block, index, self.parts(block)) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Put the arguments of a forward call under their names."""
        return dict(zip(self.parameters, args, strict=False)) | kwargs
