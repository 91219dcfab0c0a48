"""Are settings attributes, shown by repr, and refused if impossible?"""

import inspect
import types
import typing
from typing import Any, Literal, Union

from bigain.errors import SettingError
from bigain.testing.cases import Case
from bigain.testing.comparing import Subject, expect, outcome, same_outcome

__all__ = ["check_impossible_settings_are_refused", "check_settings_are_attributes", "setting_names"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_IMPOSSIBLE: dict[str, tuple[float, ...]] = {
    "ratio": (-0.1, 1.0, 1.5),
    "factor": (0, -1),
    "keep": (0, 1.5),
    "cell": (0,),
}
"""Values that no method can honour, for settings that have the same name in all methods."""


def setting_names(cls: type[Any]) -> list[str]:
    """List the constructor's named parameters."""
    return [name for name, item in inspect.signature(cls).parameters.items() if item.kind in _NAMED]


def check_settings_are_attributes(subject: Subject, case: Case) -> None:
    """A result folder records settings by name: its reader must get the same object from them."""
    names = setting_names(type(subject))
    missing = [name for name in names if not hasattr(subject, name)]
    expect(not missing, f"the constructor takes {', '.join(missing)}, but there is no attribute of that name")
    shown = repr(subject)
    hidden = [name for name in names if f"{name}=" not in shown]
    expect(not hidden, f"repr does not show {', '.join(hidden)}: {shown}")
    rebuilt = type(subject)(**{name: getattr(subject, name) for name in names})
    expect(repr(rebuilt) == shown, f"built again from its own attributes it is {rebuilt!r}, not {shown}")
    expected = outcome(subject, case.tokens(), case.grid, case.context())
    found = outcome(rebuilt, case.tokens(), case.grid, case.context())
    same_outcome(found, expected, "built again from its own attributes")


def check_impossible_settings_are_refused(subject: Subject, case: Case) -> None:
    """A setting that is silently clipped or ignored puts a wrong label on every figure measured with it."""
    given = {name: getattr(subject, name) for name in setting_names(type(subject)) if hasattr(subject, name)}
    for name in given:
        for value in (*_IMPOSSIBLE.get(name, ()), *_no_choice(type(subject), name)):
            seen = _refusal(type(subject), {**given, name: value})
            expect(not seen, f"{name}={value!r} {seen}; a SettingError is expected")


def _refusal(cls: type[Any], given: dict[str, Any]) -> str:
    """Say what a class does with settings instead of raising a `SettingError`; empty if it raises one."""
    try:
        return f"is accepted: {cls(**given)!r}"
    except SettingError:
        return ""
    except Exception as error:  # any other error is reported
        return f"raises {type(error).__name__}: {error}"


def _no_choice(cls: type[Any], name: str) -> tuple[str, ...]:
    """Return a value that is none of the choices, for a parameter that has choices."""
    try:
        hints = typing.get_type_hints(cls.__init__)
    except NameError:  # a type that is imported for the type checker alone
        return ()
    return ("no-such-choice",) if _is_literal(hints.get(name)) else ()


def _is_literal(hint: Any) -> bool:
    """Say whether a type is a `Literal`, or one or `None`."""
    hint = getattr(hint, "__value__", hint)  # behind a `type` statement
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return all(_is_literal(item) for item in typing.get_args(hint) if item is not type(None))
    return origin is Literal
