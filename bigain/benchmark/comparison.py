"""What a comparison runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bigain.adapters.placement import Placement
from bigain.data.module import LabelledImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import Loss
from bigain.diffusion.noise_set import Stages
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork
from bigain.reducers.base import TokenReducer

__all__ = ["Comparison", "fastest_precision"]


_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "arm_bf16")
"""What torch calls the units of a CPU that multiply bfloat16."""

_PRECISIONS = ("32-true", "bf16-true", "16-true")


@dataclass
class Comparison:
    """Classification, generation and cost of several reducers on one backbone.

    Args:
        backbone: The model.
        reducers: Method name to reducer. The first is what the others are compared with.
        data: The images to classify.
        prompts: What to generate.
        stages: Staged pruning of the classifier.
        loss: `l2`, `l1` or `huber`.
        features: Features of the Fréchet distance; the embedded ones by default.
        reference: Real images of the distance; default: the embedded test images.
        steps: DDIM steps.
        guidance: Guidance scale.
        rows: Rows of one forward pass in classification and timing.
        sampling_rows: Images drawn at once.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        share_plans: Let the classes of one image, timestep and noise share a plan, in
            classification.
        seed: Seeds the classifier's noise and what reducers draw.
        compile: Compile the network.
        trainer: Arguments of `lightning.Trainer`; `precision: auto` takes bf16-true where the
            device computes in bfloat16, and 32-true elsewhere.
        timing_repeats: Timed forward passes per method.
        title: Headline of the page.
    """

    backbone: Backbone
    reducers: dict[str, TokenReducer]
    data: LabelledImageData
    prompts: ClassPrompts
    stages: Stages = Stages()
    loss: Loss = "l2"
    features: FeatureNetwork | None = None
    reference: Path | None = None
    steps: int = 50
    guidance: float = 1.5
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
        precision, devices = self.trainer.get("precision", "32-true"), self.trainer.get("devices", 1)
        if precision not in _PRECISIONS:
            raise SettingError(
                "A comparison times what it runs: "
                f"trainer.precision is one of {', '.join(_PRECISIONS)}; got {precision}."
            )
        if devices not in (1, "1", [0]):
            raise SettingError(f"A comparison runs on one device; got trainer.devices={devices}.")
        if self.timing_repeats < 1:
            raise SettingError(f"timing_repeats is 1 or more; got {self.timing_repeats}.")
        if not self.reducers:
            raise SettingError("A comparison needs one reducer or more under reducers:.")
        for name in self.reducers:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise SettingError(f"Method names are letters, digits, '-', '_' and '.'; got {name!r}.")


def fastest_precision(accelerator: str) -> str:
    """Return `bf16-true` where the device computes in bfloat16, else `32-true`.

    A CPU without such units emulates them, about four times slower than float32.
    """
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-true" if torch.cuda.is_bf16_supported() else "32-true"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-true" if any(capabilities.get(unit) for unit in _BF16_UNITS) else "32-true"
