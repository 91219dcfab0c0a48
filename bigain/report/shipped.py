"""The full GPU run whose table ships with the package."""

from typing import Any

from bigain.assets import asset
from bigain.errors import DataError
from bigain.results.store import read_json

__all__ = ["shipped_comparison"]


def shipped_comparison() -> dict[str, Any] | None:
    """Return `comparison.json` of the full run on the embedded model, if it is there."""
    try:
        return read_json(asset("cifar10_full_run/comparison.json"))
    except DataError:
        return None
