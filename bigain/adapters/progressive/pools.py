"""Pooling of tokens that stand for several, weighted by size."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.attachment import Attachment
from bigain.adapters.base import Undo
from bigain.errors import SiteError
from bigain.functional.weighted import mean_by_size
from bigain.reducers.base import Reduction

__all__ = ["AttentionPool", "MeanPool", "Pool", "Progress"]


@dataclass
class Progress:
    """What the blocks of one pass pass on to the next in progressive placements.

    Args:
        sizes: How many tokens each token stands for, `[B, N]`; `None` until something merges.
        plans: The reductions so far, in order.
        merges: Whether some block merges.
    """

    sizes: Tensor | None = None
    plans: tuple[Reduction, ...] = ()
    merges: bool = True

    def clear(self) -> None:
        """Clear per-pass state."""
        self.sizes, self.plans = None, ()

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Clear per-pass state, before the pass."""
        self.clear()

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Clear per-pass state, after the pass or an exception in it."""
        self.clear()

    def sizes_of(self, tokens: Tensor, prefix: int = 0) -> Tensor | None:
        """Return how many tokens each of `tokens` (`[B, N, C]`) stands for, `[B, N]`; `None` for one each.

        Args:
            tokens: The last block's output.
            prefix: How many of its first tokens may be missing.

        Raises:
            SiteError: Not as many rows or tokens as the last block returned.
        """
        if self.sizes is None:
            return None
        rows, count = tokens.shape[:2]
        missing = self.sizes.shape[1] - count
        if rows != self.sizes.shape[0] or missing not in (0, prefix):
            raise SiteError(
                f"{rows} rows of {count} tokens came where the blocks had given {self.sizes.shape[0]} of "
                f"{self.sizes.shape[1]}; tokens stay merged from block to block, so each pass has to run all blocks "
                "in their order, and pool what the last one gave."
            )
        return self.sizes[:, missing:]

    def pooled(self, tokens: Tensor, attachment: Attachment, prefix: int = 0) -> Tensor | None:
        """Return what `sizes_of` does, for tokens that are pooled, perhaps outside a pass.

        Raises:
            SiteError: Also if their sizes are no longer known.
        """
        if self.sizes is None and attachment.moment is None and self.merges:
            raise SiteError(
                f"{type(attachment.model).__name__} was asked to pool tokens by themselves, and how many each of them "
                "stands for is known only from forward_features to the next pass: call forward_head right after it."
            )
        return self.sizes_of(tokens, prefix)


class Pool(ABC):
    """A place where a model makes one vector of its tokens."""

    @abstractmethod
    def install(self, attachment: Attachment, progress: Progress) -> Undo:
        """Weight its tokens; return what undoes it."""


@dataclass(frozen=True)
class AttentionPool(Pool):
    """Attention of a learned query to the tokens.

    Args:
        module: Path of the attention in the model.
        argument: Name of its argument that is added to the logits.
        spread: Whether that argument is `[B, 1, 1, N]`, rather than `[B, N]`.
        tokens: Position of the argument for the tokens.
        prefix: How many of the first tokens may be left out.
    """

    module: str
    argument: str
    spread: bool
    tokens: int = 0
    prefix: int = 0

    def install(self, attachment: Attachment, progress: Progress) -> Undo:
        work = WeightedAttentionPool(self, attachment, progress)
        module = attachment.model.get_submodule(self.module)
        return [module.register_forward_pre_hook(work.before, with_kwargs=True).remove]


class WeightedAttentionPool:
    """Adds log(size) to the logits of a pooling attention.

    Args:
        pool: Where and how the model pools.
        attachment: The reducer's attachment to the model.
        progress: How many tokens each token stands for.
    """

    def __init__(self, pool: AttentionPool, attachment: Attachment, progress: Progress) -> None:
        self._pool, self._attachment, self._progress = pool, attachment, progress

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put the weights into the call."""
        pool = self._pool
        tokens: Tensor = args[pool.tokens]
        sizes = self._progress.pooled(tokens, self._attachment, pool.prefix)
        if sizes is None:
            return None
        bias = sizes.log().to(tokens.dtype)
        return args, {**kwargs, pool.argument: bias[:, None, None] if pool.spread else bias}


@dataclass(frozen=True)
class MeanPool(Pool):
    """The mean of the tokens behind the prefix, taken between two modules of the model.

    Args:
        source: Path of the module whose output, or its first item, are the tokens.
        target: Path of the module that takes the mean, perhaps with other channels before it.
        prefix: Tokens that the mean leaves out.
    """

    source: str
    target: str
    prefix: int

    def install(self, attachment: Attachment, progress: Progress) -> Undo:
        work, model = WeightedMean(self.prefix, progress), attachment.model
        return [
            model.get_submodule(self.source).register_forward_hook(work.keep).remove,
            model.get_submodule(self.target).register_forward_pre_hook(work.before).remove,
        ]


class WeightedMean:
    """Replaces a model's plain mean by the weighted one.

    Args:
        prefix: Tokens that the mean leaves out.
        progress: How many tokens each token stands for.
    """

    def __init__(self, prefix: int, progress: Progress) -> None:
        self._prefix, self._progress = prefix, progress
        self._tokens: Tensor | None = None

    def keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the tokens until they are pooled."""
        self._tokens = output if isinstance(output, Tensor) else output[0]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Replace the mean, the last C channels of the input."""
        tokens, self._tokens = self._tokens, None
        sizes = None if tokens is None else self._progress.sizes_of(tokens)
        if tokens is None or sizes is None:
            return None
        mean = mean_by_size(tokens[:, self._prefix :], sizes[:, self._prefix :])
        pooled: Tensor = args[0]
        before = pooled[:, : pooled.shape[1] - mean.shape[1]]
        return torch.cat([before, mean], dim=1), *args[1:]
