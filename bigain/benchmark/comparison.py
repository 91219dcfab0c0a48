"""Settings of a comparison."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bigain.adapters.placement import Placement
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import Loss
from bigain.diffusion.noise_set import Stages
from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric, FeatureNetwork, GenerationMetric
from bigain.reducers.base import Identity, TokenReducer
from bigain.tasks.method import Method

__all__ = ["Comparison", "Row", "fastest_precision"]


_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "arm_bf16")
"""torch's names of the CPU units that multiply bfloat16."""

_PRECISIONS = ("32-true", "bf16-true", "16-true")

_NAME = re.compile(r"[^\W_.][\w.-]{0,99}|_[\w.-]{0,99}")


@dataclass
class Row:
    """One row of a comparison.

    Args:
        name: Its name in tables: letters, digits, `-`, `_` and `.`.
        method: A reducer, or a method that changes the network or its input.
        placement: Which blocks a reducer works in. Default: the comparison's.
        seed: Seeds what the method draws. Default: the comparison's.
    """

    name: str
    method: TokenReducer | Method = Identity()
    placement: Placement | None = None
    seed: int | None = None


@dataclass
class Comparison:
    """Classification, generation and cost of several methods on one backbone.

    Args:
        backbone: The model.
        methods: The rows of the table. The others are compared with the first.
        reducers: Shorthand for methods that differ in their reducer alone: name to reducer.
        data: The images to classify.
        prompts: What to generate.
        classification_metrics: Metrics of predictions. Default: top-1, and network
            evaluations per image.
        generation_metrics: Metrics of generated images. Default: the Fréchet distance with
            the two settings below.
        features: Features of the Fréchet distance; the embedded ones by default.
        reference: Real images of the distance; default: the embedded test images.
        stages: Staged pruning of the classifier.
        loss: `l2`, `l1` or `huber`.
        steps: Sampling steps.
        guidance: Guidance scale.
        scheduler: A diffusers scheduler, by class path or as a mapping with `class_path` and
            `init_args`. Default: the checkpoint's own.
        rows: Rows of one forward pass in classification and timing.
        sampling_rows: Images drawn at once.
        placement: Which blocks reducers work in, and which parts of them. Default: those of
            the published methods.
        share_plans: Let the classes of one image, timestep and noise share a plan, in
            classification.
        seed: Seeds the classifier's noise, and what methods draw.
        compile: Compile the network.
        trainer: Arguments of `lightning.Trainer`; `precision: auto` takes bf16-true where the
            device computes in bfloat16, and 32-true elsewhere.
        timing_repeats: Timed forward passes of each method, all methods in turn.
        title: Headline of the page.

    Raises:
        SettingError: A setting is impossible, or two rows have one name.
    """

    backbone: Backbone
    data: ImageData
    prompts: ClassPrompts
    methods: list[Row] = field(default_factory=list)
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    classification_metrics: list[ClassificationMetric] | None = None
    generation_metrics: list[GenerationMetric] | None = None
    features: FeatureNetwork | None = None
    reference: Path | None = None
    stages: Stages = Stages()
    loss: Loss = "l2"
    steps: int = 50
    guidance: float = 1.5
    scheduler: str | dict[str, Any] | None = None
    rows: int = 25
    sampling_rows: int = 8
    placement: Placement = Placement()
    share_plans: bool = False
    seed: int = 0
    compile: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    timing_repeats: int = 10
    title: str = "Token reduction compared"

    def __post_init__(self) -> None:
        if self.trainer.get("precision") == "auto":
            self.trainer = {**self.trainer, "precision": fastest_precision(self.trainer.get("accelerator", "auto"))}
        precision, devices = self.precision, self.trainer.get("devices", 1)
        if precision not in _PRECISIONS:
            raise SettingError(
                "A comparison times what it runs: "
                f"trainer.precision is one of {', '.join(_PRECISIONS)}; got {precision}."
            )
        if devices not in (1, "1", [0]):
            raise SettingError(f"A comparison runs on one device; got trainer.devices={devices}.")
        if self.timing_repeats < 1:
            raise SettingError(f"timing_repeats is 1 or more; got {self.timing_repeats}.")
        _check_names([row.name for row in self.table_rows])

    @property
    def precision(self) -> str:
        """The precision by Lightning's name."""
        return str(self.trainer.get("precision", "32-true"))

    @property
    def table_rows(self) -> list[Row]:
        """Every row of the table: those of `methods`, then those of `reducers`."""
        short = [Row(name, reducer) for name, reducer in self.reducers.items()]
        return [*self.methods, *short]

    def placement_of(self, row: Row) -> Placement:
        """Return where a row's reducer works."""
        return self.placement if row.placement is None else row.placement

    def seed_of(self, row: Row) -> int:
        """Return the seed of a row's method."""
        return self.seed if row.seed is None else row.seed


def _check_names(names: list[str]) -> None:
    """Refuse names that cannot be folders, or the same folder."""
    if not names:
        raise SettingError("A comparison needs one row or more under methods: or reducers:.")
    seen: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise SettingError(
                f"Names of rows are 1 to 100 letters, digits, '-', '_' and '.', the first no '.'; got {name!r}."
            )
        if (other := seen.get(name.casefold())) is not None:
            same = "twice" if other == name else f"beside {other!r}, which many disks take for the same name"
            raise SettingError(f"Each row has a name of its own; {name!r} stands there {same}.")
        seen[name.casefold()] = name


def fastest_precision(accelerator: str) -> str:
    """Return `bf16-true` where the device computes in bfloat16, else `32-true`.

    A CPU without such units emulates them, about four times slower than float32.
    """
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-true" if torch.cuda.is_bf16_supported() else "32-true"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-true" if any(capabilities.get(unit) for unit in _BF16_UNITS) else "32-true"
