"""Build a scorer from whatever names it."""

from collections.abc import Mapping
from typing import Any, cast

from bigain.registry import build
from bigain.scorers.base import TokenScorer

__all__ = ["build_scorer"]


def build_scorer(spec: TokenScorer | str | Mapping[str, Any], /, **settings: Any) -> TokenScorer:
    """Build a scorer: `build_scorer("laplacian_l1")`. See `bigain.registry.build`."""
    return cast("TokenScorer", build("scorers", spec, **settings))
