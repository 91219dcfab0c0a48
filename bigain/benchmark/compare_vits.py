"""Run a comparison on a vision transformer: every row with the same images and clock."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bigain.adapters.attach import attach
from bigain.adapters.report import AttachReport
from bigain.backbones.image_classifier import ImageClassifier, model_labels
from bigain.benchmark.comparison import Comparison, Row
from bigain.benchmark.cost import time_passes, with_shared_weights
from bigain.reducers.base import TokenReducer
from bigain.results.provenance import fingerprint
from bigain.results.store import write_json
from bigain.tasks.result_task import RESULT_FILE
from bigain.tasks.vit_classification import ViTClassification

__all__ = ["ViTRun"]


class ViTRun:
    """The work of one comparison, all on one classifier.

    Args:
        comparison: What to run; it has a classifier.
        console: Shows progress.
    """

    def __init__(self, comparison: Comparison, console: Console) -> None:
        assert comparison.classifier is not None
        self.comparison, self._console = comparison, console
        self._classifier: ImageClassifier = comparison.classifier.eval().requires_grad_(requires_grad=False)
        self._rows = comparison.table_rows
        # Before the first task, which may convert the weights to half precision.
        self._weights = fingerprint(self._classifier.network.state_dict())
        comparison.data.prepare_with(self._classifier.preparation)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed."""
        given, images = self.comparison, self.comparison.data.test_set
        return {
            "kind": "vit_comparison",
            "weights": self._weights,
            "model": self._classifier.identity(),
            "labels": model_labels(self._classifier, images.classes, given.labels).tolist(),
            "methods": [given.described(row) for row in self._rows],
            "data": images.fingerprint,
            "classification_metrics": given.metric_identities(),
            "chunk": given.data.chunk,
            **{name: getattr(given, name) for name in ("seed", "precision", "rows", "compile")},
        }

    def check_methods(self) -> None:
        """Refuse before any work what would otherwise end a comparison after hours."""
        for row in self._rows:
            self._task(row, Path("unused")).try_out(self.comparison.data)

    def work(self, folder: Path) -> None:
        """Run what is not done yet, row by row; time all rows in turn at the end."""
        for number, row in enumerate(self._rows, start=1):
            place = folder / "rows" / row.name
            if not (place / "classification" / RESULT_FILE).exists():
                images = len(self.comparison.data.test_set)
                self._console.print(f"[bold]{number}/{len(self._rows)} {row.name}[/bold]: classifying {images} images")
                task = self._task(row, place / "classification")
                self.comparison.make_trainer().test(task, datamodule=self.comparison.data, verbose=False)
            if not (place / "cost.json").exists():
                with self._attached(row, self._classifier) as report:
                    write_json(place / "cost.json", {"operations": report.flops().after})
        if not (folder / "timing.json").exists():
            repeats = self.comparison.timing_repeats
            self._console.print(f"[bold]timing[/bold]: {repeats} passes of each, in turn")
            write_json(folder / "timing.json", {"rows": self.comparison.rows, "seconds": self._time()})

    def _task(self, row: Row, output: Path) -> ViTClassification:
        given = self.comparison
        task = ViTClassification(
            self._classifier,
            _reducer_of(row),
            metrics=given.classification_metrics,
            labels=given.labels,
            rows=given.rows,
            placement=given.placement_of(row),
            seed=given.seed_of(row),
            compile=given.compile,
            output=output,
            resume=True,
        )
        task.weights = self._weights
        return task

    def _attached(self, row: Row, classifier: ImageClassifier) -> AttachReport:
        placement, seed = self.comparison.placement_of(row), self.comparison.seed_of(row)
        return attach(classifier.network, _reducer_of(row), placement=placement, seed=seed)

    def _time(self) -> dict[str, list[float]]:
        given, device = self.comparison, self.comparison.make_trainer().strategy.root_device
        classifier = self._classifier.to(device)
        classifier.network.to(given.dtype)
        shape = given.data.test_set.prepared(classifier.preparation)[0]["image"].shape
        noise = torch.randn(given.rows, *shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32)
        images = noise.to(device, given.dtype)

        def ready(row: Row, stack: ExitStack) -> Callable[[], Tensor]:
            copied = with_shared_weights(classifier)
            stack.enter_context(self._attached(row, copied))
            return partial(copied.logits, images)

        return time_passes(
            {row.name: partial(ready, row) for row in self._rows}, given.timing_repeats, device, given.compile
        )


def _reducer_of(row: Row) -> TokenReducer:
    assert isinstance(row.method, TokenReducer)
    return row.method
