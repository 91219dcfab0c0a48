"""Where a number came from."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint", "provenance"]

_PACKAGES = ("bigain", "torch", "lightning", "diffusers", "torchmetrics", "numpy")


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Describe the software, the device and the moment of a measurement."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device_name(torch.device(device)),
        "git_revision": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """Name a device as people know it."""
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
    """Return the git revision of bigain's own checkout, with a mark if it was changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: an enclosing checkout would be somebody else's
        return "unknown (installed package)"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.strip()
