"""Draw the same images without and with reducers: what `bigain generate` does."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.backbones.folder import Dtype
from bigain.backbones.open_model import open_model
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.methods import methods_of
from bigain.data.classes import classes_of
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.diffusion.sampler import Sampler
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.tasks.method import Applied, method_of

__all__ = ["Drawn", "GenerateSettings", "Generated", "generate", "out_of_memory", "whole_numbers"]

Announce = Callable[[str], None]


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
    device, seeds = device_of(settings.device), whole_numbers("seeds", settings.seeds)
    baseline, methods = methods_of(settings.reducer, settings.reducers)
    announce(f"loading {settings.model}")
    try:
        backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
        guidance = backbone.usual_guidance if settings.guidance is None else settings.guidance
        condition, negative = _conditions(backbone, prompt, settings.negative, guidance)

        def make(applied: Applied) -> Sampler:
            at = applied.report.at if applied.report else nullcontext
            return Sampler(applied.backbone, settings.steps, guidance, 1, settings.scheduler, at, negative)

        found: list[Drawn] = []
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is drawn
            with _applied(backbone, one, settings.placement) as applied:
                make(applied)
        for name, one in everything.items():
            with _applied(backbone, one, settings.placement) as applied:
                images, seconds = _drawn(make(applied), condition, seeds, name, announce)
            first = found[0].images if found else images
            apart = (images.float() - first.float()).abs().flatten(1).mean(dim=1).tolist()
            found.append(Drawn(name, repr(one), images, tuple(seconds), tuple(apart)))
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, device) from error
    return Generated(prompt, device, _resolved(settings, backbone, guidance, seeds), tuple(found))


def out_of_memory(model: str, device: torch.device) -> SettingError:
    """Return the error that says what to lower."""
    return SettingError(
        f"{model} does not fit into the memory of {device}: take a smaller --image_size, or --dtype=fp16 or bf16."
    )


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        SettingError: Something else.
    """
    try:
        return tuple(int(part) for part in str(text).strip("[]() ").split(","))
    except ValueError as error:
        raise SettingError(f"{name} is whole numbers with commas between them, such as 0,1,2; got {text!r}.") from error


def _conditions(
    backbone: Backbone, prompt: str, negative: str | None, guidance: float
) -> tuple[Condition, Condition | None]:
    if backbone.conditioned_on == "prompts":
        if negative is not None and guidance == 1:
            raise SettingError("A negative prompt is for guidance above 1; with guidance=1 nothing is guided.")
        return backbone.embed([prompt]), None if negative is None else backbone.embed([negative])
    if negative is not None:
        raise SettingError(f"{type(backbone).__name__} takes a class, and no negative prompt.")
    return backbone.embed([_label(backbone, prompt)]), None


def _label(backbone: Backbone, name: str) -> int:
    """Find the label of a class by its name or number."""
    count = backbone.label_count or 0
    known = classes_of(count)
    if name.isdigit() and int(name) < count:
        return int(name)
    if name not in known:
        listed = ", ".join(known) if known else f"the numbers 0 to {count - 1}"
        raise SettingError(f"This model draws classes, not prose: {listed}; got {name!r}.")
    return known.index(name)


def _applied(backbone: Backbone, reducer: TokenReducer, placement: Placement) -> AbstractContextManager[Applied]:
    if isinstance(reducer, Identity):
        return nullcontext(Applied(backbone))
    return method_of(reducer).applied(backbone, placement, 0)


def _drawn(
    sampler: Sampler, condition: Condition, seeds: Sequence[int], name: str, announce: Announce
) -> tuple[Tensor, list[float]]:
    images, seconds = [], []
    with torch.inference_mode():
        if torch.cuda.is_available():
            sampler(condition, seeds[:1])  # what is loaded with the first pass is no time of an image
        for number, seed in enumerate(seeds, start=1):
            start = time.perf_counter()
            images.append(sampler(condition, [seed]).cpu())
            seconds.append(time.perf_counter() - start)
            announce(f"{name}: {number}/{len(seeds)}, seed {seed}, {seconds[-1]:.1f} s")
    return torch.cat(images), seconds


def _resolved(settings: GenerateSettings, backbone: Backbone, guidance: float, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "model": settings.model,
        "backbone": type(backbone).__name__,
        "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
        "image_size": backbone.image_size,
        "placement": str(settings.placement),
        "seeds": list(seeds),
        "steps": settings.steps,
        "guidance": guidance,
        "negative": settings.negative,
        "scheduler": settings.scheduler or backbone.scheduler.get("_class_name"),
    }
