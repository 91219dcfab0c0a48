"""The forward process: how much signal and how much noise there is at each timestep."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["NoiseSchedule"]


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule with linear betas.

    `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e`, where `a_t` is the running product of
    `1 - beta`.

    Args:
        steps: Number of training timesteps.
        beta_start: First beta.
        beta_end: Last beta.

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), section 4.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.beta_start <= self.beta_end < 1:
            raise SettingError(
                f"NoiseSchedule got steps={self.steps}, beta_start={self.beta_start}, "
                f"beta_end={self.beta_end}; accepted are steps >= 1 and 0 < beta_start <= beta_end < 1."
            )

    def alphas_cumprod(self, device: torch.device | None = None) -> Tensor:
        """Return `a_t` for every timestep, float32, `[steps]`; computed in float64."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        return (1 - betas).cumprod(0).to(device=device, dtype=torch.float32)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
        """Diffuse `clean` to `timesteps`, each row to its own.

        Args:
            clean: `[B, ...]`.
            noise: The same shape.
            timesteps: int64, `[B]`.
            alphas: What `alphas_cumprod` returned, on the device of `clean`.
        """
        signal = alphas[timesteps].reshape(-1, *[1] * (clean.ndim - 1))
        return signal.sqrt() * clean + (1 - signal).sqrt() * noise
