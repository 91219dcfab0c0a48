"""Read the docstrings, signatures and origins of classes."""

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from reprlib import Repr
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType

__all__ = [
    "Parameter",
    "Words",
    "class_paths",
    "installed_version",
    "parameters_of",
    "summary_of",
    "type_text",
    "words_of",
]

_PARSER = GoogleParser([*DEFAULT_SECTIONS, Section("References", "references", SectionType.SINGULAR)])

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")

_SHORT = Repr()
_SHORT.maxtuple, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


@dataclass(frozen=True)
class Parameter:
    """A setting of a class.

    Args:
        name: Its name.
        annotation: Its type; `Any` where none is stated or it cannot be resolved.
        default: Its default; `inspect.Parameter.empty` if it is required.
        meaning: Its line of the docstring.
    """

    name: str
    annotation: Any
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def default_text(self) -> str:
        """The default as it would be written."""
        if self.required:
            return "required"
        try:
            plain = self.default == type(self.default)() and not isinstance(self.default, int | float | str)
        except Exception:  # classes that need arguments
            plain = False
        named = plain and type(self.default).__module__ != "builtins"
        return f"{type(self.default).__name__}()" if named else _SHORT.repr(self.default)


@dataclass(frozen=True)
class Words:
    """A docstring, taken apart.

    Args:
        summary: Its first sentence.
        text: Everything before the sections.
        raises: Each exception, and when it is raised.
        references: Where the method is published.
    """

    summary: str
    text: str
    raises: tuple[tuple[str, str], ...] = ()
    references: str = ""


def words_of(given: Any) -> Words:
    """Take apart the docstring of a class; that of a base does not count."""
    parsed = _PARSER.parse(_docstring(given))
    # By paragraphs: the first line may break off in the middle of a sentence.
    first = "\n" + (parsed.long_description or "") if not parsed.blank_after_short_description else ""
    rest = parsed.long_description if parsed.blank_after_short_description else ""
    paragraphs = ((parsed.short_description or "") + first + "\n\n" + (rest or "")).split("\n\n")
    text = "\n\n".join(filter(None, map(_reflowed, paragraphs)))
    paragraph = text.split("\n\n", 1)[0]
    sources = [meta.description or "" for meta in parsed.meta if meta.args == ["references"]]
    raises = tuple((item.type_name or "", _flat(item.description)) for item in parsed.raises)
    return Words(_SENTENCE.split(paragraph, 1)[0], text, raises, _flat(" ".join(sources)))


def summary_of(given: Any) -> str:
    """Return the first sentence of a class's docstring, or of the docstring itself."""
    return words_of(given).summary


def parameters_of(given: type[Any] | Callable[..., Any]) -> list[Parameter]:
    """List the parameters of a class or function, each with its line of the docstring, its own or a base's."""
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # classes written in C
        return []
    hints, meanings = _hints(given), _meanings(given)
    return [
        Parameter(name, hints.get(name, Any), item.default, meanings.get(name, ""))
        for name, item in signature.parameters.items()
        if item.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]


def type_text(annotation: Any) -> str:
    """Write a type as in code, without modules; a `Literal` as its values."""
    if annotation is Any:
        return "Any"
    if annotation in (None, type(None)):
        return "None"
    if annotation is Ellipsis:
        return "..."
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, inner))
    if origin is typing.Annotated:
        return type_text(inner[0])
    if inner and origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, inner))}]"
    return getattr(annotation, "__name__", str(annotation))


@cache
def installed_version(module: str) -> str:
    """Return the version of the distribution of a module; empty if there is none. Nothing is imported.

    Args:
        module: Name of a top-level module.
    """
    try:
        return version(module)
    except PackageNotFoundError:
        pass
    distributions = packages_distributions().get(module, [])
    if distributions:
        return version(distributions[0])
    return "of unknown version" if find_spec(module) else ""


def class_paths(given: type[Any]) -> list[str]:
    """Return the paths by which a class can be imported: from its module, and from packages that re-export it."""
    parts = given.__module__.split(".")
    around = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    shown = [name for name in around if getattr(sys.modules.get(name), given.__qualname__, None) is given]
    return [f"{name}.{given.__qualname__}" for name in (given.__module__, *shown)]


def _docstring(given: Any) -> str:
    if isinstance(given, str):
        return given
    return (vars(given).get("__doc__") if isinstance(given, type) else given.__doc__) or ""


def _meanings(given: Any) -> dict[str, str]:
    """Collect the lines of docstrings about parameters; a class's own override its bases'."""
    found: dict[str, str] = {}
    for one in reversed(given.__mro__ if isinstance(given, type) else [given]):
        if one is not object:
            found |= {item.arg_name: _flat(item.description) for item in _PARSER.parse(_docstring(one)).params}
    return found


def _hints(given: Any) -> dict[str, Any]:
    """Resolve all annotations, or none if one cannot be resolved."""
    try:
        return typing.get_type_hints(vars(_maker(given))["__init__"] if isinstance(given, type) else given)
    except Exception:  # a plugin may name types that it imports for the type checker only
        return {}


def _maker(given: type[Any]) -> type[Any]:
    """Find the class that defines `__init__`."""
    return next(one for one in given.__mro__ if "__init__" in vars(one))


def _reflowed(paragraph: str) -> str:
    """Join the lines of a paragraph; code and lists stay as they are."""
    lines = paragraph.strip("\n").splitlines()
    laid_out = any(line.startswith((" ", "-", "*", ">>>")) for line in lines)
    return "\n".join(lines) if laid_out else _flat(paragraph)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())
