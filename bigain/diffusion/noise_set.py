"""The Monte Carlo set of timesteps and noises that every class and every image shares."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["NoiseSet", "Stages", "Weighting"]

Weighting = Literal["uniform", "velocity", "logit_normal"]
"""How timesteps count in a class's mean error: see `bigain.diffusion.weights`."""


@dataclass(frozen=True)
class Stages:
    """Staged pruning: the timesteps that each stage covers, and the classes that survive it.

    Args:
        trials: Timesteps that each stage is spread over, rising (TrialList); those of
            earlier stages are not evaluated again.
        keeps: Classes that survive each stage, falling (KeepList).
        noises: Noises at each timestep; the paper has one.
        weights: How the timesteps of `trials[-1]` count in a class's mean error: `uniform`, as in the
            paper; `velocity`, the squared error of the velocity or flow instead of that of the noise;
            `logit_normal`, for flows, as SD3 weights its training; or a number for each timestep,
            from the least noise to the most.

    Raises:
        SettingError: Lists of different length, or not rising or falling; no noise; weights that are
            unknown, negative, not as many as timesteps, or all 0 in the first stage.

    References:
        BiGain, section 5.1; Your Diffusion Model is Secretly a Zero-Shot
        Classifier (Li et al., 2023), section 3.2.
    """

    trials: tuple[int, ...] = (5, 20)
    keeps: tuple[int, ...] = (5, 1)
    noises: int = 1
    weights: Weighting | tuple[float, ...] = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", tuple(self.trials))
        object.__setattr__(self, "keeps", tuple(self.keeps))
        rising = all(a < b for a, b in zip(self.trials, self.trials[1:], strict=False))
        falling = all(a >= b for a, b in zip(self.keeps, self.keeps[1:], strict=False))
        if not self.trials or len(self.trials) != len(self.keeps) or not rising or not falling:
            raise SettingError(
                f"Stages got trials={self.trials} and keeps={self.keeps}; accepted are two lists of the same "
                "length, trials rising and keeps falling, such as trials=[5, 20] keeps=[5, 1]."
            )
        if self.trials[0] < 1 or self.keeps[-1] < 1:
            raise SettingError(f"Stages got trials={self.trials} and keeps={self.keeps}; all must be >= 1.")
        if self.noises < 1:
            raise SettingError(f"noises is the number of noises at each timestep, 1 or more; got {self.noises}.")
        self._check_weights()

    def _check_weights(self) -> None:
        given = self.weights
        if isinstance(given, str):
            if given not in get_args(Weighting):
                raise SettingError(
                    f"weights is one of {', '.join(get_args(Weighting))}, or a number for each timestep; got {given!r}."
                )
            return
        object.__setattr__(self, "weights", tuple(float(weight) for weight in given))
        fair = all(math.isfinite(weight) and weight >= 0 for weight in given)
        first = {index // self.noises for index in self.members()[0]}
        if len(given) != self.trials[-1] or not fair or not any(given[step] for step in first):
            raise SettingError(
                f"weights is a number for each of the {self.trials[-1]} timesteps, 0 or more, not all 0 in the first "
                f"stage; got {len(given)}: {list(given)}."
            )

    def settings(self) -> dict[str, Any]:
        """Return what a result says of the stages, without what is as in the paper."""
        noises = {"noises": self.noises} if self.noises > 1 else {}
        weights = {} if self.weights == "uniform" else {"timestep_weights": self.weights}
        return {"trials": self.trials, "keeps": self.keeps, **noises, **weights}

    @property
    def total(self) -> int:
        """M: pairs of timestep and noise at which a class that survives to the end is evaluated."""
        return self.trials[-1] * self.noises

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """Return each pair's timestep: the centres of equal parts of the schedule, 25, 75, .., 975 for 20 of 1,000.

        Those with several noises follow each other.

        Raises:
            SettingError: The schedule has too few timesteps.
        """
        count = self.trials[-1]
        if count > steps:
            raise SettingError(f"{count} timesteps were asked for; the schedule has {steps}.")
        centres = (steps * (2 * j + 1) // (2 * count) for j in range(count))
        return tuple(centre for centre in centres for _ in range(self.noises))

    def members(self) -> list[tuple[int, ...]]:
        """Return the indices of the pairs that each stage adds, none twice."""
        seen: set[int] = set()
        stages = []
        for count in self.trials:
            steps = [self.trials[-1] * (2 * k + 1) // (2 * count) for k in range(count)]
            spread = [step * self.noises + noise for step in steps for noise in range(self.noises)]
            stages.append(tuple(index for index in spread if index not in seen))
            seen.update(spread)
        return stages

    def evaluations(self, classes: int) -> int:
        """Count the network evaluations of one image with `classes` classes."""
        alive = [classes, *self.keeps]
        return sum(len(new) * min(classes, count) for new, count in zip(self.members(), alive, strict=False))


@dataclass(frozen=True)
class NoiseSet:
    """Timesteps and the noise drawn for each: the same for all classes and images.

    Args:
        timesteps: int64, `[M]`.
        noise: float32, `[M, C, h, w]`.
        seed: The seed of the noise.
    """

    timesteps: Tensor
    noise: Tensor
    seed: int

    @classmethod
    def draw(cls, seed: int, timesteps: tuple[int, ...], shape: tuple[int, ...]) -> "NoiseSet":
        """Draw on the CPU in float32, so that the noise depends on seed and shape alone.

        Args:
            seed: Any whole number.
            timesteps: M timesteps.
            shape: Shape of one latent, `(C, h, w)`.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        # Lightning changes the default type for half precision, hence the explicit one.
        noise = torch.randn((len(timesteps), *shape), generator=generator, dtype=torch.float32)
        return cls(torch.tensor(timesteps), noise, seed)

    def to(self, device: torch.device | str) -> "NoiseSet":
        """Move to a device."""
        return NoiseSet(self.timesteps.to(device), self.noise.to(device), self.seed)
