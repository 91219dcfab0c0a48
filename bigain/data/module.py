"""The LightningDataModule of labelled images: embedded, parquet or class folders."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from bigain.assets import asset
from bigain.data.dataset import CIFAR10_CLASSES, LabelledImages, load_images
from bigain.errors import DataError

__all__ = ["LabelledImageData"]

Batch = dict[str, Tensor]


class LabelledImageData(LightningDataModule):
    """Labelled images for training and evaluation.

    Args:
        train: Parquet file or class folders to train on; needed by `fit` only.
        test: The same for `validate` and `test`. Default: the embedded 5,000
            test images of CIFAR-10 (JPEG).
        image_size: Side of the square images, in pixels.
        classes: Class names in label order.
        batch_size: Images a batch and device.
        limit: Use only the first so many test images.
        num_workers: Worker processes. Images are decoded once and held in
            memory, so 0 is usually the fastest.
    """

    def __init__(
        self,
        train: Path | None = None,
        test: Path | None = None,
        image_size: int = 32,
        classes: tuple[str, ...] = CIFAR10_CLASSES,
        batch_size: int = 128,
        limit: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.test = train, test
        self.image_size, self.classes = image_size, classes
        self.batch_size, self.limit, self.num_workers = batch_size, limit, num_workers
        self._train_set: LabelledImages | None = None
        self._test_set: LabelledImages | None = None

    def setup(self, stage: str) -> None:
        if stage == "fit" and self._train_set is None:
            if self.train is None:
                raise DataError("fit needs images to train on: give --data.train, a parquet file or class folders.")
            self._train_set = load_images(self.train, self.image_size, self.classes)
        if self._test_set is None:
            path = self.test or asset("cifar10_test/test.parquet")
            self._test_set = load_images(path, self.image_size, self.classes, self.limit)

    @property
    def test_set(self) -> LabelledImages:
        """The images that `validate` and `test` see."""
        if self._test_set is None:
            self.setup("test")
        assert self._test_set is not None
        return self._test_set

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self._train_set is not None
        return self._loader(self._train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def _loader(self, images: LabelledImages, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_already_batched,
        )


def _already_batched(batch: Any) -> Any:
    return batch
