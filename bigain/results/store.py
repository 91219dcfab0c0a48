"""Results that appear whole or not at all, and work that an interruption does not lose."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigain.errors import DataError, SettingError

__all__ = ["ResultFolder", "partial_path", "read_json", "write_json"]

RUN_FILE = "run.json"
_PARTS = "parts"


def partial_path(output: Path) -> Path:
    """Where the work towards `output` is kept until it is whole."""
    return output.with_name(output.name + ".partial")


class ResultFolder:
    """A folder that gathers finished items batch by batch and is published at the end.

    Until then everything lies in `OUTPUT.partial`; `OUTPUT` itself appears by one
    rename. A batch is written to a temporary file and renamed, so that a kill at
    any moment leaves whole batches only.

    Args:
        output: The folder of the finished result.
        identity: What must be equal for work to be continued: settings that
            change figures, and none that only change speed.
        resume: Continue what `OUTPUT.partial` holds.

    Raises:
        SettingError: There is a result or unfinished work at `output` already and
            `resume` is off, or the unfinished work was made with other settings.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], resume: bool = False) -> None:
        self.output, self.partial = Path(output), partial_path(Path(output))
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._check(resume)
        self.done: set[int] = set(self._gather(("index",)).get("index", torch.zeros(0)).tolist())

    def _check(self, resume: bool) -> None:
        if self.output.exists():
            raise SettingError(
                f"{self.output} exists already: choose another --output, or remove it. Nothing was overwritten."
            )
        if not self.partial.exists() or not any(self.partial.iterdir()):
            return
        if not resume:
            raise SettingError(
                f"{self.partial} holds unfinished work: add --resume to finish it, or remove it. "
                "Nothing was overwritten."
            )
        before = read_json(self.partial / RUN_FILE)
        keys = sorted(set(before) | set(self._identity))
        changed = [key for key in keys if before.get(key) != self._identity.get(key)]
        if changed:
            told = "; ".join(f"{key}: {before.get(key)} then, {self._identity.get(key)} now" for key in changed)
            raise SettingError(f"{self.partial} was begun with other settings and cannot be resumed ({told}).")

    def begin(self) -> None:
        """Create the folder of unfinished work, with the settings it belongs to."""
        if not (self.partial / RUN_FILE).exists():
            self.partial.mkdir(parents=True, exist_ok=True)
            write_json(self.partial / RUN_FILE, self._identity)

    def discard_if_empty(self) -> None:
        """Remove the folder of unfinished work if nothing in it is finished."""
        kept = [path for path in self.partial.rglob("*") if path.is_file() and path.name != RUN_FILE]
        if not kept:
            shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, index: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep a finished batch.

        Args:
            index: int64, `[B]`, which items these are.
            values: Tensors with B rows each.
        """
        self.begin()
        parts = self.partial / _PARTS
        parts.mkdir(exist_ok=True)
        first, process = int(index[0]), os.getpid()
        temporary = parts / f".{first:08d}-{process}.tmp"
        tensors = {"index": index, **values}
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
        temporary.replace(parts / f"{first:08d}-{process}-{len(self.done):08d}.safetensors")
        self.done.update(index.tolist())

    def gather(self) -> dict[str, Tensor]:
        """Return everything kept so far, in the order of the index, each item once."""
        found = self._gather(None)
        if not found:
            return {}
        # Devices may share an item when the count does not divide; either copy will do.
        order = {item: row for row, item in enumerate(found["index"].tolist())}
        rows = torch.tensor([order[item] for item in sorted(order)], dtype=torch.int64)
        return {key: value[rows] for key, value in found.items()}

    def _gather(self, keys: tuple[str, ...] | None) -> dict[str, Tensor]:
        pieces: dict[str, list[Tensor]] = {}
        for part in sorted((self.partial / _PARTS).glob("[0-9]*.safetensors")):
            try:
                held = load_file(part)
            except (SafetensorError, OSError) as error:
                raise DataError(f"{part} is damaged ({error}): remove this one file and resume.") from error
            for key in keys or held:
                pieces.setdefault(key, []).append(held[key])
        return {key: torch.cat(values) for key, values in pieces.items()}

    def publish(self, write: Callable[[Path], None]) -> None:
        """Write the final files and let the folder appear.

        Args:
            write: Writes the result's files into the folder it is given.
        """
        self.begin()
        write(self.partial)
        # Tidied up after the rename: stopped in between, the result is whole all the same.
        self.partial.replace(self.output)
        shutil.rmtree(self.output / _PARTS, ignore_errors=True)
        (self.output / RUN_FILE).unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is whole or absent."""
    # Several processes of one run may write the same content at once.
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return content
