"""Classify a folder of images without and with reducers: what `bigain classify` does."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from bigain.backbones.labels import label_of
from bigain.backbones.open_model import open_model
from bigain.benchmark.classify_settings import ClassifySettings
from bigain.benchmark.generate import applied_to, out_of_memory
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.methods import methods_of
from bigain.data.dataset import ImageDataset
from bigain.data.prompts import fill_prompt
from bigain.data.sources.flat import FlatSource
from bigain.data.sources.official import is_labelled, is_official
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.errors import DataError, SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.tasks.method import Applied

__all__ = ["ClassifiedFolder", "MethodPredictions", "classify_folder", "confidence"]

Announce = Callable[[str], None]

_AT_ONCE = 8
"""Images that share passes, so that few rows of a pass are left over."""


@dataclass(frozen=True)
class MethodPredictions:
    """What one method predicts.

    Args:
        name: Its name.
        method: Its settings, in words.
        predicted: The predicted label of each image, int64, `[N]`.
        confidence: How sure it is, `[N]`; see `confidence`.
        seconds: Seconds an image.
    """

    name: str
    method: str
    predicted: Tensor
    confidence: Tensor
    seconds: float


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


def classify_folder(
    folder: Path, settings: ClassifySettings, announce: Announce = lambda line: None
) -> ClassifiedFolder:
    """Classify the images of a folder without reduction and with every method, on the same noises.

    Args:
        folder: A folder of images, of class folders, or with a known data set as it is published.
        settings: The other settings.
        announce: Called with a line before each step.

    Raises:
        BigainError: No such folder or model, a class that the model does not know, images that
            cannot be read, or not enough memory.
    """
    device = device_of(settings.device)
    baseline, methods = methods_of(settings.reducer, settings.reducers)
    if not folder.is_dir():
        raise DataError(f"No folder at {folder}: give a folder of images, or one with a sub-folder for each class.")
    labelled = is_labelled(folder, settings.classes is not None)
    announce(f"loading {settings.model}")
    try:
        backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
        images, labels = _opened(folder, labelled, backbone, settings)
        images = images.subset(settings.limit)
        images = images.checked(settings.skip_corrupt, announce)
        announce(f"{folder}: {len(images)} images, {_labels_of(folder, images) if labelled else 'without labels'}")
        condition = _condition(backbone, labels, images.classes, settings.prompt)
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is classified
            with applied_to(backbone, one, settings.placement, settings.seed) as applied:
                if applied.report:
                    applied.report.check_mixed_timesteps()
        run = _FolderRun(backbone, images, condition, settings, announce)
        found = run.of(everything)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, device, "fewer --rows") from error
    resolved = {
        "model": settings.model,
        "backbone": type(backbone).__name__,
        "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
        "image_size": backbone.image_size,
        "classes": list(images.classes),
        "prompt": settings.prompt if backbone.conditioned_on == "prompts" else None,
        "placement": str(settings.placement),
        "trials": run.stages.trials,
        "keeps": run.stages.keeps,
        "rows": run.rows,
        "seed": settings.seed,
    }
    return ClassifiedFolder(images, labelled, device, resolved, run.stages.evaluations(len(condition)), found)


def confidence(errors: Tensor) -> float:
    """Say how sure the evaluated timesteps are that the best class errs less than the runner-up.

    Both classes see the same noises, so that their errors are compared in pairs: the level at which a one-sided
    paired t-test would just call the best class better. It is no probability that the class is right.

    Args:
        errors: Error of each class at each timestep, `[K, M]`; NaN where pruning skipped it.
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
        announce: Announce,
    ) -> None:
        self._backbone, self._images, self._condition = backbone, images, condition
        self._settings, self._announce, self.rows = settings, announce, settings.rows or 32
        kept = min(settings.keep, len(condition))
        self.stages = Stages((max(1, settings.timesteps // 4), settings.timesteps), (kept, 1))

    def of(self, methods: Mapping[str, TokenReducer]) -> tuple[MethodPredictions, ...]:
        """Classify every image under every method."""
        self._announce(f"encoding {len(self._images)} images")
        latents = [self._encoded(first) for first in range(0, len(self._images), _AT_ONCE)]
        while True:
            try:
                return tuple(self._method(name, reducer, latents) for name, reducer in methods.items())
            except torch.OutOfMemoryError:
                if self._settings.rows is not None or self.rows == 1:
                    raise
            # Behind the exception, whose traceback has hold of the pass that did not fit.
            self.rows //= 2
            torch.cuda.empty_cache()
            self._announce(f"memory does not suffice: {self.rows} rows a pass")

    def _encoded(self, first: int) -> Tensor:
        images = [self._images[number]["image"] for number in self._numbers(first)]
        device = next(self._backbone.network.parameters()).device
        return self._backbone.encode(torch.stack(images).to(device)).cpu()

    def _numbers(self, first: int) -> range:
        return range(first, min(first + _AT_ONCE, len(self._images)))

    def _method(self, name: str, reducer: TokenReducer, latents: Sequence[Tensor]) -> MethodPredictions:
        predicted, sure, settings = list[int](), list[float](), self._settings
        with applied_to(self._backbone, reducer, settings.placement, settings.seed) as applied, torch.inference_mode():
            classifier, device = self._classifier(applied), next(self._backbone.network.parameters()).device
            if device.type == "cuda":
                classifier(latents[0].to(device))  # what is loaded with the first passes is no time of an image
            start = time.perf_counter()
            for number, chunk in enumerate(latents):
                names = [self._images.names[index] for index in self._numbers(number * _AT_ONCE)]
                found = classifier(chunk.to(device), names)
                predicted += found.prediction.tolist()
                sure += [confidence(errors) for errors in found.errors.cpu()]
                seconds = (time.perf_counter() - start) / len(predicted)
                self._announce(f"{name}: {len(predicted)}/{len(self._images)}, {seconds:.1f} s an image")
        return MethodPredictions(name, repr(reducer), torch.tensor(predicted), torch.tensor(sure), seconds)

    def _classifier(self, applied: Applied) -> DiffusionClassifier:
        backbone, steps = applied.backbone, self.stages.timesteps(applied.backbone.process.steps)
        device = next(backbone.network.parameters()).device
        noise = NoiseSet.draw(self._settings.seed, steps, backbone.latent_shape).to(device)
        return DiffusionClassifier(
            backbone.predict_noise, backbone.process, noise, self.stages, self._condition, rows=self.rows
        )


def _labels_of(folder: Path, images: ImageDataset) -> str:
    by = "with the labels of the data set" if is_official(folder) else "labelled by their folders"
    return by + (f"; left out for having none: {images.left_out}" if images.left_out else "")


def _opened(
    folder: Path, labelled: bool, backbone: Backbone, settings: ClassifySettings
) -> tuple[ImageDataset, tuple[int, ...]]:
    """Open the images, and choose which of the model's labels are asked for."""
    given = tuple(name.strip() for name in settings.classes.split(",")) if settings.classes else ()
    if given and (len(set(given)) < len(given) or len(given) < 2 or "" in given):
        raise SettingError(f"classes is two names or more, none twice; got {settings.classes!r}.")
    classes = given or (None if labelled or backbone.conditioned_on == "prompts" else backbone.class_names)
    if not labelled and not classes:
        raise SettingError(f"{folder} has no class folders: say between which classes to decide, --classes=cat,dog.")
    if labelled:
        images = ImageDataset.open(folder, backbone.image_size, classes)
    else:
        images = ImageDataset(FlatSource(folder, classes or ()), backbone.image_size)
    if backbone.conditioned_on == "prompts":
        return images, tuple(range(len(images.classes)))
    return images, tuple(label_of(backbone, name) for name in images.classes)


def _condition(backbone: Backbone, labels: Sequence[int], classes: Sequence[str], prompt: str) -> Condition:
    if backbone.conditioned_on == "prompts":
        return backbone.embed(list(fill_prompt(prompt, classes)))
    return backbone.embed(list(labels))
