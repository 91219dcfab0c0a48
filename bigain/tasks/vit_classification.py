"""Classify images with a vision transformer under a token reducer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.adapters.report import AttachReport
from bigain.backbones.image_classifier import ImageClassifier, LabelMatching, model_labels
from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.errors import NumericalError, SettingError
from bigain.metrics.base import ClassificationMetric
from bigain.metrics.top1 import Top1
from bigain.metrics.top_k import TopK
from bigain.profiling.latency import host_clock
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.errors import Errors
from bigain.results.provenance import code_of, fingerprint
from bigain.results.scores import Score
from bigain.tasks.result_task import ResultTask, compiled, predictions_of

__all__ = ["ViTClassification", "speed_score", "vit_metrics"]

_STORED = 100
"""Classes of each image whose errors are stored, the best: of a thousand, all would be 14 kB an image."""


class ViTClassification(ResultTask):
    """Accuracy and speed of a vision transformer that classifies.

    The data's classes are matched to the model's labels, and the image is classified between
    these alone. Writes the files of a diffusion classification: `result.json`,
    `predictions.csv` and `errors.safetensors`, where the error of a class is minus the
    logarithm of the probability that the model gives it, at the one timestep 0, for the 100 best
    classes.

    Images a second are those of the forward passes, all of `rows` images, without reading
    and preparing images. A comparison takes turns between methods and tells speeds apart better.

    Args:
        classifier: The model.
        reducer: The reducer that is attached to it.
        metrics: What is scored, beside images a second. Default: top-1 and top-5.
        labels: How the data's classes become the model's labels: `names`, by name, synonym or number;
            `order`, the first class is the model's label 0, and so on; or a list with the model's label of
            each class. Default: `names` where the model has names, otherwise `order`.
        rows: Images of one forward pass, the last of which is filled up.
        placement: Which blocks to attach to, and which parts of them; `progressive` lets merged tokens
            stay merged, as in ToMe. Default: every block gives all tokens back.
        seed: Seeds whatever the reducer draws.
        compile: Compile the network (`torch.compile`, whole graph).
        output: Folder of the result.
        resume: Finish an interrupted run.

    Raises:
        SettingError: `rows` is below 1.

    References:
        Token Merging: Your ViT but Faster (Bolya et al., 2023), for progressive placements.
    """

    kind = "vit_classification"

    def __init__(
        self,
        classifier: ImageClassifier,
        reducer: TokenReducer = Identity(),
        metrics: list[ClassificationMetric] | None = None,
        labels: LabelMatching | list[int] | None = None,
        rows: int = 64,
        placement: Placement = Placement(),
        seed: int = 0,
        compile: bool = False,  # noqa: A002 the name Lightning's users know
        output: Path = Path("results/vit_classification"),
        resume: bool = False,
    ) -> None:
        super().__init__(output, resume)
        if rows < 1:
            raise SettingError(f"rows is the number of images of one forward pass, 1 or more; got {rows}.")
        self.classifier = classifier.eval().requires_grad_(requires_grad=False)
        self.reducer, self.placement, self.seed, self.compiled = reducer, placement, seed, compile
        self.metrics = vit_metrics() if metrics is None else list(metrics)
        self.labels, self.rows, self.weights = labels, rows, ""
        self._matched = torch.empty(0, dtype=torch.int64)
        self._report: AttachReport | None = None
        self._warm = False

    @property
    def images(self) -> ImageDataset:
        """The images of the run."""
        found: ImageDataset = self.data.test_set
        return found

    @property
    def preparation(self) -> Callable[[Image.Image], Tensor]:
        """The model's preprocessing, which the data module asks for before it opens any image."""
        return self.classifier.preparation

    @property
    def sites(self) -> list[dict[str, Any]]:
        assert self._report is not None, "the reducer is not attached"
        reduced = [site for site in self._report.sites if not site.left_alone]
        return [{"name": site.name, "before": site.before, "after": site.after} for site in reduced]

    def setup(self, stage: str) -> None:
        self.weights = self.weights or fingerprint(self.classifier.network.state_dict())
        super().setup(stage)

    def try_out(self, data: Any) -> None:
        self.data = data
        if not isinstance(data, ImageData):
            raise SettingError(
                f"ViTClassification needs labelled images (bigain.data.module.ImageData); got {type(data).__name__}."
            )
        data.prepare_with(self.preparation)
        self._matched = model_labels(self.classifier, self.images.classes, self.labels)
        with self._attached():
            pass

    def _attached(self) -> AttachReport:
        return attach(self.classifier.network, self.reducer, placement=self.placement, seed=self.seed)

    def begin(self, stack: ExitStack) -> None:
        self._report = stack.enter_context(self._attached())
        self._warm = False
        if self.compiled:
            stack.enter_context(compiled(self.classifier.network))

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "backbone": type(self.classifier).__name__,
            "network": type(self.classifier.network).__name__,
            "weights": self.weights,
            "model": self.classifier.identity(),
            "method": repr(self.reducer),
            "code": code_of(self.reducer),
            "placement": str(self.placement),
            "seed": self.seed,
            "precision": str(self.trainer.precision),
            "labels": self._matched.tolist(),
            **self.data.identity(),
            "rows": self.rows,
            "compile": self.compiled,  # speed is a figure, too
        }

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        index, names = batch["index"], [self.images.names[item] for item in batch["index"].tolist()]
        logits, seconds, passes = self._logits(batch["image"])
        refuse_nan(logits, names)
        errors = -logits.log_softmax(dim=1)[:, self._matched.to(logits.device)]
        worst = errors.argsort(dim=1, stable=True)[:, _STORED:]
        stored = errors.scatter(1, worst, torch.nan)[:, :, None]
        # On every device the lower class wins ties.
        predicted = errors.sort(dim=1, stable=True).indices[:, 0]
        clock = torch.tensor([seconds, passes * self.rows], dtype=torch.float64)
        values = {"index": index, "predicted": predicted, "clock": clock, **Errors.of(stored, index).tensors()}
        self.store.add(int(batch["chunk"]), values)

    def _logits(self, images: Tensor) -> tuple[Tensor, float, int]:
        """Return the logits `[B, L]`, the seconds of the forward passes, and their number."""
        count = len(images)
        whole = images[torch.arange(-(-count // self.rows) * self.rows, device=images.device) % count]
        parts, found = torch.split(whole, self.rows), list[Tensor]()
        if not self._warm:  # what is compiled or loaded with the first pass is no time of an image
            self.classifier.logits(parts[0])
            self._warm = True
        seconds = host_clock(lambda: found.extend(self.classifier.logits(part) for part in parts), images.device)
        return torch.cat(found)[:count], seconds, len(parts)

    def summarize(self, folder: Path) -> tuple[list[Score], dict[str, Any]]:
        chunks = [tensors for _, tensors in self.store.chunks()]
        predictions = predictions_of(chunks, self.images)
        predictions.save(folder)
        for metric in self.metrics:
            metric.write(predictions, folder)
        seconds, images = torch.stack([tensors["clock"] for tensors in chunks]).sum(dim=0).tolist()
        scores = [metric.score(predictions) for metric in self.metrics]
        return [*scores, speed_score(images / seconds, self.rows)], {"images": len(predictions)}


def vit_metrics() -> list[ClassificationMetric]:
    """Return the default metrics: top-1 and top-5."""
    return [Top1(), TopK(5)]


def speed_score(images_a_second: float, rows: int) -> Score:
    """Score how many images the forward passes take a second.

    Args:
        images_a_second: The figure.
        rows: Images of one pass.
    """
    note = f"Forward passes of {rows} images alone, without reading and preparing images."
    label = "images a second"
    return Score("images_per_second", images_a_second, label=label, unit="count", better="higher", note=note)


def refuse_nan(logits: Tensor, names: Sequence[str]) -> None:
    """Refuse logits `[B, L]` that are not finite; says of which image.

    Raises:
        NumericalError: There are such.
    """
    broken = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            f"The model returned NaN or infinity for image {names[broken[0]]} ({len(broken)} of {len(names)} images of "
            "this chunk). Try another precision (--trainer.precision=bf16-true or 32-true) or check the weights."
        )
