"""Sampling with any diffusers scheduler and classifier-free guidance, one seed for each image."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.diffusion.process import Process
from bigain.diffusion.schedulers import SchedulerSpec, build_scheduler
from bigain.errors import NumericalError, SettingError

__all__ = ["Sampler"]


class Sampler:
    """Draws images; the image of a seed does not depend on its neighbours in the batch.

    The noise of an image is that of diffusers' pipelines with
    `torch.Generator("cpu").manual_seed(seed)`; a stochastic scheduler draws from the same
    generator.

    Args:
        backbone: The model.
        steps: Sampling steps.
        guidance: Guidance scale; 1 is no guidance and halves the cost.
        rows: Images drawn at once; a smaller batch is filled up, so that shapes stay.
        scheduler: A class path, or a mapping with `class_path`, `init_args` or both; other
            settings are the checkpoint's. Default: the checkpoint's own.
        at: Called with each step's timestep, returns the context that the step runs in
            (`AttachReport.at`).
        negative: What to guide away from, one row. Default: the model's unconditional prediction.

    Raises:
        SettingError: A setting is impossible, the scheduler has another forward process than
            the backbone, or it draws noise so that images of a batch depend on each other.

    References:
        Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), equation 6 with
        `guidance = 1 + w`.
    """

    def __init__(
        self,
        backbone: Backbone,
        steps: int = 50,
        guidance: float = 1.5,
        rows: int = 64,
        scheduler: SchedulerSpec = None,
        at: Callable[[float], AbstractContextManager[Any]] = nullcontext,
        negative: Condition | None = None,
    ) -> None:
        if not 1 <= steps <= backbone.process.steps:
            raise SettingError(f"steps is from 1 to {backbone.process.steps}; got {steps}.")
        if not 1 <= guidance < math.inf:
            raise SettingError(f"guidance is a scale of 1 or more; got {guidance}.")
        if rows < 1:
            raise SettingError(f"rows is the number of images drawn at once, 1 or more; got {rows}.")
        self._backbone, self._guidance, self._rows, self._at = backbone, guidance, rows, at
        self._negative = negative
        self._scheduler = _ready(backbone, steps, scheduler)

    @property
    def timesteps(self) -> list[float]:
        """The timesteps of the steps, in order; a scheduler may take more steps than were asked for."""
        return [float(one) for one in self._scheduler.timesteps]

    @property
    def evaluations(self) -> int:
        """Network evaluations for each image."""
        return len(self._scheduler.timesteps) * (1 if self._guidance == 1 else 2)

    def __call__(self, condition: Condition, seeds: Sequence[int] | Tensor, names: Sequence[str] = ()) -> Tensor:
        """Draw one image per row and seed.

        Args:
            condition: B rows, on the host.
            seeds: B whole numbers.
            names: Names of the images, for errors.

        Returns:
            uint8, `[B, 3, H, W]`.

        Raises:
            SettingError: Guidance was asked of a model without an unconditional prediction, or
                the numbers of rows and seeds differ.
            NumericalError: The model returned NaN or infinity; says where.
        """
        given = [int(seed) for seed in seeds]
        if len(given) != len(condition):
            raise SettingError(f"The sampler got {len(condition)} conditions and {len(given)} seeds.")
        null = None if self._guidance == 1 else self._null(condition)
        if self._guidance > 1 and null is None:
            raise SettingError(
                f"{type(self._backbone).__name__} has no unconditional prediction to guide against: "
                f"guidance is 1 for it; got {self._guidance}."
            )
        drawn = []
        for start in range(0, len(given), self._rows):
            own = [start + row % (len(given) - start) for row in range(self._rows)]
            parts = [part.take(own) for part in (null, condition) if part is not None]
            count = min(self._rows, len(given) - start)
            drawn.append(self._draw(Condition.cat(parts), [given[row] for row in own], count, names[start:]))
        return torch.cat(drawn)

    def _null(self, condition: Condition) -> Condition | None:
        if self._negative is None:
            return self._backbone.null(condition)
        return self._negative.take([0] * len(condition))

    def _draw(self, condition: Condition, seeds: list[int], count: int, names: Sequence[str]) -> Tensor:
        device = next(self._backbone.network.parameters()).device
        condition, scheduler = condition.to(device), copy.deepcopy(self._scheduler)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = self._backbone.latent_shape
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float32, device="cpu") for g in generators])
        latents = noise.to(device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        extra, finite = _generator_settings(scheduler, generators), []
        for timestep in scheduler.timesteps:
            with self._at(timestep.item()):
                predicted = self._guided(_scaled(scheduler, latents, timestep), timestep, condition)
            finite.append(predicted.flatten(1).isfinite().all(dim=1)[:count])
            latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
        _refuse_nan(torch.stack(finite), scheduler.timesteps.tolist(), names, seeds)
        return self._backbone.decode(latents[:count])

    def _guided(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        t = torch.full((len(condition),), timestep.item(), dtype=timestep.dtype, device=latents.device)
        if self._guidance == 1:
            return self._backbone.predict(latents, t, condition)
        both = self._backbone.predict(torch.cat([latents, latents]), t, condition)
        unconditional, conditional = both.chunk(2)
        return unconditional + self._guidance * (conditional - unconditional)


def _ready(backbone: Backbone, steps: int, spec: SchedulerSpec) -> Any:
    """Build a scheduler, set its timesteps, and check that its noise does not mix images."""
    scheduler = build_scheduler(backbone.scheduler, spec)
    name = type(scheduler).__name__
    if difference := Process.of(scheduler).differs(backbone.process):
        raise SettingError(
            f"{name} would sample with another process than the model classifies with: {difference}. "
            f"The checkpoint's own scheduler is {backbone.scheduler.get('_class_name')}."
        )
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    settings: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        settings["mu"] = _shift(scheduler.config, backbone.image_tokens)
    sigmas = None if scheduler.config.get("use_flow_sigmas") else backbone.sampling_sigmas(steps)
    if sigmas is not None:
        settings["sigmas"] = sigmas
    if missing := [key for key in settings if key not in accepted]:
        raise SettingError(f"{name} cannot sample from {type(backbone).__name__}: it takes no {', '.join(missing)}.")
    try:
        with torch.device("cpu"):
            scheduler.set_timesteps(steps, **settings)
            _refuse_shared_noise(scheduler)
    except SettingError:
        raise
    except Exception as error:  # whatever a third-party scheduler raises
        raise SettingError(f"{name} cannot sample in {steps} steps: {type(error).__name__}: {error}") from error
    return scheduler


def _shift(config: Any, tokens: int) -> float:
    """Return `mu`, as the pipelines of FLUX and SD3 compute it from the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (top - base) / (high - low)
    return float(tokens * slope + base - slope * low)


def _refuse_shared_noise(scheduler: Any) -> None:
    """Refuse a scheduler that treats a tiny latent differently beside another than alone."""
    with torch.random.fork_rng(devices=[]):
        together, alone = _dry_run(scheduler, 2), _dry_run(scheduler, 1)
    if not torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise SettingError(
            f"{type(scheduler).__name__} draws noise that does not come from a generator an image, so that an image "
            "would depend on its neighbours. Take one that is deterministic, or whose step takes generators."
        )


def _dry_run(scheduler: Any, rows: int) -> Tensor:
    torch.default_generator.manual_seed(rows)  # on the host alone
    scheduler = copy.deepcopy(scheduler)
    generators = [torch.Generator("cpu").manual_seed(row) for row in range(rows)]
    latents = torch.stack([torch.randn(2, 2, 2, generator=g, dtype=torch.float32) for g in generators])
    extra = _generator_settings(scheduler, generators)
    for timestep in scheduler.timesteps:
        predicted = 0.5 * _scaled(scheduler, latents, timestep)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
    return latents


def _scaled(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    # Schedulers of flow matching do not scale, and lack the method.
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, timestep)


def _generator_settings(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _refuse_nan(finite: Tensor, timesteps: list[float], names: Sequence[str], seeds: Sequence[int]) -> None:
    if bool(finite.all()):
        return
    step, row = (~finite).nonzero()[0].tolist()
    name = f"image {names[row]}" if names else f"row {row}"
    raise NumericalError(
        f"The model returned NaN or infinity at timestep {timesteps[step]:g} for {name}, seed {seeds[row]}. Try "
        "bfloat16 or float32 (--trainer.precision=bf16-true or 32-true, or the model's dtype) or check the weights."
    )
