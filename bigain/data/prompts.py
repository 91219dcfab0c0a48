"""What to generate: classes, prompts and seeds."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from bigain.data.chunks import Chunk, chunk_loader, finished_chunks
from bigain.data.classes import CIFAR10_CLASSES, named_classes
from bigain.errors import SettingError

__all__ = ["ClassPrompts", "fill_prompt"]

PROMPT = "a photo of a {class}"
"""The default prompt of a class."""


class ClassPrompts(LightningDataModule):
    """Classes in turn, each image with a seed of its own.

    Image i has class `i % len(classes)` and seed `first_seed + i`, whatever the chunk size.

    Args:
        count: Images to generate.
        classes: Class names in label order, or a list that ships, such as imagenet-1k (`bigain list classes`).
        prompt: The prompt of a class, for models that take prompts; `{class}` is its name.
        first_seed: Seed of the first image.
        chunk: Images in a chunk, the unit of work and of resuming.
    """

    def __init__(
        self,
        count: int = 5000,
        classes: tuple[str, ...] | str = CIFAR10_CLASSES,
        prompt: str = PROMPT,
        first_seed: int = 0,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        classes = named_classes(classes) or ()
        if count < 2 or not classes or chunk < 1:
            raise SettingError(
                f"ClassPrompts got count={count}, {len(classes)} classes, chunk={chunk}; accepted are "
                "count >= 2 (a distance needs two images), one class or more, chunk >= 1."
            )
        self.count, self.classes, self.first_seed, self.chunk = count, classes, first_seed, chunk
        self.prompt, self.class_prompts = prompt, fill_prompt(prompt, classes)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return `index`, `label` and `seed` of images, int64 `[B]` each."""
        index = torch.tensor(indices, dtype=torch.int64)
        return {"index": index, "label": index % len(self.classes), "seed": self.first_seed + index}

    def test_dataloader(self) -> DataLoader[Chunk]:
        return chunk_loader(self, self.chunk, finished_chunks(self))


def fill_prompt(prompt: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the prompt of each class, in label order.

    Raises:
        SettingError: `{class}` is missing from the prompt, so that all classes would have the same.
    """
    if "{class}" not in prompt:
        raise SettingError(f"A prompt names the class as {{class}}, such as {PROMPT!r}; got {prompt!r}.")
    return tuple(prompt.replace("{class}", name) for name in classes)
