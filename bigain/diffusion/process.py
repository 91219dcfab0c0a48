"""The forward process: the signal and noise at each timestep, and what the network predicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from bigain.diffusion.schedulers import PROCESS_SETTINGS, from_configuration
from bigain.errors import SettingError

__all__ = ["Prediction", "Process"]

Prediction = Literal["noise", "velocity", "clean", "flow"]
"""What a network predicts: e, `alpha e - sigma x_0`, x_0, or `e - x_0`."""

_PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "clean",
    "original_sample": "clean",
    "flow_prediction": "flow",
}

_NAMED = {"num_train_timesteps", "prediction_type"}
"""Settings that the process has as fields."""

_NEARLY_ZERO_SNR = 2.0**-12
"""Alpha at zero terminal SNR in some schedulers (2^-24 in alphas_cumprod); in others it is 0."""


@dataclass(frozen=True, eq=False)
class Process:
    """`x_t = alpha(t) x_0 + sigma(t) e`, as in the network's training.

    `Process.of` reads the alphas of a diffusers scheduler. A flow is unshifted:
    `sigma = t / steps`, `alpha = 1 - sigma`. The table is not a buffer of a module, so
    that it stays float32 when modules change to half precision.

    Args:
        prediction: What the network predicts.
        steps: Number of training timesteps.
        table: alpha and sigma at each timestep, float32, `[2, steps]`; `None` for a flow.
        settings: The scheduler's settings that decide the process.

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 4; Progressive
        Distillation (Salimans and Ho, 2022), appendix D, for the velocity; Flow Matching
        for Generative Modeling (Lipman et al., 2023), section 4.1.
    """

    prediction: Prediction
    steps: int
    table: Tensor | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scheduler: Any) -> "Process":
        """Read the process from a diffusers scheduler.

        Args:
            scheduler: A scheduler, or its configuration: a mapping with `_class_name`.

        Raises:
            SettingError: Not a scheduler of diffusers, or one whose process is neither
                variance preserving nor a flow.
        """
        if isinstance(scheduler, Mapping):
            scheduler = from_configuration(scheduler)
        name, config = type(scheduler).__name__, scheduler.config
        steps, settings = int(config["num_train_timesteps"]), _settings(config)
        if name.startswith("FlowMatch"):
            return cls("flow", steps, None, settings)
        prediction = _PREDICTIONS.get(str(config.get("prediction_type")))
        flow = bool(config.get("use_flow_sigmas"))
        if prediction is None or flow != (prediction == "flow"):
            raise SettingError(
                f"{name} has prediction_type={config.get('prediction_type')!r} and use_flow_sigmas={flow}; accepted "
                "are epsilon, v_prediction and sample without flow sigmas, and flow_prediction with them."
            )
        return cls(prediction, steps, None if flow else _table(scheduler), settings)

    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the signal at timesteps `[B]`, which may be fractional: float32, `[B]`."""
        return self._levels(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise at timesteps `[B]`, which may be fractional: float32, `[B]`."""
        return self._levels(t)[1]

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Diffuse `clean` `[B, ...]` with `noise` of the same shape, each row to its own timestep of `t` `[B]`."""
        alpha, sigma = (_column(level, clean) for level in self._levels(t))
        return alpha * clean + sigma * noise

    def to_noise(self, predicted: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Convert what the network predicts to noise, `[B, ...]`.

        Args:
            predicted: The network's output, `[B, ...]`.
            noisy: The network's input, of the same shape.
            t: Timesteps, `[B]`.
        """
        if self.prediction == "noise":
            return predicted
        alpha, sigma = (_column(level, noisy) for level in self._levels(t))
        if self.prediction == "velocity":
            return alpha * predicted + sigma * noisy
        if self.prediction == "flow":
            return noisy + alpha * predicted
        return (noisy - alpha * predicted) / sigma

    def to(self, device: torch.device | str) -> "Process":
        """Copy the table to a device ahead of the calls that need it there; return the process itself."""
        self._table_on(torch.device(device))
        return self

    def identity(self) -> dict[str, Any]:
        """Return what defines the process, in types that JSON has."""
        return {"prediction": self.prediction, "steps": self.steps, **self.settings}

    def differs(self, other: "Process") -> str:
        """Say how another process differs; empty if it does not."""
        if self.prediction != other.prediction:
            return f"one predicts {self.prediction}, the other {other.prediction}"
        if self.steps != other.steps:
            return f"one has {self.steps} timesteps, the other {other.steps}"
        t = torch.arange(self.steps, device="cpu")
        gap = float((self.alpha(t) - other.alpha(t)).abs().max())
        return f"their alphas differ by up to {gap:.2g}" if gap > 2 * _NEARLY_ZERO_SNR else ""

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table_on(t.device)
        if table is None:
            sigma = t.to(torch.float32) / self.steps
            return 1 - sigma, sigma
        if not t.is_floating_point():
            alpha, sigma = table[:, t.clamp(0, self.steps - 1)].unbind()
            return alpha, sigma
        low = t.floor().long().clamp(0, self.steps - 1)
        part = (t - low).clamp(0, 1).to(torch.float32)
        near, far = table[:, low], table[:, (low + 1).clamp(max=self.steps - 1)]
        # Between two timesteps sigma / alpha is linear, as in diffusers' Euler schedulers.
        ratio = torch.lerp(_ratio(near), _ratio(far), part)
        alpha = (1 + ratio.square()).rsqrt()
        return torch.where(part == 0, near[0], alpha), torch.where(part == 0, near[1], ratio * alpha)

    def _table_on(self, device: torch.device) -> Tensor | None:
        if self.table is None:
            return None
        if device not in self._copies:
            self._copies[device] = self.table.to(device)
        return self._copies[device]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings that define the process, without those that are off or not set."""
    found = {name: config[name] for name in sorted(PROCESS_SETTINGS - _NAMED) if config.get(name) not in (None, False)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _table(scheduler: Any) -> Tensor:
    name, cumulative = type(scheduler).__name__, getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None or scheduler.config.get("timestep_type") == "continuous":
        raise SettingError(
            f"{name} has no alphas at whole timesteps; accepted are variance-preserving schedulers, such as "
            "DDIMScheduler and EulerDiscreteScheduler, and those of flow matching."
        )
    cumulative = cast("Tensor", cumulative).detach().to("cpu", torch.float32)
    return torch.stack([cumulative.sqrt(), (1 - cumulative).sqrt()])


def _ratio(levels: Tensor) -> Tensor:
    return levels[1] / levels[0].clamp(min=_NEARLY_ZERO_SNR)


def _column(level: Tensor, like: Tensor) -> Tensor:
    return level.reshape(-1, *[1] * (like.ndim - 1))
