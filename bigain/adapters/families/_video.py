"""What the adapters of video transformers share."""

from typing import Any

from torch import Tensor

__all__ = ["row_timesteps"]


def row_timesteps(given: Any) -> Any:
    """Return one timestep for each row where every token may have its own, `[B, N]` or `[B, N, 1]`.

    Tokens of a given frame (an image to animate) are at 0 or near it; those that are
    being denoised all share the largest timestep.
    """
    return given.flatten(1).amax(dim=1) if isinstance(given, Tensor) and given.ndim > 1 else given
