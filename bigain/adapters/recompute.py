"""Plans for blocks that backward recomputes (gradient checkpointing)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bigain.adapters.base import Moment
from bigain.reducers.base import Reduction

__all__ = ["Replay", "Visit", "in_backward"]


@dataclass
class Visit:
    """One run of a block.

    Args:
        moment: What is known of its pass.
        plan: The plan, once made.
    """

    moment: Moment | None = None
    plan: Reduction | None = None


def in_backward() -> bool:
    """Say whether this thread runs backward, so that a block that runs now is recomputed."""
    # As torch.utils.checkpoint does; there is no public way.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # noqa: SLF001


class Replay:
    """The plan of every run of a block that backward may recompute.

    When checkpointing recomputes a block, the timestep and the pass's cache are gone, and
    another pass may have begun. But checkpointing keeps the block's input, so a run is
    found by the input's place in memory. Plans are dropped with the inputs.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[int, int, int], tuple[StorageWeakRef, Visit]] = {}

    def keep(self, layer: int, tokens: Tensor, visit: Visit) -> None:
        """Keep a run of the block at `layer`, whose input is `tokens`."""
        if torch.compiler.is_compiling():
            return
        self._runs = {key: value for key, value in self._runs.items() if not value[0].expired()}  # type: ignore[no-untyped-call]
        self._runs[_key(layer, tokens)] = (StorageWeakRef(tokens.untyped_storage()), visit)  # type: ignore[no-untyped-call]

    def find(self, layer: int, tokens: Tensor) -> Visit | None:
        """Return the run that is being repeated; `None` outside backward, or where there was none."""
        if torch.compiler.is_compiling() or not in_backward():
            return None
        reference, visit = self._runs.get(_key(layer, tokens), (None, None))
        return visit if reference is not None and not reference.expired() else None  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> "Replay":
        return Replay()  # a copied model has runs of its own

    def __reduce__(self) -> tuple[type["Replay"], tuple[()]]:
        return Replay, ()


def _key(layer: int, tokens: Tensor) -> tuple[int, int, int]:
    return layer, tokens.untyped_storage().data_ptr(), int(tokens.storage_offset())
