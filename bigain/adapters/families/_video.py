"""What the adapters of video transformers share."""

from typing import Any

from torch import Tensor

__all__ = ["row_timesteps"]


def row_timesteps(given: Any) -> Any:
    """Read one timestep a row where every token may have its own, `[B, N]` or `[B, N, 1]`.

    Tokens of a frame that is given (an image to animate) are at 0 or near it; those
    that are being denoised are all at the largest.
    """
    return given.flatten(1).amax(dim=1) if isinstance(given, Tensor) and given.ndim > 1 else given
