"""The full GPU run on the embedded model, which ships with the package."""

from collections.abc import Mapping
from typing import Any

from bigain.assets import asset
from bigain.errors import DataError
from bigain.results.store import read_result

__all__ = ["shipped_run_beside"]


def shipped_run_beside(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `comparison.json` of the full run if a comparison has the same weights.

    Args:
        content: `comparison.json` of the comparison.
    """
    try:
        shipped = read_result(asset("cifar10_full_run/comparison.json"))
    except DataError:
        return None
    same = content.get("settings", {}).get("weights") == shipped["settings"]["weights"]
    return shipped if same else None
