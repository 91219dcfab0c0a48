"""What the evaluation tasks share: a backbone and a method at work in it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bigain.adapters.placement import Placement
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Conditions, PromptConditions
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.results.provenance import code_of, fingerprint
from bigain.tasks.method import Applied, Method, Reduced, is_identity, method_of
from bigain.tasks.result_task import RESULT_FILE, ResultTask, compiled

__all__ = ["RESULT_FILE", "EvaluationTask", "embed_classes"]


class EvaluationTask(ResultTask):
    """Runs a backbone with a method at work in it and writes one result folder.

    Args:
        backbone: The model.
        reducer: The reducer that is attached to it.
        method: In place of a reducer, anything else that changes the model.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds noise and whatever the method draws.
        compile: Compile the network (`torch.compile`, whole graph).
        output: Folder of the result; it appears when the result is complete.
        resume: Finish the interrupted run whose partial result is beside `output`.

    Attributes:
        mixes_timesteps: Whether rows of one pass may be at different timesteps.
        weights: Fingerprint of the network's weights, from `setup` on. A comparison computes it
            once and sets it, since its first task may convert the weights to half precision.

    Raises:
        SettingError: A reducer and a method were both given.
    """

    mixes_timesteps: bool = False

    def __init__(
        self,
        backbone: Backbone,
        reducer: TokenReducer,
        method: Method | None,
        placement: Placement,
        seed: int,
        compile: bool,  # noqa: A002 the name Lightning's users know
        output: Path,
        resume: bool,
    ) -> None:
        super().__init__(output, resume)
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)
        self.method = _one_of(reducer, method)
        self.placement, self.seed, self.compiled = placement, seed, compile
        self.weights = ""
        self._applied: Applied | None = None

    @property
    def applied(self) -> Applied:
        """The backbone with the method at work in it, while the test runs."""
        assert self._applied is not None, "the method is not at work"
        return self._applied

    @property
    def sites(self) -> list[dict[str, Any]]:
        return self.applied.sites

    def setup(self, stage: str) -> None:
        self.weights = self.weights or fingerprint(self.backbone.network.state_dict())
        self.backbone.text_device = self.trainer.strategy.root_device
        super().setup(stage)

    def try_out(self, data: Any) -> None:
        self.data = data
        self.check()
        with self.method.applied(self.backbone, self.placement, self.seed) as applied:
            if self.mixes_timesteps and applied.report:
                applied.report.check_mixed_timesteps()
            self.check_applied(applied)

    def begin(self, stack: ExitStack) -> None:
        self._applied = stack.enter_context(self.method.applied(self.backbone, self.placement, self.seed))
        if self.compiled:
            stack.enter_context(compiled(self._applied.backbone.network))

    def release(self) -> None:
        super().release()
        self._applied = None

    @abstractmethod
    def check(self) -> None:
        """Refuse impossible settings, before any work."""

    @abstractmethod
    def check_applied(self, applied: Applied) -> None:
        """Refuse what is impossible with the method at work, before any work."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return what the figures depend on, beside model and method."""

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "backbone": type(self.backbone).__name__,
            "weights": self.weights,
            "process": self.backbone.process.identity(),
            "model": self.backbone.identity(),
            "method": repr(self.method),
            "code": code_of(self.method.reducer if isinstance(self.method, Reduced) else self.method),
            "placement": str(self.placement),
            "seed": self.seed,
            "precision": str(self.trainer.precision),
            **self.settings(),
        }


def embed_classes(backbone: Backbone, classes: Sequence[str], prompts: Sequence[str]) -> Conditions:
    """Give each class a row: its label, or its prompt, which is embedded when it is needed.

    Args:
        backbone: The model.
        classes: Class names in label order.
        prompts: A prompt for each class.

    Raises:
        SettingError: A model that takes labels was trained on another number of classes, or a prompt is too long.
    """
    if backbone.conditioned_on == "prompts":
        for prompt in prompts:
            backbone.check_prompt(prompt)
        return PromptConditions(backbone.embed, prompts)
    if backbone.label_count != len(classes):
        raise SettingError(
            f"The data has {len(classes)} classes ({', '.join(classes[:5])}{', ..' if len(classes) > 5 else ''}), the "
            f"model {backbone.label_count}: give --data.classes, every class in the model's order."
        )
    return backbone.embed(list(range(len(classes))))


def _one_of(reducer: TokenReducer, method: Method | None) -> Method:
    if method is None:
        return method_of(reducer)
    if not is_identity(method_of(reducer)):
        raise SettingError(f"Give a reducer or a method, not both; got reducer={reducer!r} and method={method!r}.")
    return method
