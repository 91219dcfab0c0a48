"""Networks from configurations alone: shapes on the meta device, or random weights on a real one."""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bigain.adapters.find import match
from bigain.assets import asset
from bigain.errors import DataError, SettingError

__all__ = ["architectures", "build_architecture", "build_random"]

_CONFIG = "config.json"
"""The file name that diffusers' `save_pretrained` and `from_pretrained` use."""

_TIMM = "architecture"
"""The key in timm's configurations that names the network."""

_NETWORKS = ("unet", "transformer")
"""Folders of the network in a pipeline's folder."""

_EMBEDDED = "cifar10_dit"
"""The one model that ships with weights."""


def architectures() -> list[str]:
    """List the names of the architectures that ship with bigain."""
    return sorted(file.stem for file in asset("architectures").glob("*.json"))


def build_architecture(source: Path | str) -> nn.Module:
    """Build a network on the meta device, where tensors have shapes and no values.

    Args:
        source: The name of a shipped architecture (`architectures()`) or of the embedded
            model (`cifar10_dit`), or a diffusers or timm model: its `config.json`, its folder, or
            the folder of its pipeline.

    Returns:
        The network, of a family that an adapter knows, in evaluation mode.

    Raises:
        SettingError: There is no such architecture or file.
        DataError: The file is no configuration of a network of diffusers or timm.
        SiteError: No adapter knows the network.
    """
    file = _file_of(source)
    with torch.device("meta"):
        network = _instantiate(_read(file), file)
    match(network)
    return network.eval()


def build_random(source: Path | str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """Build a network with random weights on the device where it will run.

    Weights are drawn on `device` and in `dtype`, so that building needs no more memory
    than the network itself, and none elsewhere.

    Args:
        source: As for `build_architecture`.
        device: Where it will run.
        dtype: Type of its floating-point weights and buffers.
        seed: Seeds the draw; the global generators are left as they are.

    Returns:
        The network in evaluation mode.

    Raises:
        SettingError: There is no such architecture or file.
        DataError: The file is no configuration of a network of diffusers or timm.
        SiteError: No adapter knows the network.
    """
    file = _file_of(source)
    config = _read(file)
    with _drawing(device, dtype, seed):
        network = _instantiate(config, file)
    match(network)
    # Computed buffers are float32, and those from numpy are on the host. Not diffusers' own `to`: it
    # warns about modules that a checkpoint would keep in float32.
    return nn.Module.to(network, device=device, dtype=dtype).eval()


@contextmanager
def _drawing(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _file_of(source: Path | str) -> Path:
    known = architectures()
    if str(source) in known:
        return asset(f"architectures/{source}.json")
    if str(source) == _EMBEDDED:
        return asset(f"{_EMBEDDED}/{_CONFIG}")
    place = Path(source)
    if place.is_file():
        return place
    inside = [place / _CONFIG, *(place / part / _CONFIG for part in _NETWORKS)]
    found = next((file for file in inside if file.is_file()), None)
    if found is None:
        known = [*known, _EMBEDDED]
        near = difflib.get_close_matches(str(source), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SettingError(
            f"There is no architecture {str(source)!r}.{hint} Give one of {', '.join(known)}, or a folder or file "
            f"with the {_CONFIG} of a diffusers network."
        )
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict) or not any(isinstance(config.get(key), str) for key in ("_class_name", _TIMM)):
        raise DataError(f"{file} is no configuration of diffusers or timm: it has no _class_name, and no {_TIMM}.")
    return config


def _instantiate(config: dict[str, Any], file: Path) -> nn.Module:
    if "_class_name" not in config:
        return _of_timm(config, file)
    import diffusers

    name = config["_class_name"]
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise DataError(f"{file} is of the class {name}, which diffusers {diffusers.__version__} has not as a network.")
    try:
        return cast("nn.Module", cast("Any", found).from_config(config))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a class raises about fields that do not fit
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{name} cannot be built from {file}: {reason[0]}") from error


def _of_timm(config: dict[str, Any], file: Path) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise SettingError(
            f"{file} is a network of timm, which is not installed: pip install 'bigain[vit]'."
        ) from error
    name = config[_TIMM]
    if not timm.is_model(name):
        raise DataError(f"{file} is a {name}, which timm {timm.__version__} does not know.")
    classes = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    return cast("nn.Module", timm.create_model(name, pretrained=False, **classes))
