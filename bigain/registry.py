"""Find scorers, reducers, adapters and backbones through entry points.

Built-in methods and third-party ones come through the same door: the entry-point
groups `bigain.scorers`, `bigain.reducers`, `bigain.adapters` and `bigain.backbones`.
Nothing is imported until it is asked for by name.

A package says in its metadata which versions of bigain it was made for, as it does to pip:
`bigain>=0.2.0.dev0,<0.3` among its dependencies. Entries of a package made for other versions are
refused without being imported.
"""

import difflib
import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, cast

from packaging.requirements import InvalidRequirement, Requirement

from bigain.errors import SettingError

__all__ = [
    "KINDS",
    "Entry",
    "available",
    "base_of",
    "build",
    "declared",
    "entries",
    "get",
    "refresh",
    "running_version",
]

KINDS: Mapping[str, str] = {
    "scorers": "bigain.scorers.base:TokenScorer",
    "reducers": "bigain.reducers.base:TokenReducer",
    "adapters": "bigain.adapters.base:Adapter",
    "backbones": "bigain.diffusion.backbone:Backbone",
}
"""Each kind, and the class that everything of the kind derives from."""


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Args:
        name: The name users write.
        target: `module:Class`.
        package: Distribution that declares it, and its version.
        problem: Why it cannot be used; empty for one that can, as far as was tried.
    """

    name: str
    target: str
    package: str
    problem: str = ""


@cache
def _declared(kind: str) -> dict[str, list[EntryPoint]]:
    """Group the entry points of a kind by name; equal targets count once.

    An editable install can list an entry point twice.
    """
    if kind not in KINDS:
        raise SettingError(f"There are {', '.join(KINDS)}; got {kind!r}.")
    found: dict[str, dict[str, EntryPoint]] = defaultdict(dict)
    for point in entry_points(group=f"bigain.{kind}"):
        found[point.name].setdefault(point.value, point)
    return {name: list(points.values()) for name, points in sorted(found.items())}


def refresh() -> None:
    """Look for entry points anew, after a package was installed in this process."""
    importlib.invalidate_caches()
    _declared.cache_clear()
    _made_for.cache_clear()
    _name_and_version.cache_clear()


def available(kind: str) -> list[str]:
    """List the registered names; nothing is imported.

    Args:
        kind: `scorers`, `reducers`, `adapters` or `backbones`.

    Raises:
        SettingError: There is no such kind.
    """
    return list(_declared(kind))


def declared(kind: str) -> list[Entry]:
    """List the entries of a kind; nothing is imported, so `problem` stays empty.

    Args:
        kind: `scorers`, `reducers`, `adapters` or `backbones`.
    """
    return [Entry(point.name, point.value, _package(point)) for points in _declared(kind).values() for point in points]


def entries(kind: str) -> list[Entry]:
    """List the entries of a kind, each with the reason if it cannot be loaded.

    Args:
        kind: `scorers`, `reducers`, `adapters` or `backbones`.

    Raises:
        SettingError: There is no such kind.
    """
    return [
        Entry(name, point.value, _package(point), _problem(kind, point))
        for name, points in _declared(kind).items()
        for point in points
    ]


def _problem(kind: str, point: EntryPoint) -> str:
    """Say why an entry cannot be used; empty if it can."""
    if reason := _misfit(kind, point) or _shadowed(kind, point):
        return reason
    try:
        get(kind, point.name)
    except Exception as error:  # whatever a plugin raises, the listing goes on
        return f"{type(error).__name__}: {error}" if not isinstance(error, SettingError) else str(error)
    return ""


def _shadowed(kind: str, point: EntryPoint) -> str:
    """Say that a package claims one of bigain's own names; empty if it does not."""
    own = any(_package(other).startswith("bigain ") for other in _declared(kind)[point.name])
    if not own or _package(point).startswith("bigain "):
        return ""
    return (
        f"The name {point.name!r} among {kind} is bigain's own and goes on to mean that: {_package(point)} has to give "
        f"{point.value} another."
    )


def get(kind: str, name: str) -> type[Any]:
    """Import the class behind a name.

    Raises:
        SettingError: The name is unknown (the nearest are shown), claimed by two packages,
            made for another version of bigain, cannot be imported, or is no class of the kind.
    """
    known = _declared(kind)
    if name not in known:
        raise SettingError(_unknown(kind, name, list(known)))
    misfits = [_misfit(kind, point) for point in known[name]]
    fitting = [point for point, misfit in zip(known[name], misfits, strict=True) if not misfit]
    if not fitting:
        raise SettingError(" ".join(misfits))
    first, *rest = [point for point in fitting if not _shadowed(kind, point)]
    if rest:
        claims = "; ".join(f"{_package(point)} as {point.value}" for point in fitting)
        raise SettingError(f"The name {name!r} among {kind} is claimed twice: {claims}. Uninstall one of them.")
    try:
        loaded = first.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(f"{_singular(kind)} {name!r} of {_package(first)} cannot be imported: {reason}") from error
    base = base_of(kind)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise SettingError(
            f"{_singular(kind)} {name!r} of {_package(first)} is {first.value}, which is no subclass of "
            f"{base.__module__}.{base.__qualname__}."
        )
    return loaded


def _misfit(kind: str, point: EntryPoint) -> str:
    """Say which versions of bigain an entry was made for; empty if for this one."""
    asked = _made_for(point.dist) if point.dist else ""
    if not asked:
        return ""
    subject = f"{_singular(kind)} {point.name!r} of {_package(point)}"
    return f"{subject} is made for {asked}; this is bigain {running_version()}."


@cache
def _made_for(dist: Distribution) -> str:
    """Return the first requirement on bigain that this version does not meet; empty if it meets all."""
    for text in dist.requires or ():
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            continue  # pip refuses such packages
        # Requirements of extras do not apply: nobody may have asked for the extra.
        applies = asked.marker is None or asked.marker.evaluate({"extra": ""})
        fits = asked.specifier.contains(running_version(), prereleases=True)
        if asked.name.lower() == "bigain" and applies and not fits:
            return f"bigain{asked.specifier}"
    return ""


def running_version() -> str:
    """Return the version of bigain; "0" where it is not installed."""
    try:
        return version("bigain")
    except PackageNotFoundError:
        return "0"


def build(kind: str, spec: Any, /, **settings: Any) -> Any:
    """Build an object of a kind from a name, a class path, a mapping or the object itself.

    Args:
        kind: `scorers`, `reducers`, `adapters` or `backbones`.
        spec: A registered name, a class path such as `my_package.my_module.MyScorer`,
            or a mapping with `name` or `class_path` and either `init_args` or the
            settings beside it. An object of the kind comes back as it is.
        settings: Passed to the class.

    Raises:
        SettingError: The name is unknown or the settings do not fit.
    """
    if isinstance(spec, base_of(kind)):
        if settings:
            raise SettingError(f"{spec!r} is built already; it takes no further settings ({', '.join(settings)}).")
        return spec
    if isinstance(spec, Mapping):
        return _from_mapping(kind, spec, settings)
    if not isinstance(spec, str):
        given = f"the class {spec.__name__}" if isinstance(spec, type) else type(spec).__name__
        raise SettingError(f"{_singular(kind)}: give an object, a name, a class path or a mapping; got {given}.")
    found = _by_path(kind, spec) if "." in spec else get(kind, spec)
    try:
        return found(**settings)
    except TypeError as error:
        raise SettingError(f"{_singular(kind)} {spec!r} cannot be built: {error}") from error


def _from_mapping(kind: str, spec: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    given = dict(spec)
    target = given.pop("class_path", None) or given.pop("name", None)
    if target is None:
        raise SettingError(f"{_singular(kind)}: a mapping needs name or class_path; it has {', '.join(spec)}.")
    given |= given.pop("init_args", None) or {}
    return build(kind, target, **{**given, **settings})


def _by_path(kind: str, path: str) -> type[Any]:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: ".x" and "..x"
        raise SettingError(f"{_singular(kind)}: {path!r} cannot be imported: {error}") from error
    base = base_of(kind)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SettingError(f"{path} is no subclass of {base.__module__}.{base.__qualname__}.")
    return found


def base_of(kind: str) -> type[Any]:
    """Return the class that everything of a kind derives from."""
    module, _, name = KINDS[kind].partition(":")
    return cast("type[Any]", getattr(importlib.import_module(module), name))


def _package(point: EntryPoint) -> str:
    return _name_and_version(point.dist) if point.dist else "an unnamed package"


@cache
def _name_and_version(dist: Distribution) -> str:
    """Name a distribution; `importlib.metadata` parses its whole metadata for each of the two words, every time."""
    return f"{dist.name} {dist.version}"


def _singular(kind: str) -> str:
    return kind[:-1].capitalize()


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no {_singular(kind).lower()} named {name!r}.{hint} Available: {', '.join(known) or 'none'}."
