"""What recipes/train/probe.py tries: shapes of the embedded models, and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LINEAR = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SCALED = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MIDDLE = {"mean": 0.0, "std": 1.2, "uniform_share": 0.2}


@dataclass(frozen=True)
class Candidate:
    """A model and its training.

    Args:
        kind: `dit`, the pixel DiT, or `sd`, Stable Diffusion in small.
        shape: Arguments of `PixelDiT`, or of `small_pipeline` in cifar10_sd_start.py.
        lr: Peak learning rate.
        timesteps: Arguments of `LogitNormal`; drawn uniformly without.
        shift: Largest random shift of images, in pixels.
    """

    kind: Literal["dit", "sd"]
    shape: Mapping[str, Any]
    lr: float
    timesteps: Mapping[str, float] | None = None
    shift: int = 0

    def tiny(self) -> "Candidate":
        """The same kind of model, as small as it can be."""
        depth = {"depth": 3} if self.kind == "dit" else {"layers": 1}
        shape = {**self.shape, **depth, "width": 32, "heads": 2}
        return Candidate(self.kind, shape, self.lr, self.timesteps, self.shift)


def dit(
    width: int,
    depth: int,
    heads: int,
    overlap: int,
    scheduler: Mapping[str, Any] = SCALED,
    lr: float = 4e-3,
    timesteps: Mapping[str, float] | None = None,
    shift: int = 0,
) -> Candidate:
    """Describe a pixel DiT."""
    shape = {"width": width, "depth": depth, "heads": heads, "overlap": overlap, "scheduler": scheduler}
    return Candidate("dit", shape, lr, timesteps, shift)


def sd(width: int, layers: int, mid: bool, heads: int = 2, lr: float = 2e-3) -> Candidate:
    """Describe Stable Diffusion in small."""
    return Candidate("sd", {"width": width, "layers": layers, "heads": heads, "mid": mid}, lr)


CANDIDATES = {
    "dit-176x7-o1": dit(176, 7, 4, 1),
    "dit-176x7-o3": dit(176, 7, 4, 3),
    "dit-144x11-o3": dit(144, 11, 3, 3),
    "dit-128x12-o3": dit(128, 12, 2, 3),
    "dit-160x9-o3": dit(160, 9, 5, 3),
    "dit-176x7-o3-linear": dit(176, 7, 4, 3, LINEAR),
    "dit-176x7-o3-middle": dit(176, 7, 4, 3, timesteps=MIDDLE),
    "dit-176x7-o3-slow": dit(176, 7, 4, 3, lr=2e-3),
    "dit-176x7-o3-shift": dit(176, 7, 4, 3, shift=2),
    "sd-128x3": sd(128, 3, False),
    "sd-128x3-fast": sd(128, 3, False, lr=4e-3),
    "sd-144x2": sd(144, 2, False),
    "sd-112x2-mid": sd(112, 2, True),
    "sd-96x4-mid": sd(96, 4, True),
}
"""By name: width x depth, pixels that the DiT's patches overlap by, and what differs in the training."""
