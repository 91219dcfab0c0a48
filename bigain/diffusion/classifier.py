"""The diffusion classifier: the class whose noise prediction errs least."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.diffusion.condition import Condition, Conditions
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.process import Process
from bigain.diffusion.weights import timestep_weights, weighted_mean
from bigain.errors import NumericalError, SettingError

__all__ = ["Classified", "DiffusionClassifier", "Loss"]

Loss = Literal["l1", "l2", "huber"]

_LOSSES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}


@dataclass(frozen=True)
class Classified:
    """What the classifier found.

    Args:
        errors: float32, `[B, K, M]`: error of each class at each timestep; NaN
            where pruning skipped the evaluation.
        prediction: int64, `[B]`.
    """

    errors: Tensor
    prediction: Tensor


class DiffusionClassifier:
    """Staged Monte Carlo classification.

    The error of a class is the mean over (t, e) of the loss between e and the
    prediction for `alpha(t) x_0 + sigma(t) e`, a mean over elements; the stages
    may weight timesteps (`bigain.diffusion.weights`). All classes and images share
    the set of (t, e). Rows of one forward pass mix images, classes and timesteps;
    every pass has exactly `rows` rows and takes its rows of the condition to the
    device.

    Args:
        predict_noise: `(noisy [R, C, h, w], t [R], condition of R rows) -> noise [R, C, h, w]`
            (`Backbone.predict_noise`).
        process: The forward process.
        noise_set: The Monte Carlo set, on the device of the images.
        stages: The pruning; `noise_set` has `stages.total` timesteps.
        condition: A row for each of the K classes, on the host.
        loss: `l2`, `l1` or `huber` (threshold 1).
        rows: Rows of one forward pass.
        share: Called with k, returns a context in which each k consecutive rows share one
            plan (`AttachReport.shared`). A pass then has whole groups, each of one image,
            timestep and noise with every surviving class, and at most `rows` rows. Without
            it every row plans for itself.

    Raises:
        SettingError: A setting is impossible, or `rows` is too small for a group of all classes.

    References:
        BiGain, section 3; Li et al. (2023), algorithm 1.
    """

    def __init__(
        self,
        predict_noise: Callable[[Tensor, Tensor, Condition], Tensor],
        process: Process,
        noise_set: NoiseSet,
        stages: Stages,
        condition: Conditions,
        loss: Loss = "l2",
        rows: int = 64,
        share: Callable[[int], AbstractContextManager[None]] | None = None,
    ) -> None:
        classes = len(condition)
        if loss not in _LOSSES:
            raise SettingError(f"loss is one of {', '.join(_LOSSES)}; got {loss!r}.")
        if rows < 1:
            raise SettingError(f"rows is the number of rows of one forward pass, 1 or more; got {rows}.")
        if len(noise_set.timesteps) != stages.total:
            raise SettingError(f"The noise set has {len(noise_set.timesteps)} timesteps, the stages {stages.total}.")
        if isinstance(stages.weights, str) and stages.weights != "uniform" and loss != "l2":
            raise SettingError(f"weights={stages.weights!r} are of squared errors, loss l2; got the loss {loss}.")
        if stages.keeps[0] > classes:
            raise SettingError(f"keeps={stages.keeps} keeps more classes than the {classes} there are.")
        if share is not None and rows < classes:
            raise SettingError(
                f"Classes that share plans are evaluated together: rows must be {classes} or more; got {rows}."
            )
        weights = timestep_weights(stages, process)
        self._weights = None if weights is None else weights.to(noise_set.noise.device, torch.float32)
        self._share, self._condition = share, condition
        self._predict_noise, self._process, self._noise_set = predict_noise, process, noise_set
        self._stages, self._classes, self._loss, self._rows = stages, classes, _LOSSES[loss], rows

    def __call__(self, clean: Tensor, names: Sequence[str] = ()) -> Classified:
        """Classify latents.

        Args:
            clean: float32, `[B, C, h, w]`.
            names: Names of the images, for errors.

        Raises:
            NumericalError: The model returned NaN or infinity; says where.
        """
        batch, device = clean.shape[0], clean.device
        errors = torch.full((batch, self._classes, self._stages.total), torch.nan, dtype=torch.float32, device=device)
        alive = torch.arange(self._classes, device="cpu").expand(batch, -1)
        seen: list[int] = []
        for new, keep in zip(self._stages.members(), self._stages.keeps, strict=True):
            chosen, found = self._evaluate(clean, alive, new)
            image, step, label = chosen
            errors[image, label, step] = found
            seen.extend(new)
            here = _upload(alive.contiguous(), device)
            index = _upload(torch.tensor(seen, device="cpu"), device)
            weights = None if self._weights is None else self._weights[index]
            mean = weighted_mean(errors.index_select(2, index), weights).gather(1, here)
            # Stable, so that the lower class wins ties on every device.
            best = mean.argsort(dim=-1, stable=True)[:, :keep]
            # The stage's only host synchronisation: which classes survive, and whether all errors are finite.
            survivors = torch.cat([here.gather(1, best).flatten(), found.isfinite().all()[None].long()]).cpu()
            if not survivors[-1]:
                self._refuse_nan(chosen, found, names)
            alive = survivors[:-1].reshape(batch, keep)
        return Classified(errors, _upload(alive[:, 0].contiguous(), device))

    def _evaluate(self, clean: Tensor, alive: Tensor, new: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Find the errors of the surviving classes at the new timesteps.

        Returns:
            Image, index of the timestep and class of each evaluation, `[3, n]`, and its error, `[n]`.
        """
        batch, count = alive.shape
        image = torch.arange(batch, device="cpu").repeat_interleave(len(new) * count)
        index = torch.tensor(new, dtype=torch.int64, device="cpu").repeat_interleave(count).repeat(batch)
        label = alive[:, None].expand(-1, len(new), -1).flatten()
        there = _upload(torch.stack([image, index, label]), clean.device)
        group = 1 if self._share is None else count
        size = self._rows // group * group
        with nullcontext() if self._share is None else self._share(group):
            found = [
                self._rows_error(clean, there[:, i : i + size], label[i : i + size], group)
                for i in range(0, len(label), size)
            ]
        return there, torch.cat(found) if found else clean.new_empty(0)  # a stage may add no timestep

    def _rows_error(self, clean: Tensor, part: Tensor, label: Tensor, group: int) -> Tensor:
        # The last pass is filled up with copies of its first rows: one shape compiles once, and
        # matrix products of one shape give a row the same result.
        count = part.shape[1]
        fill = torch.arange(self._rows // group * group, device="cpu")
        fill = torch.where(fill < count, fill, fill % group)
        condition = self._condition.take(label[fill]).to(clean.device)
        image, index, _ = part if len(fill) == count else part[:, _upload(fill, clean.device)]
        noise, t = self._noise_set.noise[index], self._noise_set.timesteps[index]
        noisy = self._process.add_noise(clean[image], noise, t)
        predicted = self._predict_noise(noisy, t, condition)
        return self._loss(predicted, noise, reduction="none").flatten(1).mean(dim=1)[:count]

    def _refuse_nan(self, chosen: Tensor, found: Tensor, names: Sequence[str]) -> None:
        broken = (~found.isfinite()).nonzero().flatten()
        image, index, label = chosen[:, broken[0]].tolist()
        name = names[image] if names else f"row {image}"
        raise NumericalError(
            f"The model returned NaN or infinity for image {name}, class {label}, timestep "
            f"{self._noise_set.timesteps[index].item():g} ({len(broken)} of {found.numel()} evaluations of this "
            "stage). Try another precision (--trainer.precision=bf16-true or 32-true) or check the weights."
        )


def _upload(rows: Tensor, device: torch.device) -> Tensor:
    """Move row numbers to a device without waiting for it."""
    return (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)
