"""Tensors that are computed once and kept on disk: text embeddings, latents, features of real images."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bigain.results.files import write_whole

__all__ = ["TensorCache", "cache_folder", "cache_size", "clear_cache"]

_VARIABLE = "BIGAIN_CACHE"

_FORMAT = "1"
"""Rises when what is kept is computed otherwise."""

_SAMPLED = 4096
"""Values of each weight that its fingerprint reads, evenly spaced."""


def cache_folder() -> Path:
    """Return the folder of kept tensors: the environment variable `BIGAIN_CACHE`, or `~/.cache/bigain`."""
    return Path(os.environ.get(_VARIABLE) or "~/.cache/bigain").expanduser()


def clear_cache() -> int:
    """Remove everything that is kept; return how many bytes that were."""
    size = cache_size()
    shutil.rmtree(cache_folder() / "tensors", ignore_errors=True)
    return size - cache_size()


def cache_size() -> int:
    """Return how many bytes are kept."""
    return sum(file.stat().st_size for file in (cache_folder() / "tensors").rglob("*.safetensors"))


class TensorCache:
    """Results of networks, by a fingerprint of the networks and of what they were given.

    Args:
        networks: Their weights' values and types are part of the key.
        settings: Whatever else decides the result.
    """

    def __init__(self, networks: Sequence[nn.Module], settings: Mapping[str, object]) -> None:
        self._networks, self._settings = networks, dict(settings)
        self._prefix = ""

    def __deepcopy__(self, memo: object) -> "TensorCache":
        """Share it, and the networks."""
        return self

    def find(self, given: bytes) -> dict[str, Tensor] | None:
        """Return what was kept for these bytes, on the host."""
        try:
            return load_file(self._file(given))
        except (OSError, SafetensorError):
            return None

    def keep(self, given: bytes, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep a result and return it, on the host.

        Where nothing can be written, it is computed anew next time; NaN and infinity are never kept.
        """
        moved = {name: value.detach().cpu().contiguous() for name, value in found.items()}
        if not all(value.isfinite().all() for value in moved.values()):
            return moved
        try:
            file = self._file(given)
            file.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(file) as temporary:
                save_file(moved, temporary)
        except (OSError, SafetensorError):
            pass
        return moved

    @property
    def identity(self) -> str:
        """Fingerprint of the networks and settings: 16 hexadecimal digits."""
        self._prefix = self._prefix or _fingerprint(self._networks, self._settings)
        return self._prefix[:16]

    def _file(self, given: bytes) -> Path:
        name = hashlib.sha256(given).hexdigest()
        return cache_folder() / "tensors" / self.identity / name[:2] / f"{name}.safetensors"


def _fingerprint(networks: Sequence[nn.Module], settings: Mapping[str, object]) -> str:
    versions = [_version(name) for name in ("torch", "diffusers", "transformers")]
    digest = hashlib.sha256(f"{_FORMAT} {versions} {sorted(settings.items())}".encode())
    for network in networks:
        digest.update(f"{type(network).__name__} {_configuration(network)}".encode())
        for name, value in sorted(network.state_dict().items()):
            flat = value.detach().reshape(-1)
            # To hash all of T5 would take minutes. The sum of the bits sees a change of any value; some values
            # as they are see what would leave the sum as it was.
            some = flat[:: max(1, len(flat) // _SAMPLED)].cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {_sum_of_bits(flat)}".encode())
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a network of prompts needs transformers, features of images do not
        return "none"


def _configuration(network: nn.Module) -> str:
    """Return a network's settings, without where it was loaded from."""
    config: Any = getattr(network, "config", None) or {}
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return str(sorted((name, str(value)) for name, value in settings.items() if not name.startswith("_")))


def _sum_of_bits(flat: Tensor) -> int:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(flat.contiguous().view(kinds[flat.element_size()]).sum(dtype=torch.int64))
