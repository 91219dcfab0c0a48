"""Where a number came from."""

import hashlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigain import registry

__all__ = ["code_of", "code_of_class", "device_name", "fingerprint", "provenance", "without_home"]

_PACKAGES = ("bigain", "torch", "lightning", "diffusers", "torchmetrics", "numpy")


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Describe the software, the device and the time of a measurement."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *map(without_home, sys.argv[1:])]),
        "device": device_name(torch.device(device)),
        "git_revision": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*_PACKAGES, *_plugins())},
    }


def without_home(text: str) -> str:
    """Write the user's home folder as `~` wherever a text names it: results are shown to others."""
    try:
        home = str(Path.home())
    except RuntimeError:  # no such user
        return text
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?![^/\s,:'\"])", "~", text)


def code_of(given: object) -> dict[str, str]:
    """Hash the files of classes that are not bigain's own: with a changed formula, a name means another method.

    Args:
        given: A reducer or a scorer; those among its settings are hashed too.

    Returns:
        The first 16 hexadecimal digits of SHA-256 for each class, by its path.
    """
    found: dict[str, str] = {}
    for value in (given, *_within(vars(given) if hasattr(given, "__dict__") else {})):
        if hasattr(value, "__dict__"):
            found |= code_of_class(type(value))
            found |= {} if value is given else code_of(value)
    return found


def code_of_class(kind: type) -> dict[str, str]:
    """Hash a class's file, if it is not bigain's own; returns what `code_of` does."""
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__.partition(".")[0] in ("bigain", "builtins") or not path:
        return {}
    return {f"{kind.__module__}.{kind.__qualname__}": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}


def _within(value: object) -> Iterator[object]:
    """Yield the values in nested mappings and sequences."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _within(item)
    else:
        yield value


def _plugins() -> list[str]:
    """Name the packages, other than bigain, that register something."""
    packages = {entry.package.partition(" ")[0] for kind in registry.KINDS for entry in registry.declared(kind)}
    return sorted(packages - {"bigain"})


def device_name(device: torch.device) -> str:
    """Return a device's name as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def fingerprint(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """Hash tensors, by their bytes: the first 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for tensor in tensors.values() if isinstance(tensors, Mapping) else tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """Return the git revision of bigain's own checkout, marked if there are uncommitted changes."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed; an enclosing checkout is another project's
        return "unknown (installed package)"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
