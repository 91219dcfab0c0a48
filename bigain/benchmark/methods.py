"""The reducers that a command measures, by name."""

import re
from collections.abc import Mapping

from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.registry import entries

__all__ = ["methods_of"]

_BASELINE = "none"

_ALSO = "_ . , = % + - and spaces"

_NAME = re.compile(r"[\w%](?:[\w.,=%+ -]*[\w%+])?")
"""Names that are a file's on every system."""


def methods_of(
    reducer: TokenReducer, reducers: Mapping[str, TokenReducer], timestep: float | None = None
) -> tuple[str, dict[str, TokenReducer]]:
    """Name the methods that a command measures, and no reduction, which it always measures too.

    Args:
        reducer: One reducer; `Identity` if none is given.
        reducers: Several, by name.
        timestep: Settle reducers that switch by timestep at this one.

    Returns:
        The name of no reduction, and the methods without it.

    Raises:
        SettingError: Both are given, two methods that reduce nothing, or one that reduces and
            has the name of no reduction.
    """
    if reducers and not isinstance(reducer, Identity):
        raise SettingError("Give reducer or reducers, not both.")
    given = dict(reducers) or {_registered_name(reducer): reducer}
    unreduced = [name for name, one in given.items() if isinstance(one, Identity)]
    if len(unreduced) > 1:
        raise SettingError(
            f"{' and '.join(map(repr, unreduced))} are all no reduction, which is measured under one name: leave out "
            "all but one."
        )
    baseline = unreduced[0] if unreduced else _BASELINE
    if odd := [name for name in given if not _NAME.fullmatch(name)]:
        raise SettingError(f"A method's name is letters, digits and {_ALSO}, since files have it; got {odd[0]!r}.")
    methods = {name: one for name, one in given.items() if not isinstance(one, Identity)}
    if baseline in methods:
        raise SettingError(f"{baseline!r} is the name of no reduction; here it is {methods[baseline]!r}.")
    if timestep is not None:
        methods = {name: one.at(timestep) for name, one in methods.items()}
    return baseline, methods


def _registered_name(reducer: TokenReducer) -> str:
    """Return the registered name of a reducer, or else its class's name."""
    if isinstance(reducer, Identity):
        return _BASELINE
    own = type(reducer)
    target = f"{own.__module__}:{own.__qualname__}"
    return next((entry.name for entry in entries("reducers") if entry.target == target), own.__name__)
