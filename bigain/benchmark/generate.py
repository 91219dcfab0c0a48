"""Draw the same images without and with reducers: what `bigain generate` does."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.backbones.folder import Dtype
from bigain.backbones.labels import label_of
from bigain.backbones.open_model import open_model
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.methods import methods_of
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.diffusion.sampler import Sampler
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.tasks.method import Applied, method_of

__all__ = ["Drawn", "GenerateSettings", "Generated", "applied_to", "generate", "out_of_memory", "whole_numbers"]

Announce = Callable[[str], None]

_MOST_SEEDS = 32


@dataclass(frozen=True)
class GenerateSettings:
    """What `bigain generate` draws.

    Args:
        model: `embedded` (a small model of CIFAR-10 that ships with bigain), a folder that a
            diffusers pipeline's `save_pretrained` wrote, or `hub:owner/name[@revision]`.
        reducer: The reducer to compare with none. Default: none alone.
        reducers: Several, by name.
        placement: Which blocks reducers work in. Default: those of the published methods.
        seeds: Seeds of the images, such as 0,1,2. The image of a seed has the noise of diffusers'
            pipelines with `torch.Generator("cpu").manual_seed(seed)`.
        steps: Sampling steps.
        guidance: Guidance scale; 1 is none. Default: the one of the model's own pipeline.
        negative: Prompt to guide away from. Default: the model's unconditional prediction.
        scheduler: A diffusers scheduler, by class path. Default: the checkpoint's own.
        dtype: Type of the weights. Default: fp32 on a CPU, half precision on a GPU.
        image_size: Side of the images, in pixels. Default: the size of the model's training.
        device: auto (a GPU where there is one), cpu, cuda or cuda:1.

    Raises:
        SettingError: Seeds that are no whole numbers, or given twice.
    """

    model: str = "embedded"
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    seeds: str = "0"
    steps: int = 50
    guidance: float | None = None
    negative: str | None = None
    scheduler: str | None = None
    dtype: Dtype | None = None
    image_size: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        numbers = whole_numbers("seeds", self.seeds)
        if len(set(numbers)) < len(numbers):
            raise SettingError(f"seeds={self.seeds} has a seed twice.")
        if len(numbers) > _MOST_SEEDS:
            raise SettingError(f"The strip has {_MOST_SEEDS} columns at most; got {len(numbers)} seeds.")


@dataclass(frozen=True)
class Drawn:
    """The images of one method.

    Args:
        name: Its name.
        method: Its settings, in words.
        images: uint8, `[S, 3, H, W]`, one for each seed.
        seconds: Seconds of each image, decoding included.
        difference: Mean absolute difference of each image from the first method's, in levels of 0 to 255.
    """

    name: str
    method: str
    images: Tensor
    seconds: tuple[float, ...]
    difference: tuple[float, ...]


@dataclass(frozen=True)
class Generated:
    """What was drawn.

    Args:
        prompt: The prompt or class.
        device: The device.
        settings: Settings with defaults filled in.
        drawn: Images of none, and of each method.
    """

    prompt: str
    device: torch.device
    settings: Mapping[str, Any]
    drawn: tuple[Drawn, ...]


def generate(prompt: str, settings: GenerateSettings, announce: Announce = lambda line: None) -> Generated:
    """Draw each seed's image without reduction and with every method.

    Args:
        prompt: A prompt, or the class of a model that takes labels.
        settings: The other settings.
        announce: Called with a line before each step.

    Raises:
        BigainError: No such model, a prompt that it does not take, an impossible setting, or
            not enough memory.
    """
    device = device_of(settings.device)
    baseline, methods = methods_of(settings.reducer, settings.reducers)
    announce(f"loading {settings.model}")
    try:
        backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
        run = _PromptRun(prompt, settings, backbone, announce)
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is drawn
            with applied_to(backbone, one, settings.placement) as applied:
                run.sampler(applied, settings.steps)
        found: list[Drawn] = []
        for name, one in everything.items():
            found.append(run.drawn(name, one, found[0].images if found else None))
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, device) from error
    return Generated(prompt, device, run.resolved(), tuple(found))


def out_of_memory(model: str, device: torch.device, *others: str) -> SettingError:
    """Return the error that says what to lower."""
    lower = ", ".join(["a smaller --image_size", *others])
    return SettingError(f"{model} does not fit into the memory of {device}: take {lower}, or --dtype=fp16 or bf16.")


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        SettingError: Something else, or a number that is no seed.
    """
    parts = [part.strip() for part in str(text).strip("[]() ").split(",")]
    if not all(part.isdecimal() and int(part) < 2**63 for part in parts):
        raise SettingError(f"{name} is whole numbers from 0 on with commas between them, such as 0,1,2; got {text!r}.")
    return tuple(int(part) for part in parts)


def applied_to(
    backbone: Backbone, reducer: TokenReducer, placement: Placement, seed: int = 0
) -> AbstractContextManager[Applied]:
    """Attach a reducer; none is left out, so that it costs nothing."""
    if isinstance(reducer, Identity):
        return nullcontext(Applied(backbone))
    return method_of(reducer).applied(backbone, placement, seed)


class _PromptRun:
    """One prompt on one model."""

    def __init__(self, prompt: str, settings: GenerateSettings, backbone: Backbone, announce: Announce) -> None:
        self._settings, self._backbone, self._announce = settings, backbone, announce
        self._seeds = whole_numbers("seeds", settings.seeds)
        self._guidance = backbone.usual_guidance if settings.guidance is None else settings.guidance
        if backbone.guidance is not None:
            # The network is given the scale as an input; nothing is guided beside it.
            backbone.guidance = backbone.guidance if settings.guidance is None else settings.guidance
            self._guidance = 1.0
        self._condition, self._negative = self._conditions(prompt)

    def _conditions(self, prompt: str) -> tuple[Condition, Condition | None]:
        """Return the condition to draw, and the one to guide away from."""
        backbone, negative = self._backbone, self._settings.negative
        if negative is not None and (backbone.conditioned_on == "labels" or self._guidance == 1):
            raise SettingError(
                f"{type(backbone).__name__} takes a class, and no negative prompt."
                if backbone.conditioned_on == "labels"
                else "A negative prompt is for guidance above 1; with guidance=1 nothing is guided."
            )
        given = [prompt] if backbone.conditioned_on == "prompts" else [label_of(backbone, prompt)]
        condition = backbone.embed(given)
        if self._guidance == 1:
            return condition, None
        return condition, backbone.null(condition) if negative is None else backbone.embed([negative])

    def sampler(self, applied: Applied, steps: int) -> Sampler:
        """Make the sampler of a method."""
        at = applied.report.at if applied.report else nullcontext
        scheduler = self._settings.scheduler
        return Sampler(applied.backbone, steps, self._guidance, 1, scheduler, at, self._negative)

    def drawn(self, name: str, reducer: TokenReducer, first: Tensor | None) -> Drawn:
        """Draw every seed under one method, and compare with the first method's images."""
        images, seconds = [], []
        with applied_to(self._backbone, reducer, self._settings.placement) as applied, torch.inference_mode():
            sampler = self.sampler(applied, self._settings.steps)
            if next(self._backbone.network.parameters()).is_cuda:
                # What is loaded with the first passes is no time of an image.
                self.sampler(applied, min(2, self._settings.steps))(self._condition, self._seeds[:1])
            for number, seed in enumerate(self._seeds, start=1):
                start = time.perf_counter()
                images.append(sampler(self._condition, [seed]).cpu())
                seconds.append(time.perf_counter() - start)
                self._announce(f"{name}: {number}/{len(self._seeds)}, seed {seed}, {seconds[-1]:.1f} s")
        found = torch.cat(images)
        apart = (found.float() - (found if first is None else first).float()).abs().flatten(1).mean(dim=1)
        return Drawn(name, repr(reducer), found, tuple(seconds), tuple(apart.tolist()))

    def resolved(self) -> dict[str, Any]:
        """Return the settings with defaults filled in."""
        settings, backbone = self._settings, self._backbone
        return {
            "model": settings.model,
            "backbone": type(backbone).__name__,
            "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
            "image_size": backbone.image_size,
            "placement": str(settings.placement),
            "seeds": list(self._seeds),
            "steps": settings.steps,
            "guidance": self._guidance if backbone.guidance is None else backbone.guidance,
            "negative": settings.negative,
            "scheduler": settings.scheduler or backbone.scheduler.get("_class_name"),
        }
