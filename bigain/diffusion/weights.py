"""How much each timestep counts in a class's mean error."""

import math

import torch
from torch import Tensor

from bigain.diffusion.noise_set import Stages
from bigain.diffusion.process import Process
from bigain.errors import SettingError

__all__ = ["timestep_weights", "weighted_mean"]


def timestep_weights(stages: Stages, process: Process) -> Tensor | None:
    """Return the weight of each pair of timestep and noise, float64 `[M]`; `None` where all count alike.

    They weight squared errors of the noise. Where the noise is `e = alpha v + ..`, the error of the
    velocity v, or of a flow, is that of the noise divided by alpha: `velocity` is `1 / alpha**2`, and
    `logit_normal` that times the density of timesteps with which SD3 was trained, so that the
    weighted error is the training loss.

    Args:
        stages: The stages, with their setting `weights`.
        process: The process.

    Raises:
        SettingError: `logit_normal` is asked of another process than a flow, or a weight is infinite
            because nothing of the image is left at its timestep.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
        section 3.1, with location 0 and scale 1; Progressive Distillation (Salimans and Ho, 2022),
        appendix D, for the velocity. That timesteps should be weighted, most for SD3: Diffusion
        Classifiers Understand Compositionality, but Conditions Apply (2025).
    """
    if stages.weights == "uniform":
        return None
    if not isinstance(stages.weights, str):
        return torch.tensor(stages.weights, dtype=torch.float64, device="cpu").repeat_interleave(stages.noises)
    t = torch.tensor(stages.timesteps(process.steps), device="cpu")
    weights = process.alpha(t).double() ** -2
    if not weights.isfinite().all():
        raise SettingError(
            f"weights={stages.weights!r} divides by alpha, which is 0 at timestep "
            f"{t[~weights.isfinite()][0].item()} of this process; give uniform weights, or numbers."
        )
    return weights if stages.weights == "velocity" else weights * _logit_normal(process, t)


def weighted_mean(errors: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of errors over their last axis, `[.., M]`, by weights `[M]`; `None` is a plain mean."""
    if weights is None:
        return errors.mean(dim=-1)
    return (errors * weights).sum(dim=-1) / weights.sum()


def _logit_normal(process: Process, t: Tensor) -> Tensor:
    """Return the density of `sigma` whose logit is standard normal, at timesteps `[M]`."""
    if process.prediction != "flow":
        raise SettingError(
            "weights='logit_normal' is the density of timesteps that flows are trained with; this model predicts "
            f"{process.prediction}: give uniform or velocity, or a number for each timestep."
        )
    sigma = process.sigma(t).double()
    return torch.exp(-(sigma.logit() ** 2) / 2) / (math.sqrt(2 * math.pi) * sigma * (1 - sigma))
