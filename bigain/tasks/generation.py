"""Generate images with a diffusion model under a token reducer."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.data.captions import CaptionPrompts
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Conditions
from bigain.diffusion.sampler import Sampler
from bigain.diffusion.schedulers import SchedulerSpec
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork, GeneratedImages, GenerationMetric
from bigain.metrics.frechet import FrechetDistance
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.provenance import fingerprint
from bigain.results.scores import Score
from bigain.tasks.evaluation import EvaluationTask, embed_classes
from bigain.tasks.method import Applied, Method

__all__ = ["GenerationTask"]

_SHOWN = 100
"""Images in `grid.png`."""


class GenerationTask(EvaluationTask):
    """Distance of generated images to real ones.

    Writes `result.json`, `samples/` (every image, uint8, with label and seed, one
    safetensors file for each chunk) and `grid.png` (the first 100); with `png`, each image too.

    Args:
        backbone: The model.
        reducer: The reducer that is attached to it.
        method: In place of a reducer, anything else that changes the model.
        metrics: What is scored. Default: the Fréchet distance with the two settings below.
        features: Features of the distance; the embedded ones by default, or
            `bigain.metrics.inception.InceptionFeatures` for FID.
        reference: Real images to compare with: a parquet file or class folders.
            Default: the embedded test images.
        steps: Sampling steps.
        guidance: Guidance scale; 1 is none.
        scheduler: A diffusers scheduler, by class path or as a mapping with `class_path` and
            `init_args`. Default: the checkpoint's own.
        png: Write each image as a PNG too, `samples/00000.png` and so on.
        rows: Images drawn at once; changes speed, and figures by rounding at most.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds what the method draws; images have seeds of their own.
        compile: Compile the network.
        output: Folder of the result.
        resume: Finish an interrupted run.

    Raises:
        SettingError: Metrics are given beside features or a reference, which are for the default metric.
    """

    kind = "generation"

    def __init__(
        self,
        backbone: Backbone,
        reducer: TokenReducer = Identity(),
        method: Method | None = None,
        metrics: list[GenerationMetric] | None = None,
        features: FeatureNetwork | None = None,
        reference: Path | None = None,
        steps: int = 50,
        guidance: float = 1.5,
        scheduler: str | dict[str, Any] | None = None,
        png: bool = False,
        rows: int = 64,
        placement: Placement = Placement(),
        seed: int = 0,
        compile: bool = False,  # noqa: A002 the name Lightning's users know
        output: Path = Path("results/generation"),
        resume: bool = False,
    ) -> None:
        super().__init__(backbone, reducer, method, placement, seed, compile, output, resume)
        if metrics is not None and (features is not None or reference is not None):
            raise SettingError("features and reference belong to the default metric: give them to the metrics instead.")
        # In a list, metrics are not submodules: half precision would round their networks.
        self.metrics = [FrechetDistance(features, reference)] if metrics is None else list(metrics)
        self.steps, self.guidance, self.rows, self.png = steps, guidance, rows, png
        self.scheduler: SchedulerSpec = scheduler
        self._condition: Conditions | None = None
        self._sampler: Sampler | None = None

    @property
    def _prompts(self) -> ClassPrompts:
        if not isinstance(self.data, ClassPrompts):
            raise SettingError(
                "GenerationTask needs classes to draw (bigain.data.prompts.ClassPrompts); "
                f"got {type(self.data).__name__}."
            )
        return self.data

    def check(self) -> None:
        if isinstance(self._prompts, CaptionPrompts) and self.backbone.conditioned_on != "prompts":
            raise SettingError(
                f"{type(self.backbone).__name__} takes labels: captions are for models that take prompts."
            )
        self._condition = embed_classes(self.backbone, self._prompts.classes, self._prompts.class_prompts)
        if self.guidance > 1 and self.backbone.null(self._condition.take([0])) is None:
            raise SettingError(
                f"{type(self.backbone).__name__} has no unconditional prediction to guide against: guidance is 1 for "
                f"it; got {self.guidance}."
            )
        for metric in self.metrics:
            metric.check(self._prompts)
            metric.identity()

    def check_applied(self, applied: Applied) -> None:
        self._build(applied)

    def _build(self, applied: Applied) -> Sampler:
        at = nullcontext if applied.report is None else applied.report.at
        return Sampler(applied.backbone, self.steps, self.guidance, self.rows, self.scheduler, at)

    def settings(self) -> Mapping[str, Any]:
        data = self._prompts
        assert self._condition is not None
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler or "the checkpoint's own",
            "condition": self._condition.identity(),
            "images": data.count,
            "first_seed": data.first_seed,
            "metrics": [dict(metric.identity()) for metric in self.metrics],
            "chunk": data.chunk,
            "rows": self.rows,
        }

    def on_test_start(self) -> None:
        super().on_test_start()
        self._sampler = self._build(self.applied)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        assert self._sampler is not None
        assert self._condition is not None
        label, seed = batch["label"].cpu(), batch["seed"].cpu()
        names = [f"of class {self._prompts.classes[item]}" for item in label.tolist()]
        images = self._sampler(self._condition.take(label), seed, names)
        self.store.add(int(batch["chunk"]), {"index": batch["index"], "label": label, "seed": seed, "image": images})

    def summarize(self, folder: Path) -> tuple[list[Score], dict[str, Any]]:
        place, digits = folder / "samples", max(5, len(str(self._prompts.count - 1)))
        place.mkdir(exist_ok=True)
        shown: list[Tensor] = []
        for number, tensors in self.store.chunks():
            save_file(tensors, place / f"{number:08d}.safetensors")
            for index, image in zip(tensors["index"].tolist(), tensors["image"], strict=True):
                if self.png:
                    tile_images(image[None], columns=1).save(place / f"{index:0{digits}d}.png")
            if sum(map(len, shown)) < _SHOWN:
                shown.append(tensors["image"])
        tile_images(torch.cat(shown)[:_SHOWN]).save(folder / "grid.png")
        images = GeneratedImages(self._images, self._drawn_prompts())
        scores = [metric.to(self.device).score(images) for metric in self.metrics]
        assert self._sampler is not None
        facts = {
            "generated": self._prompts.count,
            "evaluations_per_image": self._sampler.evaluations,
            "samples": fingerprint(self._images()),
        }
        return scores, facts

    def _drawn_prompts(self) -> list[str]:
        labels = self._prompts.batch(range(self._prompts.count))["label"].tolist()
        return [self._prompts.class_prompts[label] for label in labels]

    def _images(self) -> Iterator[Tensor]:
        for _, tensors in self.store.chunks():
            yield tensors["image"]


def tile_images(images: Tensor, columns: int = 10) -> Image.Image:
    """Lay images out in rows.

    Args:
        images: uint8, `[N, 3, H, W]`.
        columns: Images in a row.

    Returns:
        One RGB image; places that are left over are white.
    """
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = images.new_full((rows * columns, 3, height, width), 255)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, 3).contiguous().cpu().numpy())
