"""What the evaluation tasks share: a backbone, a method at work in it, a result folder."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback

from bigain.adapters.placement import Placement
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Conditions, PromptConditions
from bigain.errors import SettingError
from bigain.profiling.modes import GRAPHS
from bigain.reducers.base import TokenReducer
from bigain.results.provenance import code_of, fingerprint, provenance
from bigain.results.scores import Score
from bigain.results.store import ResultFolder, write_result
from bigain.tasks.method import Applied, Method, Reduced, is_identity, method_of

__all__ = ["EvaluationTask", "compiled", "embed_classes"]

RESULT_FILE = "result.json"


class EvaluationTask(LightningModule, ABC):
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
        kind: Kind of the result, such as `classification`.
        mixes_timesteps: Whether rows of one pass may be at different timesteps.
        recipe: The whole configuration, stored beside the result; the command line sets it.
        weights: Fingerprint of the network's weights, from `setup` on. A comparison computes it
            once and sets it, since its first task may convert the weights to half precision.
        data: The data module, once it is known.
        scores: The figures, once the run has ended; on the first process alone.

    Raises:
        SettingError: A reducer and a method were both given.
    """

    kind: str
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
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)
        self.method = _one_of(reducer, method)
        self.placement, self.seed, self.compiled = placement, seed, compile
        self.output, self.resume = Path(output), resume
        self.data: Any = None
        self.scores: list[Score] = []
        self.recipe = ""
        self.weights = ""
        self._store: ResultFolder | None = None
        self._applied: Applied | None = None
        self._stack = ExitStack()
        self._began = time.monotonic()

    @property
    def store(self) -> ResultFolder:
        """The result folder, from `setup` on."""
        assert self._store is not None, "setup has not run"
        return self._store

    @property
    def finished_chunks(self) -> Collection[int]:
        """Numbers of the chunks that an earlier run finished; data modules leave them out."""
        return frozenset(self.store.done)

    @property
    def applied(self) -> Applied:
        """The backbone with the method at work in it, while the test runs."""
        assert self._applied is not None, "the method is not at work"
        return self._applied

    def setup(self, stage: str) -> None:
        self.weights = self.weights or fingerprint(self.backbone.network.state_dict())
        self.backbone.text_device = self.trainer.strategy.root_device
        self.try_out(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._store = ResultFolder(self.output, self._identity(), self.resume)
        # No process may write before the others have looked for an earlier run.
        self.trainer.strategy.barrier()

    def try_out(self, data: Any) -> None:
        """Refuse what this task cannot do with a data module, before any work.

        Raises:
            BigainError: A setting is impossible, or the method cannot work on this model.
        """
        self.data = data
        self.check()
        with self.method.applied(self.backbone, self.placement, self.seed) as applied:
            if self.mixes_timesteps and applied.report:
                applied.report.check_mixed_timesteps()
            self.check_applied(applied)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Too late for other weights: the result's identity already has a fingerprint of these.
        raise SettingError(
            "Evaluation takes its weights from the backbone: export the checkpoint (bigain export) and give "
            "--model.backbone.init_args.weights=FOLDER instead of --ckpt_path."
        )

    def configure_callbacks(self) -> list[Callback]:
        return [_Cleanup()]

    def on_test_start(self) -> None:
        self._began = time.monotonic()
        applied = self.method.applied(self.backbone, self.placement, self.seed)
        self._applied = self._stack.enter_context(applied)
        if self.compiled:
            self._stack.enter_context(compiled(self._applied.backbone))

    def on_test_epoch_end(self) -> None:
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            self.store.publish(self._write)
            figures = {score.name: score.value for score in self.scores}
            self.log_dict(figures, rank_zero_only=True)
        self.trainer.strategy.barrier()

    def release(self) -> None:
        """Leave the network as it was."""
        self._stack.close()
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

    @abstractmethod
    def summarize(self, folder: Path) -> tuple[list[Score], dict[str, Any]]:
        """Write the files beside `result.json`; return the scores, and further fields of `result.json`."""

    def _identity(self) -> dict[str, Any]:
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

    def _write(self, folder: Path) -> None:
        self.scores, facts = self.summarize(folder)
        if self.recipe:
            (folder / "recipe.yaml").write_text(self.recipe)
        content = {
            "scores": [score.to_json() for score in self.scores],
            **facts,
            "settings": self._identity(),
            "sites": self.applied.sites,
            "seconds_of_last_part": round(time.monotonic() - self._began, 1),
            **provenance(self.device),
        }
        write_result(folder / RESULT_FILE, content)


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


def compiled(backbone: Backbone) -> AbstractContextManager[object]:
    """Compile a backbone's network within a `with` block, to at most `GRAPHS` graphs."""
    stack, network = ExitStack(), backbone.network
    torch._dynamo.reset()  # noqa: SLF001 as torch's documentation advises between models
    stack.enter_context(torch._dynamo.config.patch(recompile_limit=GRAPHS))  # noqa: SLF001
    stack.callback(setattr, network, "_compiled_call_impl", None)  # torch has no verb to undo compile()
    network.compile(dynamic=False, fullgraph=True)
    return stack


def _one_of(reducer: TokenReducer, method: Method | None) -> Method:
    if method is None:
        return method_of(reducer)
    if not is_identity(method_of(reducer)):
        raise SettingError(f"Give a reducer or a method, not both; got reducer={reducer!r} and method={method!r}.")
    return method


class _Cleanup(Callback):
    """Detaches the method, also after an exception, and says where unfinished work is."""

    def teardown(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EvaluationTask)
        pl_module.release()

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, EvaluationTask)
        pl_module.release()
        store = pl_module._store  # noqa: SLF001
        if store is None or not trainer.is_global_zero:
            return
        # After an interruption, the command line says so.
        if store.done and not isinstance(exception, KeyboardInterrupt):
            print(
                f"\n{len(store.done)} finished chunks are in {store.partial}; the same command with --resume goes on."
            )
        store.discard_if_empty()
