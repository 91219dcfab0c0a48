"""Chunks: the unit of work and of resuming."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bigain.errors import SettingError

__all__ = ["Chunk", "Chunked", "chunk_count", "chunk_loader", "finished_chunks"]

Chunk = dict[str, Any]
"""`chunk`, the number, and tensors with one row for each item; one of them is `index`, int64 `[B]`."""


class Chunked(Protocol):
    """Items that can be divided into chunks."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the items with these indices."""


def chunk_count(items: int, size: int) -> int:
    """Return how many chunks of `size` items there are; the last may be smaller."""
    return -(-items // size)


def chunk_loader(dataset: Chunked, size: int, done: Collection[int] = (), workers: int = 0) -> DataLoader[Chunk]:
    """Load the chunks of this process that are not done.

    Chunk k always has the items `k * size` to `(k + 1) * size`. Of P processes the one
    with rank r takes the chunks r, r + P, r + 2 P, ..

    Args:
        dataset: The items.
        size: Items in a chunk.
        done: Numbers of chunks to leave out.
        workers: Worker processes; each loads whole chunks.

    Raises:
        SettingError: A size below 1.
    """
    if size < 1:
        raise SettingError(f"chunk is the number of items a chunk, 1 or more; got {size}.")
    chunks = _Chunks(dataset, size)
    return DataLoader(
        chunks,
        batch_size=None,
        sampler=_ChunkSampler(chunks, done),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def finished_chunks(data: LightningDataModule) -> Collection[int]:
    """Return the chunks that an earlier run of the task of a data module's trainer has finished."""
    task = getattr(data.trainer, "lightning_module", None)
    finished: Collection[int] = getattr(task, "finished_chunks", ())
    return finished


class _Chunks(Dataset[Chunk]):
    def __init__(self, dataset: Chunked, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __len__(self) -> int:
        return chunk_count(len(self._dataset), self._size)

    def __getitem__(self, chunk: int) -> Chunk:
        first = chunk * self._size
        items = range(first, min(first + self._size, len(self._dataset)))
        return {"chunk": chunk, **self._dataset.batch(items)}


class _ChunkSampler(DistributedSampler[Any]):
    """Each chunk once over all processes. Lightning would pad any sampler but a DistributedSampler."""

    def __init__(self, chunks: _Chunks, done: Collection[int]) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        super().__init__(chunks, num_replicas=world, rank=rank, shuffle=False)
        self._own = [chunk for chunk in range(rank, len(chunks), world) if chunk not in frozenset(done)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._own)

    def __len__(self) -> int:
        # Without batches Lightning would skip the end of the loop too, where results are published.
        return max(1, len(self._own))
