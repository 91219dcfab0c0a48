"""Registered names on the command line: `--reducer lgtm` becomes the class path that jsonargparse takes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigain.registry import available, get

__all__ = ["with_class_paths"]

_KINDS = {"reducer": "reducers", "otherwise": "reducers", "backbone": "backbones", "scorer": "scorers"}
"""Options that take a registered name, by their last word."""


def with_class_paths(arguments: Sequence[str]) -> list[str]:
    """Turn registered names into class paths; `--reducer lgtm` means `--reducer=lgtm`."""
    joined: list[str] = []
    for argument in arguments:
        option = joined[-1] if joined else ""
        if option.startswith("--") and "=" not in option and _kind_of(option) and not argument.startswith("-"):
            joined[-1] = f"{option}={argument}"
        else:
            joined.append(argument)
    return [_with_class_path(argument) for argument in joined]


def _kind_of(option: str) -> str | None:
    """Return the kind of class that an option takes: `--model.reducer` and its `.help` take reducers."""
    return _KINDS.get(option.removeprefix("--").removesuffix(".help").rpartition(".")[2])


def _with_class_path(argument: str) -> str:
    """Turn `--model.reducer=lgtm` into `--model.reducer=bigain.reducers.lgtm.LGTM`, and so each of `--reducers`."""
    option, equals, value = argument.partition("=")
    if option.endswith("reducers") and value.startswith("{"):
        return f"{option}={_reducers(value)}"
    if equals and option.endswith(("placement", "placement.parts")):
        return _placement(option, value)
    kind = _kind_of(option)
    if kind is None or not equals or "." in value or value.startswith(("{", "null")):
        return argument
    found = get(kind, value)
    return f"{option}={found.__module__}.{found.__qualname__}"


def _reducers(value: str) -> str:
    """Turn `{a: {name: tome, ratio: 0.5}}`, as `build_reducer` takes it, into class paths and their arguments."""
    from yaml import YAMLError  # type: ignore[import-untyped] # comes with jsonargparse

    from bigain.benchmark.strict_yaml import load_strictly

    try:
        given = load_strictly(value, "--reducers")
    except YAMLError:
        return value  # the parser says what is wrong
    if not isinstance(given, dict):
        return value
    return json.dumps({name: _reducer(one) for name, one in given.items()})


def _reducer(given: Any) -> Any:
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        return given
    settings = dict(given)
    name = settings.pop("name", None) or settings.get("class_path")
    if not isinstance(name, str) or "." in name or ("class_path" in settings and name not in available("reducers")):
        return given  # the parser knows class paths, and names of classes
    found = get("reducers", name)
    path = f"{found.__module__}.{found.__qualname__}"
    if "class_path" in settings:
        return {**settings, "class_path": path}
    return {"class_path": path, "init_args": settings}


def _is_mistyped(value: str) -> bool:
    """Say whether a value is a word and no file: a preset's name, which is then refused with the others' names."""
    return value.isidentifier() and value != "null" and not Path(value).exists()


def _placement(option: str, value: str) -> str:
    """Accept `--placement=sd` for a preset, and `--placement.parts=mlp` for one part."""
    from typing import get_args

    from bigain.adapters.base import Part
    from bigain.adapters.placement import PRESETS

    if option.endswith("placement") and (value in PRESETS or _is_mistyped(value)):
        return f"{option}.preset={value}"
    if option.endswith("parts") and value in get_args(Part):
        return f"{option}=[{value}]"
    return f"{option}={value}"
