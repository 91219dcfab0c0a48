"""Classify images with a diffusion model under a token reducer."""

import csv
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.data.dataset import LabelledImages
from bigain.data.module import LabelledImageData
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import DiffusionClassifier, Loss
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.errors import SettingError
from bigain.metrics.intervals import share
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.provenance import fingerprint
from bigain.tasks.evaluation import EvaluationTask

__all__ = ["ClassificationTask"]


class ClassificationTask(EvaluationTask):
    """Top-1 accuracy of the diffusion classifier.

    Writes `result.json`, `predictions.csv` (each image with its true and predicted
    class and the error of every class) and `errors.safetensors` (each image's error
    for each class at each timestep), from which other schedules can be scored.

    Args:
        backbone: The model.
        reducer: What is attached to it.
        stages: Staged pruning.
        loss: `l2`, `l1` or `huber`.
        rows: Rows of one forward pass; changes speed, and figures by rounding at most.
        share_plans: Plan once for the same image, timestep and noise, and let its classes
            share the plan: cheaper, and classes are compared on the same merged tokens.
            Off is the paper's behaviour.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds the shared set of timesteps and noises.
        compile: Compile the network.
        output: Folder of the result.
        resume: Finish an interrupted run.
    """

    kind = "classification"
    mixes_timesteps = True

    def __init__(
        self,
        backbone: Backbone,
        reducer: TokenReducer = Identity(),
        stages: Stages = Stages(),
        loss: Loss = "l2",
        rows: int = 64,
        share_plans: bool = False,
        placement: Placement = Placement(),
        seed: int = 0,
        compile: bool = False,  # noqa: A002 the name Lightning's users know
        output: Path = Path("results/classification"),
        resume: bool = False,
    ) -> None:
        super().__init__(backbone, reducer, placement, seed, compile, output, resume)
        self.stages, self.loss, self.rows, self.share_plans = stages, loss, rows, share_plans
        self._classifier: DiffusionClassifier | None = None

    @property
    def images(self) -> LabelledImages:
        """The images of the run."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LabelledImageData):
            raise SettingError(
                f"ClassificationTask needs labelled images (bigain.data.module.LabelledImageData); "
                f"got {type(data).__name__}."
            )
        return data.test_set

    def check(self) -> None:
        known, named = self.backbone.classes, self.images.classes
        if known != named:
            raise SettingError(
                f"The images have {len(named)} classes ({', '.join(named[:5])}, ..), the model "
                f"{len(known)} ({', '.join(known[:5])}, ..): give --data.classes in the model's order."
            )
        size = self.images.images.shape[-1]
        if size != self.backbone.image_size:
            raise SettingError(f"The images are {size} pixels wide, the model sees {self.backbone.image_size}.")
        self._build(torch.device("cpu"))

    def _build(self, device: torch.device) -> DiffusionClassifier:
        steps = self.stages.timesteps(self.backbone.schedule.steps)
        noise = NoiseSet.draw(self.seed, steps, self.backbone.latent_shape).to(device)
        backbone, share = self.backbone, self._shared if self.share_plans else None
        classes = len(backbone.classes)
        return DiffusionClassifier(
            backbone.predict_noise, backbone.schedule, noise, self.stages, classes, self.loss, self.rows, share
        )

    def _shared(self, rows: int) -> AbstractContextManager[None]:
        assert self.attached is not None
        return self.attached.shared(rows)

    def settings(self) -> Mapping[str, Any]:
        images = self.images
        return {
            "trials": self.stages.trials,
            "keeps": self.stages.keeps,
            "loss": self.loss,
            "share_plans": self.share_plans,
            "images": len(images),
            "data": fingerprint([images.images, images.labels]),
            "source": Path(images.source).name,
        }

    def on_test_start(self) -> None:
        super().on_test_start()
        self._classifier = self._build(self.device)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert self._classifier is not None
        fresh = [row for row, item in enumerate(batch["index"].tolist()) if item not in self.store.done]
        if not fresh:
            return
        index = batch["index"][fresh]
        names = [self.images.names[item] for item in index.tolist()]
        found = self._classifier(self.backbone.encode(batch["image"][fresh]), names)
        values = {"label": batch["label"][fresh], "prediction": found.prediction, "errors": found.errors}
        self.store.add(index, values)

    def summarize(self, held: Mapping[str, Tensor]) -> dict[str, Any]:
        count = len(held["label"])
        top1 = share(int((held["prediction"] == held["label"]).sum()), count)
        return {
            "images": count,
            "top1": top1.value,
            "top1_low": top1.low,
            "top1_high": top1.high,
            "evaluations_per_image": int(held["errors"].isfinite().sum()) / count,
        }

    def scores(self, summary: Mapping[str, Any]) -> Mapping[str, float]:
        return {key: summary[key] for key in ("top1", "top1_low", "top1_high", "evaluations_per_image")}

    def write(self, folder: Path, held: Mapping[str, Tensor]) -> None:
        save_file(
            {key: held[key].contiguous() for key in ("index", "label", "prediction", "errors")},
            folder / "errors.safetensors",
        )
        classes, means = self.backbone.classes, held["errors"].nanmean(dim=-1)
        with (folder / "predictions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "label", "prediction", "correct", *(f"error {name}" for name in classes)])
            for item, label, found, errors in zip(
                held["index"].tolist(), held["label"].tolist(), held["prediction"].tolist(), means.tolist(), strict=True
            ):
                name = self.images.names[item]
                rows.writerow(
                    [name, classes[label], classes[found], int(label == found), *(f"{e:.6g}" for e in errors)]
                )
