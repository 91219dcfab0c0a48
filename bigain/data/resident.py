"""Training images that stay on the device."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bigain.errors import DataError

__all__ = ["ResidentBatches"]


class ResidentBatches:
    """Endless batches of images that lie on a device as uint8.

    Which images a batch has depends on the seed, its number and the number of processes alone, so
    that a run that was interrupted goes on as if it had not been. Every image comes once before any
    comes again, in an order of its own each time; a batch may end one round and begin the next.

    Args:
        images: uint8, `[N, 3, H, W]`.
        labels: int64, `[N]`.
        rows: Images of a batch, on each process.
        seed: Seeds the orders.
        rank: This process.
        processes: How many there are.
        first: Returns the number of the batch to begin with; called when iteration begins.

    Raises:
        DataError: A batch of all processes is larger than the data set.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        rows: int,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        first: Callable[[], int] = lambda: 0,
    ) -> None:
        if rows * processes > len(images):
            raise DataError(f"A step takes {rows * processes} images; there are {len(images)}.")
        self._images, self._labels, self._rows = images, labels, rows
        self._seed, self._rank, self._processes, self._first = seed, rank, processes, first

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number, count, whole = self._first(), len(self._images), self._rows * self._processes
        known: dict[int, Tensor] = {}
        while True:
            start = number * whole + self._rank * self._rows
            turns = {position // count for position in (start, start + self._rows - 1)}
            known = {turn: known[turn] if turn in known else self._order(turn) for turn in turns}
            parts = [
                known[turn][max(0, start - turn * count) : start + self._rows - turn * count] for turn in sorted(turns)
            ]
            index = torch.cat(parts)
            yield {"image": self._images[index], "label": self._labels[index], "index": index}
            number += 1

    def _order(self, turn: int) -> Tensor:
        # On the host, so that the order is the same on every device.
        generator = torch.Generator("cpu").manual_seed((self._seed * 1_000_003 + turn) % 2**63)
        return torch.randperm(len(self._images), generator=generator, device="cpu").to(self._images.device)
