"""Classify a folder of images without and with reducers: what `bigain classify` does."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from bigain.backbones.open_model import open_model
from bigain.benchmark.at_work import Cost, at_work, count_gflops, peak_gib, timed, warm_up
from bigain.benchmark.classify_images import beside, labels_of, open_images
from bigain.benchmark.classify_settings import ClassifySettings
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.memory import is_out_of_memory, saying_what_to_lower
from bigain.benchmark.methods import methods_of
from bigain.benchmark.progress import Progress
from bigain.data.dataset import ImageDataset
from bigain.data.sources.official import is_labelled
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.weights import timestep_weights
from bigain.errors import DataError
from bigain.reducers.base import Identity, TokenReducer
from bigain.reducers.brief import brief
from bigain.results.provenance import without_home
from bigain.results.wording import decimal, quantity
from bigain.tasks.method import Applied

__all__ = ["ClassifiedFolder", "MethodPredictions", "classify_folder", "confidence"]

PredictNoise = Callable[[Tensor, Tensor, Condition], Tensor]

_AT_ONCE = 8
"""Images that share passes, so that few rows of a pass are left over."""


@dataclass(frozen=True)
class MethodPredictions:
    """What one method predicts.

    Args:
        name: Its name.
        method: Its settings, as in code.
        brief: Those that have not their default.
        predicted: The predicted label of each image, int64, `[N]`.
        confidence: How sure it is, `[N]`; see `confidence`.
        seconds: Seconds an image.
        cost: What it costs beside its time.
    """

    name: str
    method: str
    brief: str
    predicted: Tensor
    confidence: Tensor
    seconds: float
    cost: Cost


@dataclass(frozen=True)
class ClassifiedFolder:
    """What `bigain classify` found.

    Args:
        images: The images.
        labelled: Whether they have labels: their folders, or those of a known data set.
        device: The device.
        settings: Settings with defaults filled in.
        evaluations: Network evaluations an image.
        methods: No reduction, and every method.
    """

    images: ImageDataset
    labelled: bool
    device: torch.device
    settings: Mapping[str, Any]
    evaluations: int
    methods: tuple[MethodPredictions, ...]


def classify_folder(folder: Path, settings: ClassifySettings, progress: Progress | None = None) -> ClassifiedFolder:
    """Classify the images of a folder without reduction and with every method, on the same noises.

    Args:
        folder: A folder of images, of class folders, or with a known data set as it is published; or a file: an
            image, parquet, arrow, or a shard.
        settings: The other settings.
        progress: Where progress is reported.

    Raises:
        BigainError: No such folder, file or model, a class that the model does not know, a prompt that is
            too long, images that cannot be read, or not enough memory.
    """
    device, progress = device_of(settings.device), progress or Progress()
    baseline, methods = methods_of(settings.reducer, settings.reducers)
    if not folder.exists():
        raise DataError(
            f"Nothing at {folder}: give a folder of images, one with a sub-folder for each class, a known data set, or "
            "a file (an image, parquet, arrow, a shard of WebDataset)."
        )
    labelled = is_labelled(folder, settings.classes is not None)
    progress.say(f"loading {settings.model}")
    with saying_what_to_lower(settings.model, device, settings.dtype, "fewer --rows"):
        backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
        images, given = open_images(folder, labelled, backbone, settings)
        images = images.subset(settings.limit)
        images = images.checked(settings.skip_corrupt, progress.say)
        taken = labels_of(folder, images) if labelled else "without labels" + beside(folder)
        progress.say(f"{folder}: {quantity(len(images), 'image')}, {taken}")
        condition = backbone.embed(given)
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is classified
            with at_work(backbone, one, settings.placement, settings.seed) as applied:
                if applied.report:
                    applied.report.check_mixed_timesteps()
        run = _FolderRun(backbone, images, condition, settings, progress)
        found = run.of(everything)
    resolved = {
        "model": without_home(settings.model),
        "backbone": type(backbone).__name__,
        "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
        "image_size": backbone.image_size,
        "classes": list(images.classes),
        "prompt": settings.prompt if backbone.conditioned_on == "prompts" else None,
        "placement": str(settings.placement),
        **run.stages.settings(),
        "rows": run.rows,
        "compile": settings.compile,
        "seed": settings.seed,
    }
    return ClassifiedFolder(images, labelled, device, resolved, run.evaluations, found)


def confidence(errors: Tensor) -> float:
    """Say how sure the evaluated timesteps are that the best class errs less than the runner-up.

    Both classes see the same noises, so that their errors are compared in pairs: the level at which a one-sided
    paired t-test would just call the best class better. It is no probability that the class is right.

    Args:
        errors: Error of each class at each timestep, as it counts, `[K, M]`; NaN where pruning skipped it.
    """
    if len(errors) < 2:
        return 1.0
    counts = errors.isfinite().sum(dim=1)
    best = int(torch.where(counts == counts.max(), errors.nanmean(dim=1), torch.inf).argmin())
    levels = []
    for other in range(len(errors)):
        apart = (errors[other] - errors[best]).double()
        apart = apart[apart.isfinite()]
        spread = float(apart.std()) if len(apart) > 1 else 0.0
        if other != best and spread > 0:
            levels.append(float(stats.t.cdf(float(apart.mean()) / spread * math.sqrt(len(apart)), len(apart) - 1)))
    return min(levels, default=0.5)


class _FolderRun:
    """One folder under several methods; if memory does not suffice, all begin anew with half the rows of a pass."""

    def __init__(
        self,
        backbone: Backbone,
        images: ImageDataset,
        condition: Condition,
        settings: ClassifySettings,
        progress: Progress,
    ) -> None:
        self._backbone, self._images, self._condition = backbone, images, condition
        self._settings, self._progress, self.rows = settings, progress, settings.rows or 32
        kept = min(settings.keep, len(condition))
        trials = (max(1, settings.timesteps // 4), settings.timesteps)
        self.stages = Stages(trials, (kept, 1), weights=settings.weights)
        weights = timestep_weights(self.stages, backbone.process)
        self._weights = torch.ones(self.stages.total) if weights is None else weights
        self.evaluations = self.stages.evaluations(len(condition))

    def of(self, methods: Mapping[str, TokenReducer]) -> tuple[MethodPredictions, ...]:
        """Classify every image under every method."""
        shared = self._backbone, self._settings.placement, self._condition, self._progress
        gflops = {
            name: count_gflops(name, reducer, *shared, evaluations=self.evaluations)
            for name, reducer in methods.items()
        }
        self._progress.say(f"encoding {quantity(len(self._images), 'image')}")
        latents = [self._encoded(first) for first in range(0, len(self._images), _AT_ONCE)]
        while True:
            try:
                return tuple(self._method(name, one, latents, gflops[name]) for name, one in methods.items())
            except Exception as error:
                if not is_out_of_memory(error) or self._settings.rows is not None or self.rows == 1:
                    raise
            # Behind the exception, whose traceback has hold of the pass that did not fit.
            self.rows //= 2
            torch.cuda.empty_cache()
            self._progress.say(f"memory does not suffice: {self.rows} rows a pass")

    def _encoded(self, first: int) -> Tensor:
        images = [self._images[number]["image"] for number in self._numbers(first)]
        device = next(self._backbone.network.parameters()).device
        return self._backbone.encode(torch.stack(images).to(device)).cpu()

    def _numbers(self, first: int) -> range:
        return range(first, min(first + _AT_ONCE, len(self._images)))

    def _method(
        self, name: str, reducer: TokenReducer, latents: Sequence[Tensor], gflops: float | None
    ) -> MethodPredictions:
        predicted, sure, seconds, settings = list[int](), list[float](), 0.0, self._settings
        device = next(self._backbone.network.parameters()).device
        self._progress.begin(name, len(self._images))
        with at_work(self._backbone, reducer, settings.placement, settings.seed, settings.compile) as applied:
            if settings.compile:
                self._progress.say(f"{name}: compiling")
            first = partial(self._classifier(applied, applied.backbone.predict_noise), latents[0][:1].to(device))
            made = warm_up(name, first, device, settings.compile)
            for number, chunk in enumerate(latents):
                names = [self._images.names[index] for index in self._numbers(number * _AT_ONCE)]
                classifier = self._classifier(applied, self._reporting(applied, len(predicted), len(chunk)))
                found, spent = timed(lambda: classifier(chunk.to(device), names), device)  # noqa: B023 called at once
                predicted += found.prediction.tolist()
                sure += [confidence(errors * self._weights) for errors in found.errors.cpu()]
                seconds += spent
                self._progress.finished(len(predicted), f"{decimal(seconds / len(predicted))} s an image")
            cost = Cost(gflops, peak_gib(device), made)
        each = seconds / len(predicted)
        words = repr(reducer), brief(reducer)
        return MethodPredictions(name, *words, torch.tensor(predicted), torch.tensor(sure), each, cost)

    def _reporting(self, applied: Applied, done: int, images: int) -> PredictNoise:
        """Return the model's noise prediction, which also reports progress after every pass."""
        passes = 0

        def predict_noise(noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
            nonlocal passes
            found = applied.backbone.predict_noise(noisy, t, condition)
            passes += 1
            self._progress.reached(done + min(images, passes * self.rows / self.evaluations))
            return found

        return predict_noise

    def _classifier(self, applied: Applied, predict_noise: PredictNoise) -> DiffusionClassifier:
        backbone, steps = applied.backbone, self.stages.timesteps(applied.backbone.process.steps)
        device = next(backbone.network.parameters()).device
        noise = NoiseSet.draw(self._settings.seed, steps, backbone.latent_shape).to(device)
        return DiffusionClassifier(predict_noise, backbone.process, noise, self.stages, self._condition, rows=self.rows)
