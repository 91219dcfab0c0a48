"""A reducer's settings in few words."""

import inspect
from typing import Any

from bigain.reducers.base import TokenReducer
from bigain.scorers.base import TokenScorer

__all__ = ["brief"]


def brief(given: Any) -> str:
    """Write a reducer as in code, without the settings that have their default: `LGTM(ratio=0.5)`.

    Args:
        given: A reducer or a scorer; anything else is written as its `repr`.
    """
    if not isinstance(given, TokenReducer | TokenScorer):
        return repr(given)
    own, usual = vars(given), _with_defaults(given)
    changed = [f"{key}={brief(value)}" for key, value in own.items() if repr(value) != usual.get(key)]
    return f"{type(given).__name__}({', '.join(changed)})"


def _with_defaults(given: TokenReducer | TokenScorer) -> dict[str, str]:
    """Return the `repr` of each setting that has a default, as the class keeps it: a scorer's name as the scorer."""
    settings = inspect.signature(type(given)).parameters.values()
    required = {one.name: getattr(given, one.name, None) for one in settings if one.default is inspect.Parameter.empty}
    try:
        usual = vars(type(given)(**required))
    except Exception:  # a plugin's class may keep what it was given under another name
        return {}
    return {key: repr(value) for key, value in usual.items() if key not in required}
