"""Run a comparison: every row with the same images, seeds and clock."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from bigain.analysis.merge_maps import MergeMap, merge_map
from bigain.benchmark.compare_table import assemble, write_csv
from bigain.benchmark.compare_vits import ViTRun
from bigain.benchmark.comparison import Comparison, Row
from bigain.benchmark.cost import TimedRow, count_operations, time_rows
from bigain.diffusion.condition import Conditions
from bigain.errors import SettingError
from bigain.metrics.base import GenerationMetric
from bigain.metrics.frechet import FrechetDistance
from bigain.results.provenance import fingerprint
from bigain.results.store import ResultFolder, write_json, write_result
from bigain.tasks.classification import ClassificationTask
from bigain.tasks.evaluation import RESULT_FILE, embed_classes
from bigain.tasks.generation import GenerationTask
from bigain.tasks.method import Reduced, method_of

__all__ = ["run_comparison"]

_MAPPED = 2
"""Images of the merge maps."""

_MAP_TIMESTEP = 125


def run_comparison(
    comparison: Comparison,
    output: Path,
    resume: bool,
    console: Console,
    recipe: str = "",
    finish: Callable[[Path], object] | None = None,
) -> dict[str, Any]:
    """Run everything that is not done yet, and publish the folder.

    Args:
        comparison: What to run.
        output: Folder of the result.
        resume: Finish an interrupted comparison.
        console: Shows progress.
        recipe: The whole configuration, stored beside the result.
        finish: Writes further files, such as the page, into the folder before it appears.

    Returns:
        The content of `comparison.json`.

    Raises:
        BigainError: Bad input; finished work stays.
    """
    # Every trainer would repeat the same lines about the machine.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    run = _Run(comparison, console) if comparison.classifier is None else ViTRun(comparison, console)
    store = ResultFolder(output, run.identity(), resume)
    try:
        run.check_methods()
        run.work(store.folder)
        content = assemble(comparison, store.folder)

        def write(folder: Path) -> None:
            write_result(folder / "comparison.json", content)
            write_csv(folder / "table.csv", content)
            (folder / "recipe.yaml").write_text(recipe)
            if finish is not None:
                finish(folder)

        store.publish(write)
    finally:
        store.discard_if_empty()
    return content


class _Run:
    """The work of one comparison, all on one backbone."""

    def __init__(self, comparison: Comparison, console: Console) -> None:
        assert comparison.backbone is not None
        assert comparison.prompts is not None
        self._backbone, self._prompts = comparison.backbone, comparison.prompts
        self.comparison, self._console = comparison, console
        self._rows = comparison.table_rows
        # Before the first task, which may convert the weights to half precision.
        self._weights = fingerprint(self._backbone.network.state_dict())
        self._metrics: list[GenerationMetric] = (
            [FrechetDistance(comparison.features, comparison.reference)]
            if comparison.generation_metrics is None
            else comparison.generation_metrics
        )
        data = comparison.data
        self._backbone.text_device = comparison.make_trainer().strategy.root_device
        self._condition: Conditions = embed_classes(self._backbone, data.test_set.classes, data.class_prompts)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed."""
        given = self.comparison
        names = ("loss", "steps", "guidance", "scheduler", "share_plans", "seed", "precision", "rows", "compile")
        return {
            "kind": "comparison",
            "weights": self._weights,
            "process": self._backbone.process.identity(),
            "model": self._backbone.identity(),
            "condition": self._condition.identity(),
            "prompts": list(self._prompts.class_prompts),
            "methods": [given.described(row) for row in self._rows],
            "data": given.data.test_set.fingerprint,
            "chunks": [given.data.chunk, self._prompts.chunk],
            **given.stages.settings(),
            "generated": self._prompts.count,
            "first_seed": self._prompts.first_seed,
            "sampling_rows": given.sampling_rows,
            "classification_metrics": given.metric_identities(),
            "metrics": [dict(metric.identity()) for metric in self._metrics],
            **{name: getattr(given, name) for name in names},
        }

    def check_methods(self) -> None:
        """Refuse before any work what would otherwise end a comparison after hours."""
        given = self.comparison
        if self._prompts.classes != given.data.test_set.classes:
            raise SettingError(
                f"The prompts have the classes {_first(self._prompts.classes)}, the images "
                f"{_first(given.data.test_set.classes)}: give prompts and data the same classes, in the model's order."
            )
        for row in self._rows:
            for task in (self._classification(row, Path("unused")), self._generation(row, Path("unused"))):
                task.try_out(given.data if isinstance(task, ClassificationTask) else self._prompts)

    def work(self, folder: Path) -> None:
        """Run what is not done yet, row by row; time all rows in turn at the end."""
        for number, row in enumerate(self._rows, start=1):
            head = f"[bold]{number}/{len(self._rows)} {row.name}[/bold]"
            place = folder / "rows" / row.name
            if not (place / "classification" / RESULT_FILE).exists():
                self._console.print(f"{head}: classifying {len(self.comparison.data.test_set)} images")
                task = self._classification(row, place / "classification")
                self.comparison.make_trainer().test(task, datamodule=self.comparison.data, verbose=False)
            if not (place / "generation" / RESULT_FILE).exists():
                self._console.print(f"{head}: generating {self._prompts.count} images")
                drawing = self._generation(row, place / "generation")
                self.comparison.make_trainer().test(drawing, datamodule=self._prompts, verbose=False)
            if not (place / "cost.json").exists():
                self._count(row, place)
        if not (folder / "timing.json").exists():
            self._console.print(f"[bold]timing[/bold]: {self.comparison.timing_repeats} passes of each, in turn")
            self._time(folder)

    def _common(self, row: Row) -> dict[str, Any]:
        given = self.comparison
        return {
            "backbone": self._backbone,
            "method": method_of(row.method),
            "placement": given.placement_of(row),
            "seed": given.seed_of(row),
            "compile": given.compile,
            "resume": True,
        }

    def _classification(self, row: Row, output: Path) -> ClassificationTask:
        given = self.comparison
        task = ClassificationTask(
            **self._common(row),
            metrics=given.classification_metrics,
            stages=given.stages,
            loss=given.loss,
            rows=given.rows,
            share_plans=given.share_plans and isinstance(method_of(row.method), Reduced),
            noise_seed=given.seed,
            output=output,
        )
        task.weights = self._weights
        return task

    def _generation(self, row: Row, output: Path) -> GenerationTask:
        given = self.comparison
        task = GenerationTask(
            **self._common(row),
            metrics=self._metrics,
            steps=given.steps,
            guidance=given.guidance,
            scheduler=given.scheduler,
            rows=given.sampling_rows,
            output=output,
        )
        task.weights = self._weights
        return task

    def _timed(self, row: Row) -> TimedRow:
        return TimedRow(method_of(row.method), self.comparison.placement_of(row), self.comparison.seed_of(row))

    @property
    def _sharing(self) -> int:
        return len(self._condition) if self.comparison.share_plans else 1

    def _count(self, row: Row, place: Path) -> None:
        """Count a row's operations and save its merge map."""
        operations = count_operations(self._backbone, self._timed(row), self._condition, self._sharing)
        self._save_map(row, place)
        write_json(place / "cost.json", {"operations": operations})

    def _time(self, folder: Path) -> None:
        given, device = self.comparison, self.comparison.make_trainer().strategy.root_device
        self._backbone.to(device)
        self._backbone.network.to(given.dtype)
        seconds = time_rows(
            self._backbone,
            {row.name: self._timed(row) for row in self._rows},
            self._condition,
            given.rows // self._sharing * self._sharing,
            given.timing_repeats,
            given.compile,
            self._sharing,
        )
        write_json(folder / "timing.json", {"rows": given.rows // self._sharing * self._sharing, "seconds": seconds})

    def _save_map(self, row: Row, place: Path) -> None:
        given = self.comparison
        images = given.data.test_set
        chosen = images.batch(range(min(_MAPPED, len(images))))
        timed = self._timed(row)
        with timed.method.applied(self._backbone, timed.placement, timed.seed) as applied:
            if applied.report is None:
                return
            self._backbone.to(self.comparison.make_trainer().strategy.root_device)
            device = next(self._backbone.network.parameters()).device
            found = merge_map(
                self._backbone,
                applied.report,
                self._backbone.encode(chosen["image"].to(device)),
                self._condition.take(chosen["labels"][:, 0].clamp(min=0)),
                _MAP_TIMESTEP,
                timed.seed,
            )
        if found is not None and found.grid.axes == 2:
            noisy = self._backbone.decode(found.noisy).cpu()
            _write_map(found, chosen["image"], noisy, place)


def _write_map(found: MergeMap, images: torch.Tensor, noisy: torch.Tensor, place: Path) -> None:
    tensors: Mapping[str, torch.Tensor] = {
        "image": images,
        "noisy": noisy,
        "place": found.place.cpu(),
        "representatives": found.representatives.cpu(),
        "shape": torch.tensor(found.grid.shape),
        "timestep": torch.full((len(images),), found.timestep),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, place / "merge_map.safetensors")
    write_json(place / "merge_map.json", {"site": found.site})


def _first(names: Sequence[str], most: int = 5) -> str:
    """Join the first of some names; two dots stand for the others."""
    return ", ".join([*names[:most], *([".."] if len(names) > most else [])])
