"""Networks from configurations alone: shapes on the meta device, no weights."""

import difflib
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bigain.adapters.attach import match
from bigain.assets import asset
from bigain.errors import DataError, SettingError

__all__ = ["architectures", "build_architecture"]

_CONFIG = "config.json"
"""The file name that diffusers' `save_pretrained` and `from_pretrained` use."""

_NETWORKS = ("unet", "transformer")
"""Where a pipeline's folder keeps its network."""


def architectures() -> list[str]:
    """Names of the architectures that ship with bigain."""
    return sorted(file.stem for file in asset("architectures").glob("*.json"))


def build_architecture(source: Path | str) -> nn.Module:
    """Build a network on the meta device, where tensors have shapes and no values.

    Args:
        source: A shipped architecture's name (`architectures()`), or a diffusers model:
            its `config.json`, its folder, or the folder of a pipeline that holds it.

    Returns:
        The network, of a family that an adapter knows, in evaluation mode.

    Raises:
        SettingError: There is no such architecture or file.
        DataError: The file is no configuration of a diffusers network.
        SiteError: No adapter knows the network.
    """
    file = _file_of(source)
    config = _read(file)
    network = _instantiate(config, file)
    match(network)
    return network.eval()


def _file_of(source: Path | str) -> Path:
    known = architectures()
    if str(source) in known:
        return asset(f"architectures/{source}.json")
    place = Path(source)
    if place.is_file():
        return place
    inside = [place / _CONFIG, *(place / part / _CONFIG for part in _NETWORKS)]
    found = next((file for file in inside if file.is_file()), None)
    if found is None:
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
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise DataError(f"{file} is no diffusers configuration: it has no _class_name.")
    return config


def _instantiate(config: dict[str, Any], file: Path) -> nn.Module:
    import diffusers

    name = config["_class_name"]
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise DataError(f"{file} is of the class {name}, which diffusers {diffusers.__version__} has not as a network.")
    try:
        with torch.device("meta"):
            return cast("nn.Module", cast("Any", kind).from_config(config))
    except Exception as error:  # whatever a class makes of fields that it cannot build from
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{name} cannot be built from {file}: {reason[0]}") from error
