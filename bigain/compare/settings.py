"""What a comparison runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigain.backbones.base import Backbone
from bigain.data.module import LabelledImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.classifier import Loss
from bigain.diffusion.noise_set import Stages
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork
from bigain.reducers.base import TokenReducer

__all__ = ["Comparison"]


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
        layers: Blocks to attach to. Default: those of the published methods.
        seed: Seeds the classifier's noise and what reducers draw.
        compile: Compile the network.
        trainer: Arguments of `lightning.Trainer`.
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
    layers: list[int] | None = None
    seed: int = 0
    compile: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    timing_repeats: int = 10
    title: str = "Token reduction compared"

    def __post_init__(self) -> None:
        if not self.reducers:
            raise SettingError("A comparison needs one reducer or more under reducers:.")
        for name in self.reducers:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise SettingError(f"Method names are letters, digits, '-', '_' and '.'; got {name!r}.")

    def common(self) -> Mapping[str, Any]:
        """Arguments that the classification and generation tasks share."""
        return {"backbone": self.backbone, "layers": self.layers, "seed": self.seed, "compile": self.compile}
