"""IE-KVD: between the nearest token and the mean of each cell, or beyond."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.resample import cell_average, cell_token
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.kv import Downsampled, Downsampler

__all__ = ["IEKVD", "Blended", "LinearAlpha"]


@dataclass(frozen=True)
class LinearAlpha:
    """An alpha that runs with the timestep: start * t / (steps - 1) + end * (1 - t / (steps - 1)).

    Sampling runs from pure noise, t = steps - 1, down to t = 0; hence the names.
    Timesteps beyond this range extrapolate.

    Args:
        start: Alpha at pure noise.
        end: Alpha at t = 0.
        steps: Timesteps of the model's training schedule.

    Raises:
        SettingError: An alpha that is no finite number, or fewer than 2 steps.

    References:
        BiGain, section C.5.
    """

    start: float
    end: float
    steps: int = 1000

    def __post_init__(self) -> None:
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if not (_is_number(self.start) and _is_number(self.end) and whole and self.steps >= 2):
            raise SettingError(
                f"A linear alpha takes two finite numbers, start and end, and steps of at least 2; "
                f"got start={self.start!r}, end={self.end!r}, steps={self.steps!r}."
            )

    def at(self, timestep: Tensor) -> Tensor:
        """Evaluate at timesteps of any shape; float32 of that shape."""
        part = timestep.float() / (self.steps - 1)
        return self.start * part + self.end * (1 - part)


@dataclass(frozen=True)
class Blended(Downsampled):
    """The line through each cell's mean (alpha = 0) and its middle token (alpha = 1).

    Args:
        sizes: float32, `[B, M]`.
        grid: How the tokens lie.
        factor: Tokens of a cell along each axis.
        alpha: Where on the line: one number, or one for each row, float32, `[B]`.
    """

    alpha: Tensor | float = 0.9

    def shrink(self, body: Tensor) -> Tensor:
        alpha, place = self.alpha, (self.grid.shape, self.factor)
        # At the ends only one of the two is needed.
        if not isinstance(alpha, Tensor) and alpha == 1:
            return cell_token(body, *place, middle=True)
        average = cell_average(body, *place)
        if not isinstance(alpha, Tensor) and alpha == 0:
            return average.to(body.dtype)
        weight = alpha[:, None, None] if isinstance(alpha, Tensor) else alpha
        # In one kernel, and exact at both ends of the line.
        return torch.lerp(average, cell_token(body, *place, middle=True).float(), weight).to(body.dtype)


class IEKVD(Downsampler):
    """Interpolate-extrapolate downsampling of keys and values; queries stay whole.

    Each cell becomes alpha * nearest + (1 - alpha) * average: its middle token keeps
    detail, its mean smooths. Alpha 1 is `ToDo`, alpha 0 `Pooling`, more than 1
    sharpens past the token itself.

    Args:
        factor: Tokens of a cell along each axis; one number serves every axis. Where
            it does not divide an axis, the last cell along it is smaller.
        alpha: A number, or a `LinearAlpha` (or a mapping with its settings), which
            each row evaluates at its own timestep.

    Raises:
        SettingError: A bad factor or alpha; on planning, an alpha that runs with the
            timestep where the context has none.

    References:
        BiGain, section 3.2.2 (equation 8) and section C.4.
    """

    def __init__(self, factor: Sequence[int] | int, alpha: float | LinearAlpha | Mapping[str, Any] = 0.9) -> None:
        super().__init__(factor)
        self.alpha = _checked_alpha(alpha)

    @property
    def averages(self) -> bool:
        return self.alpha == 0

    def downsampled(self, sizes: Tensor, grid: Grid, factor: tuple[int, ...], context: Context) -> Blended:
        if not isinstance(self.alpha, LinearAlpha):
            return Blended(sizes, grid, factor, self.alpha)
        if context.timestep is None:
            raise SettingError(
                f"IEKVD with alpha={self.alpha} needs the timestep of each row, and the context has none; "
                "give a number as alpha, or a Context with a timestep."
            )
        alpha = self.alpha.at(context.timestep.to(sizes.device)).expand(sizes.shape[0])
        return Blended(sizes, grid, factor, alpha)

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(2), cls(3, alpha=1.2), cls(2, alpha=LinearAlpha(0.1, 0.9))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _checked_alpha(alpha: float | LinearAlpha | Mapping[str, Any]) -> float | LinearAlpha:
    if isinstance(alpha, LinearAlpha):
        return alpha
    if isinstance(alpha, Mapping):
        try:
            return LinearAlpha(**alpha)
        except TypeError as error:
            raise SettingError(f"A linear alpha takes start, end and steps; got {dict(alpha)}.") from error
    if not _is_number(alpha):
        raise SettingError(f"alpha is a finite number, or a LinearAlpha with start, end and steps; got {alpha!r}.")
    return float(alpha)
