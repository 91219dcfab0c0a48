"""YAML in which a key may appear only once: of two, the first would be lost silently."""

from typing import Any

from jsonargparse import get_loader

from bigain.errors import DataError

__all__ = ["load_strictly"]

_load = get_loader("yaml")


def load_strictly(text: str, path: Any = "") -> Any:
    """Load YAML as jsonargparse does.

    Args:
        text: The YAML.
        path: The file it was read from.

    Raises:
        DataError: A key stands twice in one mapping.
    """
    import yaml  # type: ignore[import-untyped] # comes with jsonargparse

    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return _load(text)  # raises jsonargparse's own error
    _refuse_twice(root, str(path) or "A setting")
    return _load(text)


def _refuse_twice(node: Any, place: str) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_twice(inner, place)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                raise DataError(f"{place}, line {line}: the key {key.value!r} stands in line {lines[key.value]}, too.")
            lines[key.value] = line
        _refuse_twice(value, place)
