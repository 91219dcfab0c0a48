"""Ends a call of `bigain fit` in time and leaves a checkpoint."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.errors import SettingError

__all__ = ["TimeLimit"]


class TimeLimit(Callback):
    """Saves a checkpoint and stops after some seconds of this call, and saves one at the end of training.

    Lightning's `Timer` counts earlier calls in, saves nothing, and lets every process wait for the
    first at every step.

    Args:
        path: The checkpoint, which the next call resumes with `--ckpt_path`.
        seconds: How long this call may run, from when it is set up: compilation counts. `None`: to the end.
        every: Steps between two looks at the clock.

    Raises:
        SettingError: A time that is not positive, or `every` below 1.
    """

    def __init__(self, path: Path, seconds: float | None = None, every: int = 20) -> None:
        if (seconds is not None and seconds <= 0) or every < 1:
            raise SettingError(f"TimeLimit takes seconds above 0 and every >= 1; got {seconds} and {every}.")
        self.path, self.seconds, self.every = Path(path), seconds, every
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None or trainer.global_step % self.every:
            return
        # All processes stop at the same step: the first one's clock counts.
        if trainer.strategy.broadcast(time.monotonic() - self._began >= self.seconds):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        if trainer.is_global_zero:
            print(f"{self.path}: step {trainer.global_step} of {trainer.max_steps}")
