"""The errors of a diffusion classifier, stored sparsely."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigain.errors import DataError

__all__ = ["Errors"]

_TYPES = {"image": torch.int32, "label": torch.int32, "step": torch.int16, "error": torch.float32}


@dataclass(frozen=True)
class Errors:
    """The error of each (image, class, timestep) that was evaluated, and no other.

    Staged pruning evaluates a small share: for 2,000 images, 1,000 classes and 100
    timesteps, a dense tensor would take 800 MB, nearly all of it empty.

    Args:
        image: int32, `[E]`, index of the image.
        label: int32, `[E]`, the class that was evaluated.
        step: int16, `[E]`, index into `timesteps`.
        error: float32, `[E]`.
        timesteps: `[M]`, the timesteps that `step` counts.
        weights: float32, `[M]`: how much each counts in a mean; `None` where all count alike.
    """

    image: Tensor
    label: Tensor
    step: Tensor
    error: Tensor
    timesteps: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(
        cls, dense: Tensor, index: Tensor, timesteps: Tensor | None = None, weights: Tensor | None = None
    ) -> "Errors":
        """Take the evaluated errors of some images.

        Args:
            dense: `[B, K, M]`, NaN where nothing was evaluated.
            index: int64, `[B]`, the indices of these images.
            timesteps: `[M]`; default: 0 to M - 1.
            weights: `[M]`; default: all count alike.
        """
        dense, index = dense.detach().cpu(), index.cpu()
        row, label, step = (~dense.isnan()).nonzero(as_tuple=True)
        steps = torch.arange(dense.shape[2]) if timesteps is None else timesteps.cpu()
        return cls(
            index[row].to(_TYPES["image"]),
            label.to(_TYPES["label"]),
            step.to(_TYPES["step"]),
            dense[row, label, step].to(_TYPES["error"]),
            steps,
            None if weights is None else weights.to("cpu", torch.float32),
        )

    @classmethod
    def concat(cls, parts: Iterable["Errors"]) -> "Errors":
        """Join the errors of several chunks, which have the same timesteps.

        Raises:
            DataError: There are no parts, or their timesteps or weights differ.
        """
        whole = list(parts)
        if not whole:
            raise DataError("There are no errors to join.")
        if any(not torch.equal(part.timesteps, whole[0].timesteps) for part in whole):
            raise DataError("Errors of different timesteps cannot be joined.")
        if any(not _equal(part.weights, whole[0].weights) for part in whole):
            raise DataError("Errors of differently weighted timesteps cannot be joined.")
        joined = {key: torch.cat([getattr(part, key) for part in whole]) for key in _TYPES}
        return cls(**joined, timesteps=whole[0].timesteps, weights=whole[0].weights)

    def renumbered(self, index: Tensor) -> "Errors":
        """Number images by their place in `index`: ascending int64 `[N]`, with every image that has errors."""
        return replace(self, image=torch.searchsorted(index, self.image.long()).to(_TYPES["image"]))

    def __len__(self) -> int:
        return len(self.error)

    def dense(self, images: int, classes: int) -> Tensor:
        """Return float32 `[images, classes, M]`, NaN where nothing was evaluated."""
        dense = torch.full((images, classes, len(self.timesteps)), torch.nan)
        dense[self.image.long(), self.label.long(), self.step.long()] = self.error
        return dense

    def mean(self, images: int | None = None, classes: int | None = None) -> Tensor:
        """Return the mean error of each image and class over its timesteps, by their weights.

        Args:
            images: Number of images; default: the largest index plus one.
            classes: Number of classes; default: the largest label plus one.

        Returns:
            float32 `[images, classes]`, NaN where nothing was evaluated.
        """
        rows = _count(self.image) if images is None else images
        columns = _count(self.label) if classes is None else classes
        place = self.image.long() * columns + self.label.long()
        nothing = torch.zeros(rows * columns, dtype=torch.float64)
        weights = torch.ones(len(self), dtype=torch.float64)
        if self.weights is not None:
            weights = self.weights.double()[self.step.long()]
        total = nothing.index_add(0, place, self.error.double() * weights)
        return (total / nothing.index_add(0, place, weights)).float().reshape(rows, columns)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as `from_tensors` reads them."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return {**{key: getattr(self, key) for key in _TYPES}, "timesteps": self.timesteps, **weights}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Errors":
        """Read what `tensors` returned; other entries are ignored.

        Raises:
            DataError: A tensor is missing, or has another type or length.
        """
        missing = [key for key in (*_TYPES, "timesteps") if key not in tensors]
        if missing:
            raise DataError(f"Errors are stored as {', '.join(_TYPES)} and timesteps; missing: {', '.join(missing)}.")
        wrong = [key for key, dtype in _TYPES.items() if tensors[key].dtype != dtype or tensors[key].ndim != 1]
        if wrong or len({len(tensors[key]) for key in _TYPES}) != 1:
            accepted = ", ".join(f"{key} ({dtype})" for key, dtype in _TYPES.items())
            given = ", ".join(f"{key} {list(tensors[key].shape)} ({tensors[key].dtype})" for key in _TYPES)
            raise DataError(f"Stored errors are one row each of {accepted}; got {given}.")
        return cls(**{key: tensors[key] for key in (*_TYPES, "timesteps")}, weights=tensors.get("weights"))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({key: value.contiguous() for key, value in self.tensors().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Errors":
        """Read a file that `save` wrote.

        Raises:
            DataError: The file is missing, damaged or something else.
        """
        try:
            return cls.from_tensors(load_file(path))
        except (SafetensorError, OSError, DataError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _count(indices: Tensor) -> int:
    return int(indices.max()) + 1 if len(indices) else 0
