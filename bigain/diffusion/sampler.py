"""DDIM with classifier-free guidance, one seed an image."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bigain.diffusion.backbone import Backbone
from bigain.errors import NumericalError, SettingError

__all__ = ["DDIMSampler"]


class DDIMSampler:
    """Draws images; what becomes of a seed does not depend on its neighbours.

    Args:
        backbone: The model.
        steps: Sampling steps.
        guidance: Guidance scale; 1 leaves the condition as it is and halves the cost.
        rows: Images drawn at once; a smaller batch is filled up, so that shapes stay.
        at: Called with each step's timestep, gives the context that the step runs in
            (`AttachReport.at`).

    References:
        Denoising Diffusion Implicit Models (Song et al., 2021), equation 12 with
        sigma = 0; Classifier-Free Diffusion Guidance (Ho and Salimans, 2022).
    """

    def __init__(
        self,
        backbone: Backbone,
        steps: int = 50,
        guidance: float = 1.5,
        rows: int = 64,
        at: Callable[[float], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if not 1 <= steps <= backbone.schedule.steps:
            raise SettingError(f"steps is from 1 to {backbone.schedule.steps}; got {steps}.")
        if guidance < 1:
            raise SettingError(f"guidance is a scale of 1 or more; got {guidance}.")
        if rows < 1:
            raise SettingError(f"rows is the number of images drawn at once, 1 or more; got {rows}.")
        self._backbone, self._steps, self._guidance, self._rows = backbone, steps, guidance, rows
        self._at = at

    @property
    def evaluations(self) -> int:
        """Network evaluations an image costs."""
        return self._steps * (1 if self._guidance == 1 else 2)

    def __call__(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Draw one image per label and seed.

        Args:
            labels: int64, `[B]`.
            seeds: int64, `[B]`.

        Returns:
            uint8, `[B, 3, H, W]`.

        Raises:
            NumericalError: The model returned NaN or infinity; says where.
        """
        drawn = [
            self._draw(labels[i : i + self._rows], seeds[i : i + self._rows]) for i in range(0, len(labels), self._rows)
        ]
        return torch.cat(drawn)

    def _draw(self, labels: Tensor, seeds: Tensor) -> Tensor:
        count = len(labels)
        noise = torch.stack([self._noise(int(seed)) for seed in seeds])
        fill = torch.arange(self._rows) % count
        latents, labels = noise[fill].to(labels.device), labels[fill.to(labels.device)]
        scheduler, finite = self._scheduler(), []
        for timestep in scheduler.timesteps.tolist():
            with self._at(timestep):
                predicted = self._guided(latents, timestep, labels)
            finite.append(predicted.flatten(1).isfinite().all(dim=1)[:count])
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        self._refuse_nan(torch.stack(finite), scheduler.timesteps.tolist(), labels, seeds)
        return self._backbone.decode(latents[:count])

    def _noise(self, seed: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self._backbone.latent_shape, generator=generator, dtype=torch.float32)

    def _guided(self, latents: Tensor, timestep: int, labels: Tensor) -> Tensor:
        steps = torch.full_like(labels, timestep)
        if self._guidance == 1:
            return self._backbone.predict_noise(latents, steps, labels)
        null = torch.full_like(labels, self._backbone.null_label)
        both = self._backbone.predict_noise(latents.repeat(2, 1, 1, 1), steps.repeat(2), torch.cat([labels, null]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self._guidance * (conditional - unconditional)

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        schedule = self._backbone.schedule
        scheduler = DDIMScheduler(
            num_train_timesteps=schedule.steps,
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            beta_schedule="linear",
            timestep_spacing="trailing",
            clip_sample=True,
        )
        scheduler.set_timesteps(self._steps)
        return scheduler

    def _refuse_nan(self, finite: Tensor, timesteps: list[int], labels: Tensor, seeds: Tensor) -> None:
        if bool(finite.all()):
            return
        step, row = (~finite).nonzero()[0].tolist()
        raise NumericalError(
            f"The model returned NaN or infinity at timestep {timesteps[step]} for the image of class "
            f"{int(labels[row])}, seed {int(seeds[row])}. Try another precision (--trainer.precision=bf16-true "
            "or 32-true) or check the weights."
        )
