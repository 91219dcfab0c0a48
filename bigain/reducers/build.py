"""Build a reducer from whatever names it."""

from collections.abc import Mapping
from typing import Any, cast

from bigain.reducers.base import TokenReducer
from bigain.registry import build

__all__ = ["build_reducer"]


def build_reducer(spec: TokenReducer | str | Mapping[str, Any], /, **settings: Any) -> TokenReducer:
    """Build a reducer: `build_reducer("lgtm", ratio=0.5)`. See `bigain.registry.build`."""
    return cast("TokenReducer", build("reducers", spec, **settings))
