"""Draw the same images without and with reducers: what `bigain generate` does."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.backbones.folder import Dtype
from bigain.backbones.labels import label_of
from bigain.backbones.open_model import open_model
from bigain.benchmark.at_work import Cost, at_work, count_gflops, peak_gib, timed, warm_up
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.memory import saying_what_to_lower
from bigain.benchmark.methods import methods_of
from bigain.benchmark.progress import Progress
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.diffusion.sampler import Sampler
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.reducers.brief import brief
from bigain.results.provenance import without_home
from bigain.results.wording import decimal
from bigain.tasks.method import Applied

__all__ = ["Drawn", "GenerateSettings", "Generated", "generate", "whole_numbers"]

_MOST_SEEDS = 32


@dataclass(frozen=True)
class GenerateSettings:
    """What `bigain generate` draws.

    Args:
        model: `embedded` (a small model of CIFAR-10 that ships with bigain), a folder that a
            diffusers pipeline's `save_pretrained` wrote, or `hub:owner/name[@revision]`.
        reducer: The reducer to compare with none. Default: none alone.
        reducers: Several, each with a name for the results:
            {half: {name: lgtm, ratio: 0.5}, abm: {name: abm, ratio: 0.3}}.
        placement: Which blocks reducers work in. Default: those of the published methods.
        seeds: Seeds of the images, such as 0,1,2. The image of a seed has the noise of diffusers'
            pipelines with `torch.Generator("cpu").manual_seed(seed)`.
        steps: Sampling steps.
        guidance: Guidance scale; 1 is none. Default: the one of the model's own pipeline.
        negative: Prompt to guide away from. Default: the model's unconditional prediction.
        scheduler: A diffusers scheduler, by class path. Default: the checkpoint's own.
        dtype: Type of the weights. Default: fp32 on a CPU, half precision on a GPU.
        image_size: Side of the images, in pixels. Default: the size of the model's training.
        compile: Compile the network (`torch.compile`, equal blocks once) before anything is timed.
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
    compile: bool = False
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
        method: Its settings, as in code.
        brief: Those that have not their default.
        images: uint8, `[S, 3, H, W]`, one for each seed.
        seconds: Seconds of each image, decoding included.
        difference: Mean absolute difference of each image from the first method's, in levels of 0 to 255.
        cost: What it costs beside its time.
    """

    name: str
    method: str
    brief: str
    images: Tensor
    seconds: tuple[float, ...]
    difference: tuple[float, ...]
    cost: Cost


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


def generate(prompt: str, settings: GenerateSettings, progress: Progress | None = None) -> Generated:
    """Draw each seed's image without reduction and with every method.

    Args:
        prompt: A prompt, or the class of a model that takes labels.
        settings: The other settings.
        progress: Where progress is reported.

    Raises:
        BigainError: No such model, a prompt that it does not take, an impossible setting, or
            not enough memory.
    """
    device, progress = device_of(settings.device), progress or Progress()
    baseline, methods = methods_of(settings.reducer, settings.reducers)
    progress.say(f"loading {settings.model}")
    with saying_what_to_lower(settings.model, device, settings.dtype):
        backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
        run = _PromptRun(prompt, settings, backbone, progress)
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is drawn
            with at_work(backbone, one, settings.placement) as applied:
                run.sampler(applied, settings.steps)
        found: list[Drawn] = []
        for name, one in everything.items():
            found.append(run.drawn(name, one, found[0].images if found else None))
    return Generated(prompt, device, run.resolved(), tuple(found))


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        SettingError: Something else, or a number that is no seed.
    """
    parts = [part.strip() for part in str(text).strip("[]() ").split(",")]
    if not all(part.isdecimal() and int(part) < 2**63 for part in parts):
        raise SettingError(f"{name} is whole numbers from 0 on with commas between them, such as 0,1,2; got {text!r}.")
    return tuple(int(part) for part in parts)


class _PromptRun:
    """One prompt on one model."""

    def __init__(self, prompt: str, settings: GenerateSettings, backbone: Backbone, progress: Progress) -> None:
        self._settings, self._backbone, self._progress = settings, backbone, progress
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
        # Together, so that one which is too long is refused before the other is embedded.
        both = backbone.embed(given if negative is None else [*given, negative])
        condition = both.take([0])
        if self._guidance == 1:
            return condition, None
        return condition, backbone.null(condition) if negative is None else both.take([1])

    def sampler(self, applied: Applied, steps: int, stepped: Callable[[float], None] = lambda share: None) -> Sampler:
        """Make the sampler of a method; `stepped` is called with the share of an image's steps that is done."""
        done, total = 0, steps

        @contextmanager
        def at(timestep: float) -> Iterator[None]:
            nonlocal done
            with applied.report.at(timestep) if applied.report else nullcontext():
                yield
            done = done % total + 1
            stepped(done / total)

        scheduler = self._settings.scheduler
        sampler = Sampler(applied.backbone, steps, self._guidance, 1, scheduler, at, self._negative)
        total = len(sampler.timesteps)
        return sampler

    def drawn(self, name: str, reducer: TokenReducer, first: Tensor | None) -> Drawn:
        """Draw every seed under one method, and compare with the first method's images."""
        settings, images, seconds = self._settings, list[Tensor](), list[float]()
        device, compiles = next(self._backbone.network.parameters()).device, settings.compile
        gflops = self._gflops(name, reducer)
        self._progress.begin(name, len(self._seeds))
        with at_work(self._backbone, reducer, settings.placement, compile=compiles) as applied:
            if compiles:
                self._progress.say(f"{name}: compiling, and drawing one image untimed")
            # A reducer that switches by timestep compiles anew at each switch: only all steps meet all of them.
            few = self.sampler(applied, settings.steps if compiles else min(2, settings.steps))
            made = warm_up(name, lambda: few(self._condition, self._seeds[:1]), device, compiles)
            draw = self.sampler(applied, settings.steps, lambda share: self._progress.reached(len(images) + share))
            for seed in self._seeds:
                found, spent = timed(partial(draw, self._condition, [seed]), device)
                images.append(found.cpu())
                seconds.append(spent)
                self._progress.finished(len(images), f"seed {seed}, {decimal(seconds[-1])} s")
            cost = Cost(gflops, peak_gib(device), made)
        drawn = torch.cat(images)
        apart = (drawn.float() - (drawn if first is None else first).float()).abs().flatten(1).mean(dim=1)
        return Drawn(name, repr(reducer), brief(reducer), drawn, tuple(seconds), tuple(apart.tolist()), cost)

    def _gflops(self, name: str, reducer: TokenReducer) -> float | None:
        """Count an image's operations, at each timestep those of the reducer that works there."""
        timesteps = self.sampler(Applied(self._backbone), self._settings.steps).timesteps
        shared = self._backbone, self._settings.placement, self._condition, self._progress
        return count_gflops(name, reducer, *shared, 1 if self._guidance == 1 else 2, timesteps)

    def resolved(self) -> dict[str, Any]:
        """Return the settings with defaults filled in."""
        settings, backbone = self._settings, self._backbone
        return {
            "model": without_home(settings.model),
            "backbone": type(backbone).__name__,
            "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
            "image_size": backbone.image_size,
            "compile": settings.compile,
            "placement": str(settings.placement),
            "seeds": list(self._seeds),
            "steps": settings.steps,
            "guidance": self._guidance if backbone.guidance is None else backbone.guidance,
            "negative": settings.negative,
            "scheduler": settings.scheduler or backbone.scheduler.get("_class_name"),
        }
