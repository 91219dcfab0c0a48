"""Averages of the weights over several lengths of training, side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bigain.errors import DataError, SettingError

__all__ = ["AVERAGES", "PowerAverage", "PowerAverages"]

AVERAGES = "averages"
"""Where a checkpoint has the averages: name of the length, then name of the parameter."""

_LONGEST = 0.28
"""Just under the length of an equally weighted average, 1 / sqrt(12)."""


class PowerAverage:
    """An average whose length grows with training, so that it needs no start of its own.

    After step t, step s weighs as `s ** gamma`.

    Args:
        parameters: What is averaged.
        length: Standard deviation of the steps that are averaged over, as a share of all steps so far.

    Raises:
        SettingError: A length that is not above 0 and below 0.28 (an equally weighted average has 0.29).

    References:
        Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), section 3.1.
    """

    def __init__(self, parameters: Iterable[Tensor], length: float) -> None:
        if not 0 < length <= _LONGEST:
            raise SettingError(f"The length of an average is a share of the run above 0, at most 0.28; got {length}.")
        self.gamma = float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int, before: int) -> None:
        """Take in the weights after `step` steps; the last time was after `before` steps, 0 at first."""
        torch._foreach_lerp_(self.values, list(parameters), 1 - (before / step) ** (self.gamma + 1))


class PowerAverages(Callback):
    """Keeps several averages of the weights, all in the checkpoint; `bigain export --average` chooses one.

    The weights that are trained, and those that a checkpoint resumes with, are never replaced.

    Args:
        lengths: The averages' lengths, as shares of the run. See `PowerAverage`.
        every: Steps between two updates.

    Raises:
        SettingError: No length, an impossible one, or `every` below 1.
        DataError: A checkpoint has averages of other lengths.
    """

    def __init__(self, lengths: list[float], every: int = 1) -> None:
        if not lengths or len(set(lengths)) < len(lengths) or every < 1:
            raise SettingError(
                f"PowerAverages got lengths={lengths} and every={every}; accepted are one length or more, each once, "
                "and every >= 1."
            )
        self.averages = {f"{length:g}": PowerAverage([], length) for length in lengths}
        self.every, self._last = every, 0
        self._names: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names, parameters = _trained(pl_module)
        if not self._names:
            self._names = names
            for average in self.averages.values():
                average.values = [parameter.detach().clone() for parameter in parameters]
        for average in self.averages.values():
            average.values = [v.to(p.device) for v, p in zip(average.values, parameters, strict=True)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step <= self._last or step % self.every:
            return
        _, parameters = _trained(pl_module)
        for average in self.averages.values():
            average.update(parameters, step, self._last)
        self._last = step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[AVERAGES] = {
            length: dict(zip(self._names, average.values, strict=True)) for length, average in self.averages.items()
        }
        checkpoint["averaged_step"] = self._last

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        found: Mapping[str, Mapping[str, Tensor]] = checkpoint.get(AVERAGES, {})
        self._names, _ = _trained(pl_module)
        if found.keys() != self.averages.keys() or any(set(one) != set(self._names) for one in found.values()):
            raise DataError(
                f"The checkpoint has averages of the lengths {', '.join(found) or 'none'}, the recipe of "
                f"{', '.join(self.averages)}: give the same, and the same network."
            )
        for length, average in self.averages.items():
            average.values = [found[length][name].clone() for name in self._names]
        self._last = int(checkpoint["averaged_step"])


def _trained(module: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    """List what is trained, by the names that it has in a checkpoint."""
    pairs = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    return [name for name, _ in pairs], [parameter for _, parameter in pairs]
