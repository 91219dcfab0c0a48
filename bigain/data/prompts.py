"""What to generate: classes and seeds."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigain.errors import SettingError

__all__ = ["ClassPrompts"]

Batch = dict[str, Tensor]


class _Seeded(Dataset[Batch]):
    def __init__(self, count: int, classes: int, first_seed: int) -> None:
        self._count, self._classes, self._first = count, classes, first_seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        return {
            "index": torch.tensor(index),
            "label": torch.tensor(index % self._classes),
            "seed": torch.tensor(self._first + index),
        }


class ClassPrompts(LightningDataModule):
    """Labels in turn, each with a seed of its own.

    Image i has class `i % classes` and seed `first_seed + i`, whatever the batch.

    Args:
        count: Images to generate.
        classes: Number of classes.
        first_seed: Seed of the first image.
        batch_size: Images a batch and device.
    """

    def __init__(self, count: int = 5000, classes: int = 10, first_seed: int = 0, batch_size: int = 64) -> None:
        super().__init__()
        if count < 2 or classes < 1 or batch_size < 1:
            raise SettingError(
                f"ClassPrompts got count={count}, classes={classes}, batch_size={batch_size}; accepted are "
                "count >= 2 (a distance needs two images), classes >= 1, batch_size >= 1."
            )
        self.count, self.classes, self.first_seed, self.batch_size = count, classes, first_seed, batch_size

    def test_dataloader(self) -> DataLoader[Batch]:
        images = _Seeded(self.count, self.classes, self.first_seed)
        return DataLoader(images, batch_size=self.batch_size)
