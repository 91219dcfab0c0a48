"""Grids, batches and contexts that every check runs over."""

import os
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bigain.grid import Grid
from bigain.reducers.base import Context

__all__ = ["CASES", "Case", "checked_device"]


def checked_device() -> torch.device:
    """Return the device that checks run on: the environment variable `BIGAIN_CHECK_DEVICE`, or the CPU."""
    return torch.device(os.environ.get("BIGAIN_CHECK_DEVICE") or "cpu")


@dataclass(frozen=True)
class Case:
    """Seeded tokens on a grid, each row at a timestep of its own.

    Args:
        grid: How the tokens lie.
        batch: Rows.
        channels: Channels of a token.
        seed: Seeds tokens, timesteps and the context.
        layer: Index of the attention site.
        stage: Name of the resolution stage.
    """

    grid: Grid
    batch: int = 3
    channels: int = 8
    seed: int = 0
    layer: int = 0
    stage: str | None = None

    def tokens(self, variant: int = 0) -> Tensor:
        """Make normal noise, float32 `[B, N, C]`; each variant has other values."""
        shape = (self.batch, self.grid.tokens, self.channels)
        return torch.randn(shape, generator=self._generator(variant)).to(checked_device())

    def timesteps(self, variant: int = 0) -> Tensor:
        """Make a timestep for each row, int64 `[B]`, from 0 to 999."""
        return torch.randint(1000, (self.batch,), generator=self._generator(variant)).to(checked_device())

    def context(self, timestep: Tensor | None = None) -> Context:
        """Make a fresh context with an empty cache, at the rows' own timesteps or at `timestep`."""
        timestep = self.timesteps() if timestep is None else timestep
        return Context(timestep, self.layer, self.stage, self.seed)

    def with_rows(self, least: int) -> Self:
        """Return this case with at least `least` rows."""
        return replace(self, batch=max(self.batch, least))

    def _generator(self, variant: int) -> torch.Generator:
        return torch.Generator().manual_seed(1009 * self.seed + variant)

    def __str__(self) -> str:
        grid, rows = self.grid, "1 row" if self.batch == 1 else f"{self.batch} rows"
        fixed = f" with {grid.prefix} tokens before and {grid.suffix} after" if grid.prefix or grid.suffix else ""
        return f"grid {grid.shape}{fixed}, {rows} of {self.channels} channels, layer {self.layer}, stage {self.stage}"


CASES = (
    Case(Grid((6, 6))),
    Case(Grid((5, 7), prefix=1, suffix=2), seed=1, layer=2, stage="down_blocks.0"),
    Case(Grid((13,), prefix=2), batch=1, seed=2, layer=5, stage="up_blocks.1"),
    Case(Grid((2, 4, 4), suffix=1), seed=3, layer=11),
)
"""The default cases: an image, one that no cell divides, a sequence, and a video."""
