"""What tasks share that run a model over chunks and write one result folder."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from bigain.data.dataset import ImageDataset
from bigain.errors import SettingError
from bigain.profiling.modes import GRAPHS
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.provenance import provenance
from bigain.results.scores import Score, distinct
from bigain.results.store import ResultFolder, write_result

__all__ = ["RESULT_FILE", "ResultTask", "compiled", "predictions_of"]

RESULT_FILE = "result.json"


class ResultTask(LightningModule, ABC):
    """Runs something over chunks of data and writes one result folder.

    Args:
        output: Folder of the result; it appears when the result is complete.
        resume: Finish the interrupted run whose partial result is beside `output`.

    Attributes:
        kind: Kind of the result, such as `classification`.
        recipe: The whole configuration, stored beside the result; the command line sets it.
        data: The data module, once it is known.
        scores: The figures, once the run has ended; on the first process alone.
    """

    kind: str

    def __init__(self, output: Path, resume: bool) -> None:
        super().__init__()
        self.output, self.resume = Path(output), resume
        self.data: Any = None
        self.scores: list[Score] = []
        self.recipe = ""
        self._store: ResultFolder | None = None
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

    def setup(self, stage: str) -> None:
        self.try_out(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._store = ResultFolder(self.output, self.identity(), self.resume)
        # No process may write before the others have looked for an earlier run.
        self.trainer.strategy.barrier()

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
        self.begin(self._stack)

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

    @abstractmethod
    def try_out(self, data: Any) -> None:
        """Refuse what this task cannot do with a data module, before any work.

        Raises:
            BigainError: A setting is impossible, or the method cannot work on this model.
        """

    @abstractmethod
    def begin(self, stack: ExitStack) -> None:
        """Put the method to work; what the stack is given ends with the run, also after an exception."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed, and what the figures depend on."""

    @property
    @abstractmethod
    def sites(self) -> list[dict[str, Any]]:
        """The modules that a reducer works in, with tokens before and after."""

    @abstractmethod
    def summarize(self, folder: Path) -> tuple[list[Score], dict[str, Any]]:
        """Write the files beside `result.json`; return the scores, and further fields of `result.json`."""

    def _write(self, folder: Path) -> None:
        scores, facts = self.summarize(folder)
        self.scores = distinct(scores)
        if self.recipe:
            (folder / "recipe.yaml").write_text(self.recipe)
        content = {
            "scores": [score.to_json() for score in self.scores],
            **facts,
            "settings": self.identity(),
            "sites": self.sites,
            "seconds_of_last_part": round(time.monotonic() - self._began, 1),
            **provenance(self.device),
        }
        write_result(folder / RESULT_FILE, content)


def compiled(network: nn.Module) -> AbstractContextManager[object]:
    """Compile a network within a `with` block, to at most `GRAPHS` graphs."""
    stack = ExitStack()
    torch._dynamo.reset()  # noqa: SLF001 as torch's documentation advises between models
    stack.enter_context(torch._dynamo.config.patch(recompile_limit=GRAPHS))  # noqa: SLF001
    stack.callback(setattr, network, "_compiled_call_impl", None)  # torch has no verb to undo compile()
    network.compile(dynamic=False, fullgraph=True)
    return stack


def predictions_of(chunks: Sequence[Mapping[str, Tensor]], images: ImageDataset) -> Predictions:
    """Join the predictions of finished chunks, which are not of all images if the trainer was asked for some batches.

    Args:
        chunks: `index`, `predicted` and stored errors of each.
        images: The images of the run.
    """
    index = torch.cat([tensors["index"] for tensors in chunks])
    done = index.tolist()
    return Predictions(
        tuple(images.names[item] for item in done),
        tuple(images.labels[item] for item in done),
        torch.cat([tensors["predicted"] for tensors in chunks]),
        Errors.concat(Errors.from_tensors(tensors) for tensors in chunks).renumbered(index),
        images.classes,
    )


class _Cleanup(Callback):
    """Detaches the method, also after an exception, and says where unfinished work is."""

    def teardown(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ResultTask)
        pl_module.release()

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, ResultTask)
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
