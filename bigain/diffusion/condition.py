"""What the network is conditioned on, one row for each label or prompt."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["Condition", "Conditions", "PromptConditions"]

_AXES = {"labels": 1, "states": 3, "mask": 2, "pooled": 2}

_HOLD = 512 * 2**20
"""Bytes of embedded prompts in memory."""


class Conditions(Protocol):
    """A row for each label or prompt, on the host or brought there when it is asked for."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor | Sequence[int]) -> "Condition":
        """Gather rows, which may repeat."""

    def identity(self) -> dict[str, str]:
        """Fingerprint every tensor of all rows."""


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
        index = _on_host(rows)
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


class PromptConditions:
    """Prompts that are embedded when their rows are taken.

    Thousands of prompts of a large text encoder do not fit into memory. The first ones stay, up to `hold` bytes;
    others are embedded again, which a backbone that keeps text embeddings on disk answers from there.

    Args:
        embed: Embeds prompts, a row for each, on the host.
        prompts: One prompt or more.
        hold: Bytes of embedded prompts that stay in memory; half as many are embedded at once for the fingerprint.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Condition], prompts: Sequence[str], hold: int = _HOLD) -> None:
        self._embed, self._prompts, self._hold = embed, tuple(prompts), hold
        self._rows: dict[int, Condition] = {}
        self._held = 0
        self._identity: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self, rows: Tensor | Sequence[int]) -> Condition:
        """Gather rows, which may repeat.

        Raises:
            SettingError: The rows are on a device, or a prompt cannot be embedded.
        """
        index = _on_host(rows).tolist()
        missing = [row for row in dict.fromkeys(index) if row not in self._rows]
        found = {row: self._rows[row] for row in index if row in self._rows}
        if missing:
            embedded = self._embed([self._prompts[row] for row in missing])
            # Each row a copy, so that one that stays does not keep the others in memory.
            found |= {row: embedded.take([place]) for place, row in enumerate(missing)}
        for row in missing:
            if self._held + _bytes_of(found[row]) <= self._hold:
                self._rows[row] = found[row]
                self._held += _bytes_of(found[row])
        return Condition.cat([found[row] for row in index])

    def identity(self) -> dict[str, str]:
        """Fingerprint every tensor, as the condition of all prompts at once would; embeds each prompt."""
        if not self._identity:
            first = self.take([0])
            digests = {
                name: _Fingerprint(value, (len(self), *value.shape[1:])) for name, value in first.tensors.items()
            }
            size = max(1, self._hold // 2 // max(1, _bytes_of(first)))
            for start in range(0, len(self), size):
                part = self.take(range(start, min(start + size, len(self)))).tensors
                for name, digest in digests.items():
                    digest.update(part[name])
            added = {name: _fingerprint(value) for name, value in first.added.items()}
            self._identity = {name: digest.text for name, digest in digests.items()} | added
        return self._identity


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _on_host(rows: Tensor | Sequence[int]) -> Tensor:
    index = torch.as_tensor(rows, dtype=torch.int64)
    if index.device.type != "cpu":
        raise SettingError(f"Rows of a condition are taken on the host; these lie on {index.device}.")
    return index


def _bytes_of(condition: Condition) -> int:
    return sum(value.nbytes for value in condition.tensors.values())


class _Fingerprint:
    """The first 16 hexadecimal digits of SHA-256 over a tensor's type, shape and values, given part by part."""

    def __init__(self, like: Tensor, shape: Sequence[int]) -> None:
        self._digest = hashlib.sha256(f"{like.dtype} {tuple(shape)}".encode())

    def update(self, part: Tensor) -> None:
        flat = part.detach().cpu().contiguous().reshape(-1)
        self._digest.update(flat.view(torch.uint8).numpy().data)

    @property
    def text(self) -> str:
        return self._digest.hexdigest()[:16]


def _fingerprint(value: Tensor) -> str:
    found = _Fingerprint(value, value.shape)
    found.update(value)
    return found.text
