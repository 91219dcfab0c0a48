"""What the evaluation tasks share: a backbone, a reducer attached to it, a result folder."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.adapters.report import AttachReport
from bigain.diffusion.backbone import Backbone
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.results.provenance import code_of, fingerprint, provenance
from bigain.results.store import ResultFolder, write_json

__all__ = ["EvaluationTask"]

RESULT_FILE = "result.json"

_PHASES = 64
"""Graphs that one network may compile to."""


class EvaluationTask(LightningModule, ABC):
    """Runs a backbone with a reducer attached and writes one result folder.

    Args:
        backbone: The model.
        reducer: What is attached to it.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds noise and whatever the reducer draws.
        compile: Compile the network (`torch.compile`, whole graph).
        output: Folder of the result; it appears when the result is whole.
        resume: Finish what an interrupted run left beside `output`.

    Attributes:
        mixes_timesteps: Whether rows of one pass may be at different timesteps.
        recipe: The whole configuration, kept beside the result; the command line sets it.
    """

    kind: str
    mixes_timesteps: bool = False

    def __init__(
        self,
        backbone: Backbone,
        reducer: TokenReducer,
        placement: Placement,
        seed: int,
        compile: bool,  # noqa: A002 the name Lightning's users know
        output: Path,
        resume: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)
        self.reducer, self.placement, self.seed = reducer, placement, seed
        self.compiled, self.output, self.resume = compile, Path(output), resume
        self.summary: dict[str, Any] = {}
        self.attached: AttachReport | None = None
        self._store: ResultFolder | None = None
        self._weights = fingerprint(backbone.network.state_dict())
        self._began = time.monotonic()
        self.recipe = ""

    @property
    def store(self) -> ResultFolder:
        """The result folder, from `setup` on."""
        assert self._store is not None, "setup has not run"
        return self._store

    def setup(self, stage: str) -> None:
        self.check()
        # Try the reducer on the model before any work: an impossible ratio ends here.
        self.attached = attach(self.backbone.network, self.reducer, placement=self.placement, seed=self.seed)
        self.attached.detach()
        if self.mixes_timesteps:
            self.attached.check_mixed_timesteps()
        self._store = ResultFolder(self.output, self._identity(), self.resume)
        # No process may begin to write before the others have looked for an earlier run.
        self.trainer.strategy.barrier()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # By now the result has taken down which weights it is about.
        raise SettingError(
            "Evaluation takes its weights from the backbone: export the checkpoint (bigain export) and give "
            "--model.backbone.init_args.weights=FOLDER instead of --ckpt_path."
        )

    def configure_callbacks(self) -> list[Callback]:
        return [_Cleanup()]

    def on_test_start(self) -> None:
        self._began = time.monotonic()
        self.attached = attach(self.backbone.network, self.reducer, placement=self.placement, seed=self.seed)
        if self.compiled:
            torch._dynamo.reset()  # noqa: SLF001 as torch's documentation advises between models
            # A schedule compiles once a phase; torch gives up after 8.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PHASES)  # noqa: SLF001
            self.backbone.network.compile(dynamic=False, fullgraph=True)

    def on_test_epoch_end(self) -> None:
        self.trainer.strategy.barrier()
        held = self.store.gather()
        self.summary = self.summarize(held)
        self.log_dict({k: float(v) for k, v in self.scores(self.summary).items()}, rank_zero_only=True)
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            self.store.publish(lambda folder: self._write(folder, held))
        self.trainer.strategy.barrier()

    def release(self) -> None:
        """Leave the network as it was."""
        if self.attached is not None:
            self.attached.detach()
        self.backbone.network._compiled_call_impl = None  # noqa: SLF001 torch has no verb to undo compile()

    @abstractmethod
    def check(self) -> None:
        """Refuse impossible settings, before any work."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return what, beside model and reducer, decides the figures."""

    @abstractmethod
    def summarize(self, held: Mapping[str, Tensor]) -> dict[str, Any]:
        """Compute the figures from everything gathered."""

    @abstractmethod
    def scores(self, summary: Mapping[str, Any]) -> Mapping[str, float]:
        """Pick the figures for Lightning's table."""

    @abstractmethod
    def write(self, folder: Path, held: Mapping[str, Tensor]) -> None:
        """Write the files beside `result.json`."""

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "backbone": type(self.backbone).__name__,
            "weights": self._weights,
            "reducer": repr(self.reducer),
            "code": code_of(self.reducer),
            "placement": str(self.placement),
            "seed": self.seed,
            "precision": str(self.trainer.precision),
            **self.settings(),
        }

    def _write(self, folder: Path, held: Mapping[str, Tensor]) -> None:
        assert self.attached is not None
        self.write(folder, held)
        if self.recipe:
            (folder / "recipe.yaml").write_text(self.recipe)
        sites = [{"name": s.name, "before": s.before, "after": s.after} for s in self.attached.sites]
        content = {
            "summary": self.summary,
            "settings": self._identity(),
            "sites": sites,
            "seconds_of_last_part": round(time.monotonic() - self._began, 1),
            **provenance(self.device),
        }
        write_json(folder / RESULT_FILE, content)


class _Cleanup(Callback):
    """Detaches whatever happened, and says where unfinished work lies."""

    def teardown(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EvaluationTask)
        pl_module.release()

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, EvaluationTask)
        pl_module.release()
        store = pl_module._store  # noqa: SLF001
        if store is not None and store.done and trainer.is_global_zero:
            print(
                f"\n{len(store.done)} finished items are kept in {store.partial}; "
                "the same command with --resume goes on."
            )
