"""Run a comparison: every method through the same images, seeds and clock."""

import copy
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from safetensors.torch import save_file

from bigain.adapters.attach import attach
from bigain.analysis.merge_maps import merge_map
from bigain.benchmark.compare_table import assemble, write_csv
from bigain.benchmark.comparison import Comparison
from bigain.benchmark.cost import Latency, count_flops, measure_latency
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.noise_set import NoiseSet
from bigain.diffusion.sampler import DDIMSampler
from bigain.errors import BigainError, SettingError
from bigain.metrics.frechet import FrechetReference
from bigain.reducers.base import TokenReducer
from bigain.results.provenance import code_of, fingerprint
from bigain.results.store import ResultFolder, write_json
from bigain.tasks.classification import ClassificationTask
from bigain.tasks.evaluation import RESULT_FILE
from bigain.tasks.generation import GenerationTask, features_identity, reference_images

__all__ = ["run_comparison"]

_MAPPED = 2
"""Images whose merges are drawn."""

_MAP_TIMESTEP = 125

_DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def run_comparison(plan: Comparison, output: Path, resume: bool, console: Console, recipe: str = "") -> dict[str, Any]:
    """Run everything that is not done yet, and publish the folder.

    Args:
        plan: What to run.
        output: Folder of the result.
        resume: Finish an interrupted comparison.
        console: Where progress is told.
        recipe: The whole configuration, kept beside the result.

    Returns:
        The content of `comparison.json`.

    Raises:
        BigainError: Bad input; nothing was run or all finished work is kept.
    """
    # One trainer after another would tell the same of the machine each time.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    images = plan.data.test_set
    _refuse_early(plan)
    store = ResultFolder(output, _identity(plan), resume)
    store.begin()
    try:
        _run_methods(plan, store.partial, console)
    except BigainError:
        store.discard_if_empty()
        raise
    content = assemble(plan, store.partial)

    def write(folder: Path) -> None:
        from bigain.report.page import write_page
        from bigain.report.shipped import shipped_comparison

        write_json(folder / "comparison.json", content)
        write_csv(folder / "table.csv", content)
        (folder / "recipe.yaml").write_text(recipe)
        write_page(folder, images, shipped_comparison())

    store.publish(write)
    return content


def _refuse_early(plan: Comparison) -> None:
    """Find before any work what would otherwise end a comparison after hours."""
    backbone = plan.backbone
    for reducer in plan.reducers.values():
        with attach(backbone.network, reducer, placement=plan.placement) as report:
            report.check_mixed_timesteps()
    DDIMSampler(backbone, plan.steps, plan.guidance, plan.sampling_rows)
    steps = plan.stages.timesteps(backbone.schedule.steps)
    noise = NoiseSet.draw(plan.seed, steps, backbone.latent_shape)
    classes = len(backbone.classes)
    share = report.shared if plan.share_plans else None
    DiffusionClassifier(
        backbone.predict_noise, backbone.schedule, noise, plan.stages, classes, plan.loss, plan.rows, share
    )
    if plan.prompts.classes != classes:
        raise SettingError(f"The model generates {classes} classes, the prompts have {plan.prompts.classes}.")


def _run_methods(plan: Comparison, folder: Path, console: Console) -> None:
    real: FrechetReference | None = None
    for number, (name, reducer) in enumerate(plan.reducers.items(), start=1):
        head = f"[bold]{number}/{len(plan.reducers)} {name}[/bold]"
        place = folder / name
        if not (place / "classification" / RESULT_FILE).exists():
            console.print(f"{head}: classifying {len(plan.data.test_set)} images")
            _classify(plan, reducer, place)
        if not (place / "generation" / RESULT_FILE).exists():
            console.print(f"{head}: generating {plan.prompts.count} images")
            real = _generate(plan, reducer, place, real)
        if not (place / "cost.json").exists():
            console.print(f"{head}: counting and timing")
            _measure(plan, reducer, place)


def _trainer(plan: Comparison) -> Trainer:
    given = {"accelerator": "auto", "devices": 1, "logger": False, "enable_model_summary": False}
    return Trainer(**{**given, **plan.trainer})


def _common(plan: Comparison) -> dict[str, Any]:
    # A copy for each task: Lightning converts a module to half precision in place.
    backbone = copy.deepcopy(plan.backbone)
    return {"backbone": backbone, "placement": plan.placement, "seed": plan.seed, "compile": plan.compile}


def _classify(plan: Comparison, reducer: TokenReducer, place: Path) -> None:
    task = ClassificationTask(
        **_common(plan),
        reducer=reducer,
        stages=plan.stages,
        loss=plan.loss,
        rows=plan.rows,
        share_plans=plan.share_plans,
        output=place / "classification",
        resume=True,
    )
    _trainer(plan).test(task, datamodule=plan.data, verbose=False)


def _generate(
    plan: Comparison, reducer: TokenReducer, place: Path, real: FrechetReference | None
) -> FrechetReference | None:
    task = GenerationTask(
        **_common(plan),
        reducer=reducer,
        features=plan.features,
        reference=plan.reference,
        steps=plan.steps,
        guidance=plan.guidance,
        rows=plan.sampling_rows,
        output=place / "generation",
        resume=True,
    )
    task.real = real
    _trainer(plan).test(task, datamodule=plan.prompts, verbose=False)
    return task.real


def _measure(plan: Comparison, reducer: TokenReducer, place: Path) -> None:
    trainer = _trainer(plan)
    device = trainer.strategy.root_device
    backbone = copy.deepcopy(plan.backbone).to(device)
    backbone = backbone.to(_DTYPES[str(trainer.precision)])
    _save_map(plan, reducer, backbone, device, place)
    sharing = len(backbone.classes) if plan.share_plans else 1
    flops = count_flops(plan.backbone, reducer, plan.placement, sharing)
    with attach(backbone.network, reducer, placement=plan.placement, seed=plan.seed) as report:
        if plan.compile:
            torch._dynamo.reset()  # noqa: SLF001 as torch's documentation advises between models
            backbone.network.compile(dynamic=False, fullgraph=True)
        with report.shared(sharing):
            latency: Latency = measure_latency(backbone, plan.rows // sharing * sharing, plan.timing_repeats)
    sites = [{"name": site.name, "before": site.before, "after": site.after} for site in report.sites]
    write_json(place / "cost.json", {"flops": flops, "latency": asdict(latency), "sites": sites})


def _save_map(plan: Comparison, reducer: TokenReducer, backbone: Any, device: torch.device, place: Path) -> None:
    chosen = plan.data.test_set.first(_MAPPED)
    found = merge_map(
        backbone,
        reducer,
        backbone.encode(chosen.images.to(device)),
        chosen.labels.to(device),
        _MAP_TIMESTEP,
        plan.placement,
        plan.seed,
    )
    if found is None or found.grid.axes != 2:
        return
    tensors = {
        "image": chosen.images,
        "noisy": backbone.decode(found.noisy).cpu(),
        "place": found.place.cpu(),
        "representatives": found.representatives.cpu(),
        "shape": torch.tensor(found.grid.shape),
        "timestep": torch.full((len(chosen),), found.timestep),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, place / "merge_map.safetensors")
    write_json(place / "merge_map.json", {"site": found.site})


def _identity(plan: Comparison) -> dict[str, Any]:
    images = plan.data.test_set
    return {
        "kind": "comparison",
        "weights": fingerprint(plan.backbone.network.state_dict()),
        "reducers": {name: repr(reducer) for name, reducer in plan.reducers.items()},
        "code": {name: code_of(reducer) for name, reducer in plan.reducers.items()},
        "data": fingerprint([images.images, images.labels]),
        "trials": plan.stages.trials,
        "keeps": plan.stages.keeps,
        "loss": plan.loss,
        "steps": plan.steps,
        "guidance": plan.guidance,
        "generated": plan.prompts.count,
        "first_seed": plan.prompts.first_seed,
        "placement": str(plan.placement),
        "share_plans": plan.share_plans,
        "seed": plan.seed,
        "precision": plan.trainer.get("precision", "32-true"),
        "reference_images": fingerprint([reference_images(plan.reference, plan.backbone)]),
        "features": features_identity(plan.features),
        "rows": plan.rows,
        "compile": plan.compile,
    }
