"""Classify images with a diffusion model under a token reducer."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import DiffusionClassifier, Loss
from bigain.diffusion.condition import Conditions
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.weights import timestep_weights
from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric
from bigain.metrics.evaluations import Evaluations
from bigain.metrics.top1 import Top1
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.errors import Errors
from bigain.results.scores import Score
from bigain.tasks.evaluation import EvaluationTask, embed_classes
from bigain.tasks.method import Applied, Method
from bigain.tasks.result_task import predictions_of

__all__ = ["ClassificationTask", "default_metrics"]


class ClassificationTask(EvaluationTask):
    """Accuracy of the diffusion classifier.

    Writes `result.json`, `manifest.txt` (the images' names, one a line), `predictions.csv`
    (each image with its labels, its predicted class and the error of every class) and
    `errors.safetensors` (every error that was evaluated, by image, class and timestep),
    from which other schedules can be scored.

    Args:
        backbone: The model.
        reducer: The reducer that is attached to it.
        method: In place of a reducer, anything else that changes the model.
        metrics: What is scored. Default: top-1, and network evaluations per image.
        stages: Staged pruning, with the noises at each timestep and the timesteps' weights.
        loss: `l2`, `l1` or `huber`.
        rows: Rows of one forward pass; changes speed, and figures by rounding at most.
        share_plans: Plan once for the same image, timestep and noise, and let its classes
            share the plan: cheaper, and classes are compared on the same merged tokens.
            Off is the paper's behaviour.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds whatever the method draws.
        noise_seed: Seeds the noises that all classes and images share. Default: `seed`.
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
        method: Method | None = None,
        metrics: list[ClassificationMetric] | None = None,
        stages: Stages = Stages(),
        loss: Loss = "l2",
        rows: int = 64,
        share_plans: bool = False,
        placement: Placement = Placement(),
        seed: int = 0,
        noise_seed: int | None = None,
        compile: bool = False,  # noqa: A002 the name Lightning's users know
        output: Path = Path("results/classification"),
        resume: bool = False,
    ) -> None:
        super().__init__(backbone, reducer, method, placement, seed, compile, output, resume)
        self.metrics = default_metrics() if metrics is None else list(metrics)
        self.stages, self.loss, self.rows, self.share_plans = stages, loss, rows, share_plans
        self.noise_seed = seed if noise_seed is None else noise_seed
        self._condition: Conditions | None = None
        self._classifier: DiffusionClassifier | None = None

    @property
    def images(self) -> ImageDataset:
        """The images of the run."""
        return self._data.test_set

    @property
    def _data(self) -> ImageData:
        if not isinstance(self.data, ImageData):
            raise SettingError(
                "ClassificationTask needs labelled images (bigain.data.module.ImageData); "
                f"got {type(self.data).__name__}."
            )
        return self.data

    def check(self) -> None:
        if self.images.size != self.backbone.image_size:
            raise SettingError(
                f"The images are {self.images.size} pixels wide, the model sees {self.backbone.image_size}."
            )
        self._condition = embed_classes(self.backbone, self.images.classes, self._data.class_prompts)

    def check_applied(self, applied: Applied) -> None:
        self._build(applied, torch.device("cpu"))

    def _build(self, applied: Applied, device: torch.device) -> DiffusionClassifier:
        assert self._condition is not None
        backbone = applied.backbone
        steps = self.stages.timesteps(backbone.process.steps)
        noise = NoiseSet.draw(self.noise_seed, steps, backbone.latent_shape).to(device)
        share = self._sharing(applied) if self.share_plans else None
        return DiffusionClassifier(
            backbone.predict_noise,
            backbone.process,
            noise,
            self.stages,
            self._condition,
            self.loss,
            self.rows,
            share,
        )

    def _sharing(self, applied: Applied) -> Callable[[int], AbstractContextManager[None]]:
        if applied.report is None:
            raise SettingError(f"share_plans is for reducers: {self.method!r} makes no plans that classes could share.")
        return applied.report.shared

    def settings(self) -> Mapping[str, Any]:
        assert self._condition is not None
        return {
            **self.stages.settings(),
            "loss": self.loss,
            "noise_seed": self.noise_seed,
            "share_plans": self.share_plans,
            "condition": self._condition.identity(),
            **self._data.identity(),
            "rows": self.rows,
        }

    def on_test_start(self) -> None:
        super().on_test_start()
        self._classifier = self._build(self.applied, self.device)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        assert self._classifier is not None
        index: Tensor = batch["index"]
        names = [self.images.names[item] for item in index.tolist()]
        found = self._classifier(self.applied.backbone.encode(batch["image"]), names)
        process = self.backbone.process
        timesteps = torch.tensor(self.stages.timesteps(process.steps))
        errors = Errors.of(found.errors, index, timesteps, timestep_weights(self.stages, process))
        values = {"index": index, "predicted": found.prediction, **errors.tensors()}
        self.store.add(int(batch["chunk"]), values)

    def summarize(self, folder: Path) -> tuple[list[Score], dict[str, Any]]:
        predictions = predictions_of([tensors for _, tensors in self.store.chunks()], self.images)
        predictions.save(folder)
        for metric in self.metrics:
            metric.write(predictions, folder)
        return [metric.score(predictions) for metric in self.metrics], {"images": len(predictions)}


def default_metrics() -> list[ClassificationMetric]:
    """Return the default metrics: top-1 and network evaluations per image."""
    return [Top1(), Evaluations()]
