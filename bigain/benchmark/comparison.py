"""Settings of a comparison."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bigain.adapters.placement import Placement
from bigain.backbones.image_classifier import ImageClassifier, LabelMatching
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import Loss
from bigain.diffusion.noise_set import Stages
from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric, FeatureNetwork, GenerationMetric
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.provenance import code_of
from bigain.tasks.classification import default_metrics
from bigain.tasks.method import Method
from bigain.tasks.vit_classification import vit_metrics

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["Comparison", "Row", "fastest_precision"]


_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "arm_bf16")
"""torch's names of the CPU units that multiply bfloat16."""

_PRECISIONS = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}

_DIFFUSION = (
    *("prompts", "generation_metrics", "features", "reference", "stages", "loss", "steps", "guidance", "scheduler"),
    *("sampling_rows", "share_plans"),
)
"""Settings of diffusion models alone."""

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
    """Classification, generation and cost of several methods on one backbone, or on one vision transformer.

    A vision transformer (`classifier`) only classifies, and its methods are reducers: what is
    about diffusion, noise and generation is then left out.

    Args:
        data: The images to classify.
        backbone: The diffusion model.
        prompts: What it is to generate.
        classifier: A vision transformer that classifies, instead of backbone and prompts.
        labels: How the data's classes become a classifier's labels: `names`, `order` or a list; see
            `bigain.tasks.vit_classification.ViTClassification`.
        methods: The rows of the table. The others are compared with the first.
        reducers: Shorthand for methods that differ in their reducer alone: name to reducer.
        classification_metrics: Metrics of predictions. Default: top-1, and network
            evaluations per image; top-1 and top-5 of a classifier.
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
        SettingError: A setting is impossible, two rows have one name, or there is not one model.
    """

    data: ImageData
    backbone: Backbone | None = None
    prompts: ClassPrompts | None = None
    classifier: ImageClassifier | None = None
    labels: LabelMatching | list[int] | None = None
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
        self._check_model()
        if self.classification_metrics is None:
            self.classification_metrics = default_metrics() if self.classifier is None else vit_metrics()

    def _check_model(self) -> None:
        if (self.backbone is None) == (self.classifier is None):
            raise SettingError("A comparison is of one model: give backbone (with prompts), or classifier.")
        if self.backbone is not None:
            if self.prompts is None or self.labels is not None:
                raise SettingError("A backbone is compared with prompts, which it generates, and without labels.")
            return
        usual = {item.name: item.default for item in fields(self)}
        if given := [name for name in _DIFFUSION if getattr(self, name) != usual[name]]:
            raise SettingError(f"A classifier neither diffuses nor generates: leave {', '.join(given)} out.")
        if other := [row.name for row in self.table_rows if not isinstance(row.method, TokenReducer)]:
            raise SettingError(f"Methods of a classifier are reducers; {other[0]} is none.")

    def metric_identities(self) -> list[dict[str, Any]]:
        """Return what must be equal for finished rows and others to have the same columns."""
        return [dict(metric.identity()) for metric in self.classification_metrics or ()]

    def described(self, row: Row) -> dict[str, Any]:
        """Return what a row's figures depend on, in types that JSON has."""
        return {
            "name": row.name,
            "method": repr(row.method),
            "code": code_of(row.method),
            "placement": str(self.placement_of(row)),
            "seed": self.seed_of(row),
        }

    def make_trainer(self) -> "Trainer":
        """Make the trainer that runs a task."""
        from lightning.pytorch import Trainer

        usual = {"accelerator": "auto", "devices": 1, "logger": False, "enable_model_summary": False}
        return Trainer(**{**usual, **self.trainer})

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network is timed in."""
        return _PRECISIONS[self.precision]

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
