"""What the adapters of video transformers share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bigain.adapters.base import Site
from bigain.errors import SettingError

__all__ = ["checked_shape", "first_blocks", "row_timesteps", "spread_timesteps"]


def checked_shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the tokens along frames, height and width, refusing what is no such size."""
    if shape is None:
        return None
    whole = isinstance(shape, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not whole or len(shape) != 3 or min(shape) < 1:
        raise SettingError(f"shape is the tokens along frames, height and width, each at least 1; got {shape!r}.")
    return tuple(shape)


def first_blocks(sites: list[Site]) -> list[int]:
    """Take the first 12/28 of the blocks, as published for DiT; nothing is published for video."""
    return [site.layer for site in sites[: max(1, len(sites) * 12 // 28)]]


def row_timesteps(given: Any) -> Any:
    """Read one timestep a row where every token may have its own, `[B, N]` or `[B, N, 1]`.

    Tokens of a frame that is given (an image to animate) are at 0 or near it; those
    that are being denoised are all at the largest.
    """
    return given.flatten(1).amax(dim=1) if isinstance(given, Tensor) and given.ndim > 1 else given


def spread_timesteps(rows: int, device: torch.device) -> Tensor:
    """Make timesteps that differ from row to row, `[B]`."""
    return torch.arange(rows, device=device) * 389 % 1000
