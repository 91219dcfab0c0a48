"""Classify a folder of images without and with reducers: what `bigain classify` does."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.backbones.folder import Dtype
from bigain.backbones.open_model import open_model
from bigain.benchmark.generate import out_of_memory
from bigain.benchmark.latency_settings import device_of
from bigain.benchmark.methods import methods_of
from bigain.data.classes import classes_of
from bigain.data.dataset import ImageDataset
from bigain.data.prompts import PROMPT, fill_prompt
from bigain.data.sources.flat import FlatSource
from bigain.data.sources.official import is_labelled, is_official
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import Classified, DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.errors import DataError, SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.tasks.method import Applied, method_of

__all__ = ["ClassifiedFolder", "ClassifySettings", "MethodPredictions", "classify_folder", "confidence"]

Announce = Callable[[str], None]

_AT_ONCE = 8
"""Images that share passes, so that few rows of a pass are left over."""


@dataclass(frozen=True)
class ClassifySettings:
    """How `bigain classify` classifies.

    Args:
        model: `embedded` (a small model of CIFAR-10 that ships with bigain), a folder that a
            diffusers pipeline's `save_pretrained` wrote, or `hub:owner/name[@revision]`.
        classes: Class names with commas between them, such as cat,dog. Default: the folder's
            sub-folders, a known data set's own, or the classes of a model that takes labels.
        prompt: The prompt of a class, for models that take prompts; `{class}` is its name.
        reducer: The reducer to compare with none. Default: none alone.
        reducers: Several, by name.
        placement: Which blocks reducers work in. Default: those of the published methods.
        timesteps: Timesteps at which a class that survives to the end is evaluated.
        keep: Classes that survive the first quarter of them.
        limit: Use at most so many images.
        rows: Rows of one forward pass. Default: 32, and half as many for as long as memory does not suffice.
        seed: Seeds the noise.
        dtype: Type of the weights. Default: fp32 on a CPU, half precision on a GPU.
        image_size: Side of the images, in pixels. Default: the size of the model's training.
        device: auto (a GPU where there is one), cpu, cuda or cuda:1.

    Raises:
        SettingError: Impossible numbers.
    """

    model: str = "embedded"
    classes: str | None = None
    prompt: str = PROMPT
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    timesteps: int = 20
    keep: int = 5
    limit: int | None = None
    rows: int | None = None
    seed: int = 0
    dtype: Dtype | None = None
    image_size: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("timesteps", 4), ("keep", 1), ("rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"{name} is {least} or more; got {value}.")


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
    backbone = open_model(settings.model, device, settings.dtype, settings.image_size)
    images, chosen = _opened(folder, labelled, backbone, settings)
    images = images.subset(settings.limit)
    images.check()
    announce(f"{folder}: {len(images)} images, {_labels_of(folder, images) if labelled else 'without labels'}")
    stages = Stages((max(1, settings.timesteps // 4), settings.timesteps), (min(settings.keep, len(chosen)), 1))
    try:
        condition = _condition(backbone, chosen, images.classes, settings.prompt)
        everything = {baseline: Identity(), **methods}
        for one in everything.values():  # refuse what cannot work before anything is classified
            with _applied(backbone, one, settings) as applied:
                if applied.report:
                    applied.report.check_mixed_timesteps()
        run = _Run(backbone, images, condition, stages, settings, announce)
        found = tuple(run.of(name, one) for name, one in everything.items())
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, device) from error
    resolved = {
        "model": settings.model,
        "backbone": type(backbone).__name__,
        "dtype": str(next(backbone.network.parameters()).dtype).removeprefix("torch."),
        "image_size": backbone.image_size,
        "classes": list(images.classes),
        "prompt": settings.prompt if backbone.conditioned_on == "prompts" else None,
        "placement": str(settings.placement),
        "trials": stages.trials,
        "keeps": stages.keeps,
        "rows": run.rows,
        "seed": settings.seed,
    }
    return ClassifiedFolder(images, labelled, device, resolved, stages.evaluations(len(chosen)), found)


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


class _Run:
    """One folder under several methods; the rows of a pass are halved until they fit."""

    def __init__(
        self,
        backbone: Backbone,
        images: ImageDataset,
        condition: Condition,
        stages: Stages,
        settings: ClassifySettings,
        announce: Announce,
    ) -> None:
        self._backbone, self._images, self._condition, self._stages = backbone, images, condition, stages
        self._settings, self._announce, self.rows = settings, announce, settings.rows or 32

    def of(self, name: str, reducer: TokenReducer) -> MethodPredictions:
        """Classify every image under one method."""
        while True:
            try:
                return self._all(name, reducer)
            except torch.OutOfMemoryError:
                if self._settings.rows is not None or self.rows == 1:
                    raise
                self.rows //= 2
                torch.cuda.empty_cache()
                self._announce(f"memory does not suffice: {self.rows} rows a pass")

    def _all(self, name: str, reducer: TokenReducer) -> MethodPredictions:
        predicted, sure, start = [], [], time.perf_counter()
        with _applied(self._backbone, reducer, self._settings) as applied, torch.inference_mode():
            for found in self._classified(applied):
                predicted += found.prediction.tolist()
                sure += [confidence(errors) for errors in found.errors.cpu()]
                seconds = (time.perf_counter() - start) / len(predicted)
                self._announce(f"{name}: {len(predicted)}/{len(self._images)}, {seconds:.1f} s an image")
        seconds = (time.perf_counter() - start) / len(self._images)
        return MethodPredictions(name, repr(reducer), torch.tensor(predicted), torch.tensor(sure), seconds)

    def _classified(self, applied: Applied) -> Iterator[Classified]:
        backbone = applied.backbone
        device = next(backbone.network.parameters()).device
        steps = self._stages.timesteps(backbone.process.steps)
        noise = NoiseSet.draw(self._settings.seed, steps, backbone.latent_shape).to(device)
        classifier = DiffusionClassifier(
            backbone.predict_noise, backbone.process, noise, self._stages, self._condition, rows=self.rows
        )
        for first in range(0, len(self._images), _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, len(self._images)))
            images = torch.stack([self._images[number]["image"] for number in numbers])
            yield classifier(backbone.encode(images.to(device)), [self._images.names[number] for number in numbers])


def _labels_of(folder: Path, images: ImageDataset) -> str:
    by = "with the labels of the data set" if is_official(folder) else "labelled by their folders"
    return by + (f"; left out for having none: {images.left_out}" if images.left_out else "")


def _opened(
    folder: Path, labelled: bool, backbone: Backbone, settings: ClassifySettings
) -> tuple[ImageDataset, tuple[int, ...]]:
    """Open the images, and choose which of the model's labels are asked for."""
    given = tuple(name.strip() for name in settings.classes.split(",")) if settings.classes else ()
    known = classes_of(backbone.label_count or 0) if backbone.conditioned_on == "labels" else ()
    if strangers := [name for name in given if known and name not in known]:
        raise SettingError(f"This model has no class {strangers[0]!r}; accepted are {', '.join(known)}.")
    if len(set(given)) < len(given):
        raise SettingError(f"classes={settings.classes} names a class twice.")
    classes = given or known
    if not labelled and not classes:
        raise SettingError(f"{folder} has no class folders: say between which classes to decide, --classes=cat,dog.")
    source = ImageDataset.open(folder, backbone.image_size, classes or None) if labelled else None
    images = source or ImageDataset(FlatSource(folder, classes), backbone.image_size)
    numbers = tuple(known.index(name) for name in images.classes) if known else tuple(range(len(images.classes)))
    if backbone.conditioned_on == "labels" and not known and len(images.classes) != backbone.label_count:
        raise SettingError(
            f"This model has {backbone.label_count} classes without names: give all of them in its order, --classes."
        )
    return images, numbers


def _condition(backbone: Backbone, labels: Sequence[int], classes: Sequence[str], prompt: str) -> Condition:
    if backbone.conditioned_on == "prompts":
        return backbone.embed(list(fill_prompt(prompt, classes)))
    return backbone.embed(list(labels))


def _applied(backbone: Backbone, reducer: TokenReducer, settings: ClassifySettings) -> Any:
    if isinstance(reducer, Identity):
        return nullcontext(Applied(backbone))
    return method_of(reducer).applied(backbone, settings.placement, settings.seed)
