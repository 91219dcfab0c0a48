"""What the network is conditioned on, one row for each label or prompt."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["Condition"]

_AXES = {"labels": 1, "states": 3, "mask": 2, "pooled": 2}


@dataclass(frozen=True, eq=False)
class Condition:
    """Embedded labels or prompts.

    Stays on the host: a forward pass takes its rows (`take`) and moves only those (`to`).

    Args:
        labels: int64, `[K]`.
        states: Text states, `[K, L, D]`.
        mask: Which text states are attended to, `[K, L]`.
        pooled: Pooled text, `[K, D]`.
        added: What is the same for every row, each `[1, ...]`: SDXL's sizes and crop,
            PixArt's resolution, FLUX's guidance.

    Raises:
        SettingError: No rows, tensors of different numbers of rows, or of other shapes.
    """

    labels: Tensor | None = None
    states: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.tensors
        shapes = {name: tuple(value.shape) for name, value in rows.items()}
        if not rows or any(len(shape) != _AXES[name] for name, shape in shapes.items()):
            raise SettingError(
                f"Condition got {_shown(shapes)}; accepted are labels [K], states [K, L, D], mask [K, L] and "
                "pooled [K, D], at least one of them."
            )
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise SettingError(f"Condition got {_shown(shapes)}: all have the same number of rows.")
        wrong = {name: tuple(value.shape) for name, value in self.added.items() if value.shape[:1] != (1,)}
        if wrong:
            raise SettingError(f"Condition got added {_shown(wrong)}: each is [1, ...], the same for every row.")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors with a row for each condition, by name."""
        given = {"labels": self.labels, "states": self.states, "mask": self.mask, "pooled": self.pooled}
        return {name: value for name, value in given.items() if value is not None}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, rows: Tensor | Sequence[int]) -> "Condition":
        """Gather rows, which may repeat.

        Args:
            rows: Row numbers on the host.

        Raises:
            SettingError: The rows are on a device: reading them would need a host synchronisation.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        if index.device.type != "cpu":
            raise SettingError(f"Rows of a condition are taken on the host; these lie on {index.device}.")
        return Condition(**{n: value[index.to(value.device)] for n, value in self.tensors.items()}, added=self.added)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Condition":
        """Move to a device without waiting for it; `dtype` changes floating-point tensors only."""

        def moved(value: Tensor) -> Tensor:
            value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
            if torch.device(device).type == "cuda" and value.device.type == "cpu":
                value = value.pin_memory()
            return value.to(device, non_blocking=True)

        rows = {name: moved(value) for name, value in self.tensors.items()}
        return Condition(**rows, added={name: moved(value) for name, value in self.added.items()})

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join the rows of conditions that have the same tensors; `added` is that of the first.

        Raises:
            SettingError: They have different tensors.
        """
        first = parts[0].tensors
        if any(part.tensors.keys() != first.keys() for part in parts):
            raise SettingError(
                "Conditions of different tensors cannot be joined: "
                + "; ".join(", ".join(part.tensors) for part in parts)
            )
        joined = {name: torch.cat([part.tensors[name] for part in parts]) for name in first}
        return Condition(**joined, added=parts[0].added)

    def identity(self) -> dict[str, str]:
        """Fingerprint every tensor: the first 16 hexadecimal digits of SHA-256 over type, shape and values."""
        return {name: _fingerprint(value) for name, value in {**self.tensors, **self.added}.items()}


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _fingerprint(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
