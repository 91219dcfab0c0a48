"""Where modules and classes come from."""

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import Any

__all__ = ["class_paths", "installed_version"]


@cache
def installed_version(module: str) -> str:
    """Return the version of the distribution that brings a module; empty if there is none. Nothing is imported.

    Args:
        module: Name of a top-level module.
    """
    try:
        return version(module)
    except PackageNotFoundError:
        pass
    brought = packages_distributions().get(module, [])
    if brought:
        return version(brought[0])
    return "of unknown version" if find_spec(module) else ""


def class_paths(kind: type[Any]) -> list[str]:
    """Return the paths by which a class can be imported: from its module, and from packages around that show it."""
    parts = kind.__module__.split(".")
    around = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    shown = [name for name in around if getattr(sys.modules.get(name), kind.__qualname__, None) is kind]
    return [f"{name}.{kind.__qualname__}" for name in (kind.__module__, *shown)]
