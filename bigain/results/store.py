"""Results that appear whole or not at all, and finished work that survives an interruption."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, distributed

from bigain.errors import DataError, SettingError
from bigain.results.files import FORMAT, read_json, read_result, write_json, write_result, write_whole
from bigain.results.lock import FolderLock

__all__ = [
    "FORMAT",
    "ResultFolder",
    "partial_path",
    "read_json",
    "read_result",
    "write_json",
    "write_result",
]

_RUN, _LOCK, _CHUNKS, _RESULT = "run.json", "lock", "chunks", "result"


def partial_path(output: Path) -> Path:
    """Return the folder of unfinished work on `output`.

    Raises:
        SettingError: `output` is the working directory or contains it, or is a mount point.
    """
    place = output.resolve()
    if place == Path.cwd() or place in Path.cwd().parents or os.path.ismount(place):
        raise SettingError(
            f"--output is a new folder, which appears when the result is whole; got {output}, which is "
            f"{'the folder you are in' if place == Path.cwd() else place}. Give one such as {Path('results') / 'mine'}."
        )
    return output.with_name(output.name + ".partial")


class ResultFolder:
    """A folder that gathers finished chunks and is published at the end.

    Until then everything is in `OUTPUT.partial`; `OUTPUT` itself appears by one rename.
    A chunk is written to a temporary file and renamed, so that a kill at any moment
    leaves whole chunks only. The files of the result are in a folder of their own,
    `folder`, so that their names cannot clash with the store's own files.

    One process at a time works on a result, under a lock that ends with the process. In a
    distributed run, the first process has the lock for all of them.

    Args:
        output: The folder of the finished result.
        identity: What must be equal for a run to be resumed: settings that change figures,
            and none that only change speed.
        resume: Continue the work in `OUTPUT.partial`.

    Attributes:
        partial: The folder of unfinished work.
        folder: The folder that becomes `output`; files of the result may be written to it at any time.
        done: Numbers of the finished chunks.

    Raises:
        SettingError: There is a result or unfinished work at `output` already and
            `resume` is off, the unfinished work was made with other settings, another
            process is at work on it, or `output` cannot be a result.
        DataError: A chunk is damaged, or the folder cannot be written.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], resume: bool = False) -> None:
        self.output, self.partial = Path(output), partial_path(Path(output))
        self.folder = self.partial / _RESULT
        self.done: set[int] = set()
        self._identity: dict[str, Any] = {"format": FORMAT, **json.loads(json.dumps(identity, default=str))}
        self._lock: FolderLock | None = None
        self._refuse_existing()
        self._acquire()
        try:
            self._check(resume)
            with self._in_words():
                for folder in (self.folder, self.partial / _CHUNKS):
                    folder.mkdir(parents=True, exist_ok=True)
                write_json(self.partial / _RUN, self._identity)
            self.done = set(self._numbers())
        except BaseException:
            self.discard_if_empty()
            raise

    def _refuse_existing(self) -> None:
        if self.output.exists():
            raise SettingError(
                f"{self.output} exists already: choose another --output, or remove it. Nothing was overwritten."
            )

    def _acquire(self) -> None:
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
            return
        with self._in_words():
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.partial / _LOCK, self.output)
        # Another process may have published the result since the first look.
        try:
            self._refuse_existing()
        except SettingError:
            self.discard_if_empty()
            raise

    def _check(self, resume: bool) -> None:
        if not self._has_work():
            return
        if not resume:
            raise SettingError(
                f"{self.partial} holds unfinished work: add --resume to finish it, or remove it. "
                "Nothing was overwritten."
            )
        before = read_json(self.partial / _RUN)
        if before.get("format") != FORMAT:
            raise SettingError(
                f"{self.partial} was begun by another version of bigain (format {before.get('format', 1)} then, "
                f"{FORMAT} now) and cannot be resumed: finish it with that version, or remove it."
            )
        keys = sorted(set(before) | set(self._identity))
        changed = [key for key in keys if before.get(key) != self._identity.get(key)]
        if changed:
            both = "; ".join(f"{key}: {before.get(key)} then, {self._identity.get(key)} now" for key in changed)
            raise SettingError(f"{self.partial} was begun with other settings and cannot be resumed ({both}).")

    def _has_work(self) -> bool:
        own = {self.partial / _RUN, self.partial / _LOCK}
        return any(path.is_file() and path not in own and path.suffix != ".tmp" for path in self.partial.rglob("*"))

    def _numbers(self) -> list[int]:
        """Return the numbers of the finished chunks."""
        numbers = []
        for path in sorted((self.partial / _CHUNKS).iterdir()):
            if re.fullmatch(r"\d+\.safetensors", path.name):
                with _named_if_damaged(path), safe_open(path, "pt"):
                    numbers.append(int(path.stem))
        return numbers

    def discard_if_empty(self) -> None:
        """Release the lock, and remove the folder of unfinished work if nothing in it is finished."""
        if self._lock is None:
            return
        if not self._has_work():
            shutil.rmtree(self.partial, ignore_errors=True)
        self._lock.release()
        self._lock = None

    def add(self, chunk: int, tensors: Mapping[str, Tensor]) -> None:
        """Store a finished chunk.

        Args:
            chunk: Its number.
            tensors: Its tensors, by name.

        Raises:
            DataError: It cannot be written; chunks finished before stay.
        """
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        with self._in_words(), write_whole(self._path(chunk)) as temporary:
            temporary.write_bytes(content)
        self.done.add(chunk)

    def chunks(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Read the finished chunks one by one, in order.

        Raises:
            DataError: A chunk is damaged; the message names it.
        """
        for number in self._numbers():
            with _named_if_damaged(self._path(number)):
                tensors = load_file(self._path(number))
            yield number, tensors

    def publish(self, write: Callable[[Path], None]) -> None:
        """Write the final files and rename the folder to `output`.

        Args:
            write: Writes the result's files into a folder.

        Raises:
            DataError: They cannot be written; all finished work stays.
        """
        with self._in_words():
            write(self.folder)
            for path in self.folder.rglob(".*.tmp"):
                path.unlink()
            self._refuse_existing()
            self.folder.replace(self.output)
        # After the rename: if the process stops in between, the result is still whole.
        shutil.rmtree(self.partial, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _path(self, chunk: int) -> Path:
        return self.partial / _CHUNKS / f"{chunk:08d}.safetensors"

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn an error of writing into one sentence."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            where = getattr(error, "filename", None) or self.partial
            reason = _reason(error)
            rest = (
                f"{len(self.done)} finished chunks are in {self.partial}; once it can be written, "
                "the same command with --resume goes on."
                if self.done
                else "Nothing was run. Give another --output, or make room there."
            )
            raise DataError(f"{where} cannot be written: {reason}. {rest}") from error


def _reason(error: Exception) -> str:
    """Return the system's message, by the error number that safetensors puts into its own sentence."""
    number = re.search(r"(?:os error |code: )(\d+)", str(error))
    return os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): remove this one file and resume.") from error
