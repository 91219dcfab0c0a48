"""The LightningDataModule of labelled images: embedded, parquet, class folders or data sets as published."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigain.assets import asset
from bigain.data.chunks import Chunk, chunk_loader, finished_chunks
from bigain.data.classes import CIFAR10_CLASSES, named_classes
from bigain.data.dataset import ImageDataset, Subset
from bigain.data.prompts import PROMPT, fill_prompt
from bigain.data.resident import ResidentBatches
from bigain.data.sources.official import is_official
from bigain.errors import DataError, SettingError

__all__ = ["ImageData"]


class ImageData(LightningDataModule):
    """Labelled images for training and evaluation.

    Args:
        train: Parquet file, class folders, a known data set, a Hugging Face data set on disk or WebDataset shards to
            train on; needed by `fit` only.
        test: The same for `validate` and `test`. Default: the embedded 5,000
            test images of CIFAR-10 (JPEG).
        image_size: Side of the square images, in pixels.
        classes: Class names in label order, or a list that ships, such as imagenet-1k (`bigain list classes`).
            Default: those of a data set that has its own, otherwise CIFAR-10's.
        limit: Use at most so many test images.
        subset: Which of them: the `first`, or `balanced`, equal numbers of each class as far as they go.
        subset_seed: Seeds the choice of `balanced`.
        chunk: Images in a chunk, the unit of work and of resuming; in training, images in a batch.
        num_workers: Processes that read and decode images.
        prompt: The prompt of a class, for models that take prompts; `{class}` is its name.
        skip_corrupt: Leave out images that cannot be read, and say which, instead of refusing to begin.
        resident: Keep the training images on the device, as uint8, and draw endless batches there: a run of so many
            steps that is resumed sees the images in the order of one that was not interrupted.
        held_out: So many of the last training images are not trained on.
    """

    def __init__(
        self,
        train: Path | None = None,
        test: Path | None = None,
        image_size: int = 32,
        classes: tuple[str, ...] | str | None = None,
        limit: int | None = None,
        subset: Subset = "first",
        subset_seed: int = 0,
        chunk: int = 128,
        num_workers: int = 0,
        prompt: str = PROMPT,
        skip_corrupt: bool = False,
        resident: bool = False,
        held_out: int = 0,
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise SettingError(f"chunk is the number of images a chunk, 1 or more; got {chunk}.")
        if limit is not None and limit < 1:
            raise DataError(f"limit is the number of images to read, 1 or more; got {limit}.")
        self.train, self.test = train, test
        self.image_size, self.classes = image_size, named_classes(classes)
        self.limit, self.subset, self.subset_seed = limit, subset, subset_seed
        self.chunk, self.num_workers = chunk, num_workers
        fill_prompt(prompt, ())  # refused before any image is read
        self.prompt, self.skip_corrupt = prompt, skip_corrupt
        self._preparation: Callable[[Image.Image], Tensor] | None = None
        self.resident, self.held_out = resident, held_out
        self._train_set: _Decoded | None = None
        self._test_set: ImageDataset | None = None

    def setup(self, stage: str) -> None:
        if self.trainer is not None:  # another model must not see what the last one prepared
            self.prepare_with(getattr(self.trainer.lightning_module, "preparation", None))
        if stage == "fit" and self._train_set is None:
            if self.train is None:
                raise DataError("fit needs images to train on: give --data.train, a parquet file or class folders.")
            images = ImageDataset.open(self.train, self.image_size, self._classes_at(self.train), train=True)
            if images.classes != self.test_set.classes:
                raise DataError(
                    f"{self.train} has {len(images.classes)} classes ({images.classes[0]} ..), "
                    f"{self.test_set.source} {len(self.test_set.classes)} ({self.test_set.classes[0]} ..): "
                    "give images of the same classes, --data.test."
                )
            images = images.checked(self.skip_corrupt, _say)
            if not 0 <= self.held_out < len(images):
                raise DataError(
                    f"held_out is from 0 to {len(images) - 1}, since there are {len(images)} images to train "
                    f"on; got {self.held_out}."
                )
            self._train_set = _Decoded(images.subset(len(images) - self.held_out))
        _ = self.test_set

    @property
    def test_set(self) -> ImageDataset:
        """The images that `validate` and `test` see, checked to be readable."""
        if self._test_set is None:
            path = self.test or asset("cifar10_test/test.parquet")
            images = ImageDataset.open(path, self.image_size, self._classes_at(path))
            images = images.subset(self.limit, self.subset, self.subset_seed)
            self._test_set = images.checked(self.skip_corrupt, _say)
        return self._test_set

    def identity(self) -> dict[str, Any]:
        """Return which images are tested, in types that JSON has: what figures depend on."""
        images = self.test_set
        return {
            "images": len(images),
            "data": images.fingerprint,
            "source": Path(images.source).name,
            **({"left_out": images.left_out} if images.left_out else {}),
            **({"skipped": len(images.skipped)} if images.skipped else {}),
            "subset": self.subset if self.limit else "all",
            "subset_seed": self.subset_seed,
            "chunk": self.chunk,
        }

    def prepare_with(self, preparation: Callable[[Image.Image], Tensor] | None) -> None:
        """Let a model prepare test images itself, from their own size, and match classes by name.

        Without `classes`, class folders then name the classes.

        Args:
            preparation: Makes an RGB image a tensor; `None` for the resize and crop to `image_size`.
        """
        if (self._preparation is None) != (preparation is None) and self.classes is None:
            self._test_set = None
        self._preparation = preparation

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """The prompt of each class, in label order."""
        return fill_prompt(self.prompt, self.test_set.classes)

    def _classes_at(self, path: Path) -> tuple[str, ...] | None:
        """Return the class names to open a path with; none for a data set that has its own."""
        if self.classes is not None:
            return self.classes
        own = is_official(path) or (self._preparation is not None and path.is_dir())
        return None if own else CIFAR10_CLASSES

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]] | ResidentBatches:
        assert self._train_set is not None
        if not self.resident:
            return self._training_loader(self._train_set, shuffle=True)
        trainer: Any = self.trainer
        images, labels = (one.to(trainer.strategy.root_device) for one in self._train_set.tensors)
        seed, rank, processes = torch.initial_seed(), trainer.global_rank, trainer.world_size

        def first() -> int:
            return int(trainer.global_step * trainer.accumulate_grad_batches)

        return ResidentBatches(images, labels, self.chunk, seed, rank, processes, first)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._training_loader(_Decoded(self.test_set), shuffle=False)

    def test_dataloader(self) -> DataLoader[Chunk]:
        images = self.test_set if self._preparation is None else self.test_set.prepared(self._preparation)
        return chunk_loader(images, self.chunk, finished_chunks(self), self.num_workers)

    def _training_loader(self, images: "_Decoded", shuffle: bool) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            images,
            batch_size=self.chunk,
            shuffle=shuffle,
            drop_last=shuffle,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_already_batched,
        )


class _Decoded(Dataset[dict[str, Tensor]]):
    """A small data set in memory, for training: decoded once, one label for each image."""

    def __init__(self, images: ImageDataset) -> None:
        several = [name for name, labels in zip(images.names, images.labels, strict=True) if len(labels) != 1]
        if several:
            raise DataError(f"{images.source}: training takes images with one label each; {several[0]} has another.")
        whole = images.batch(range(len(images)))
        self._images, self._labels = whole["image"], whole["labels"][:, 0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images, uint8 `[N, 3, H, W]`, and their labels, int64 `[N]`."""
        return self._images, self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self._images[index], "label": self._labels[index], "index": torch.tensor(index)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Fetch a whole batch in three indexing operations (a DataLoader calls this)."""
        rows = torch.as_tensor(indices)
        return {"image": self._images[rows], "label": self._labels[rows], "index": rows}


@rank_zero_only
def _say(line: str) -> None:
    print(line)


def _already_batched(batch: Any) -> Any:
    return batch
