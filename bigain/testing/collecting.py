"""Hand every check to pytest as a case of its own."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import nn

from bigain import registry
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.scorers.base import TokenScorer
from bigain.testing.adapters.bench import Specimen
from bigain.testing.adapters.run import AdapterCheck, specimen_of
from bigain.testing.comparing import Subject
from bigain.testing.failures import ContractError, Failure
from bigain.testing.run import Check, checks_of
from bigain.testing.settings import setting_names

if TYPE_CHECKING:
    import pytest

__all__ = ["Unusable", "cases_of", "label", "parametrize_with_checks"]

_KINDS: dict[str, type[Any]] = {"scorers": TokenScorer, "reducers": TokenReducer}
_LONGEST = 90


@dataclass(frozen=True)
class Unusable:
    """A subject that cannot be built.

    Args:
        name: Its name.
        reason: Why it cannot be built.
    """

    name: str
    reason: str

    def check_can_be_built(self, subject: object = None) -> None:
        """Fail with the reason.

        Raises:
            ContractError: Always.
        """
        why = "What cannot be built cannot be checked: nobody would notice that it is broken."
        raise ContractError(self.name, [Failure("check_can_be_built", why, self.reason)])


def parametrize_with_checks(
    subjects: Iterable[Any] | None = None, *, expected_failed_checks: Mapping[str, str] | None = None
) -> "pytest.MarkDecorator":
    """Make a test of `subject` and `check` run once for each check of each subject.

        @parametrize_with_checks()
        def test_conformance(subject, check):
            check(subject)

    Args:
        subjects: Scorers and reducers: objects, classes (their `examples()`) or registered
            names; default: all registered ones. Adapters: a tiny model for each, a function
            that makes one, or a `Specimen`.
        expected_failed_checks: Names of checks that these subjects fail, and why. They are
            marked as strict expected failures: a subject that passes fails the test.

    Raises:
        SettingError: An expected failure names no check.
    """
    import pytest

    expected = dict(expected_failed_checks or {})
    known = {check.name for kind in (*_KINDS, "adapters") for check in checks_of(kind)}
    if unknown := sorted(set(expected) - known):
        raise SettingError(f"expected_failed_checks names {', '.join(unknown)}; the checks are {', '.join(known)}.")
    rows = []
    for subject, name, check, identifier in cases_of(subjects):
        strict = pytest.mark.xfail(reason=expected.get(name, ""), raises=ContractError, strict=True)
        rows.append(pytest.param(subject, check, id=identifier, marks=[strict] if name in expected else []))
    return pytest.mark.parametrize(("subject", "check"), rows)


def cases_of(subjects: Iterable[Any] | None = None) -> Iterator[tuple[Any, str, Any, str]]:
    """Yield subject, name of the check, check and identifier of every test."""
    if isinstance(subjects, str | type | TokenScorer | TokenReducer) or _makes_model(subjects):
        subjects = [subjects]
    for given in _registered() if subjects is None else subjects:
        for name, subject in _resolved(given):
            if isinstance(subject, Unusable):
                yield subject, "check_can_be_built", subject.check_can_be_built, f"{name}-check_can_be_built"
                continue
            text = name if isinstance(subject, Specimen) else label(subject, name)
            for check in _checks_for(subject):
                yield subject, check.name, check, f"{text}-{check.name}"


def label(subject: Subject, name: str = "") -> str:
    """Name a subject by its settings that are not the defaults: `lgtm-ratio_0.5`."""
    parameters = signature(type(subject)).parameters
    parts = [name or type(subject).__name__]
    for key in setting_names(type(subject)):
        value = getattr(subject, key, None)
        if _text(value) != _text(parameters[key].default):
            parts.append(f"{key}_{_text(value)}")
    return re.sub(r"[^\w.+-]", "", "-".join(parts))[:_LONGEST]


def _text(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None):
        return str(value)
    if isinstance(value, TokenScorer | TokenReducer):
        return label(value)
    if isinstance(value, Sequence):
        return "x".join(_text(item) for item in value)
    return type(value).__name__


def _registered() -> list[tuple[str, str]]:
    return [(kind, name) for kind in _KINDS for name in registry.available(kind)]


def _makes_model(given: Any) -> bool:
    """Say whether something is a model, or a function that makes one."""
    if isinstance(given, type):
        return issubclass(given, nn.Module)
    return isinstance(given, nn.Module | Specimen) or callable(given)


def _resolved(given: Any) -> Iterator[tuple[str, Subject | Specimen | Unusable]]:
    """Build the subjects to check, each with the name to show; never raises."""
    if isinstance(given, TokenScorer | TokenReducer):
        yield type(given).__name__, given
    elif _makes_model(given):
        subject = specimen_of(given)
        yield re.sub(r"[^\w.+-]", "", str(subject))[:_LONGEST], subject
    elif isinstance(given, type):
        yield from _examples(given.__name__, given)
    else:
        kinds = [given[0]] if isinstance(given, tuple) else [k for k in _KINDS if given in registry.available(k)]
        name = given[1] if isinstance(given, tuple) else str(given)
        for kind in kinds:
            yield from _examples_by_name(kind, name)
        if not kinds:
            yield name, Unusable(name, f"{given!r} is no scorer, no reducer, and no class or name of one.")


def _examples_by_name(kind: str, name: str) -> Iterator[tuple[str, Subject | Unusable]]:
    try:
        found = registry.get(kind, name)
    except Exception as error:  # a broken plugin fails its own test, not the collection
        yield name, Unusable(name, str(error))
        return
    yield from _examples(name, found)


def _examples(name: str, found: type[Any]) -> Iterator[tuple[str, Subject | Unusable]]:
    advice = "Override the classmethod examples() so that it returns two to four objects worth checking."
    if not issubclass(found, TokenScorer | TokenReducer):
        yield name, Unusable(name, f"{found.__qualname__} derives neither from TokenScorer nor from TokenReducer.")
        return
    try:
        examples: list[Subject] = list(found.examples())
    except Exception as error:  # whatever a plugin raises
        yield name, Unusable(name, f"{found.__name__}.examples() raises {type(error).__name__}: {error}. {advice}")
        return
    if not examples:
        yield name, Unusable(name, f"{found.__name__}.examples() is empty. {advice}")
    yield from ((name, example) for example in examples)


def _checks_for(subject: Subject | Specimen) -> tuple[Check | AdapterCheck, ...]:
    if isinstance(subject, Specimen):
        return checks_of("adapters")
    return checks_of("scorers" if isinstance(subject, TokenScorer) else "reducers")
