"""Docstrings and signatures taken apart, on classes made for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import bigain
from bigain.cli.classes import class_paths, installed_version, parameters_of, summary_of, type_text, words_of
from bigain.cli.messages import shortened


class Whole:
    """Does one thing: to tokens,
    e.g. 2.5 of them. Then another.

    A second paragraph
    of two lines:

        and code
        below it

    Args:
        first: What
            comes first.
        second: And then.

    Raises:
        ValueError: Something
            is wrong.

    References:
        A Paper: With a Colon
        (Somebody, 2024), section 3.
    """

    def __init__(self, first: int, second: "Path | None" = None) -> None:
        pass


class Bare(Whole):
    def __init__(self, second: str, third: "NoSuchType") -> None:  # noqa: F821
        pass


@dataclass
class Value:
    """A value."""

    sizes: tuple[int, ...] = (1, 2, 3, 4, 5)
    inner: "Point" = None


@dataclass(frozen=True)
class Point:
    x: int = 0


def test_sections_are_told_apart():
    words = words_of(Whole)
    assert words.summary == "Does one thing: to tokens, e.g. 2.5 of them."
    assert "A second paragraph of two lines:" in words.text
    assert "    and code\n    below it" in words.text
    assert words.raises == (("ValueError", "Something is wrong."),)
    assert words.references == "A Paper: With a Colon (Somebody, 2024), section 3."
    assert "Args" not in words.text


def test_parameters_have_types_defaults_and_meanings():
    first, second = parameters_of(Whole)
    assert (first.required, first.default_text, first.meaning) == (True, "required", "What comes first.")
    assert (second.required, second.default_text, second.annotation) == (False, "None", Path | None)


def test_a_class_without_a_docstring_says_nothing_and_its_base_tells_of_settings():
    assert summary_of(Bare) == ""
    second, third = parameters_of(Bare)
    assert second.meaning == "And then."
    assert third.annotation is Any, "a type that cannot be found is any"


def test_defaults_are_short():
    sizes, _ = parameters_of(Value)
    assert sizes.default_text == "(1, 2, 3, ...)"
    assert (
        next(iter(parameters_of(type("Placed", (), {"__init__": lambda self, at=Point(): None})))).default_text
        == "Point()"
    )


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (Literal["a", "b"], "'a' | 'b'"),
        (Sequence[int] | int, "Sequence[int] | int"),
        (tuple[str, ...], "tuple[str, ...]"),
        (Mapping[str, Any], "Mapping[str, Any]"),
        (bigain.TokenScorer | str, "TokenScorer | str"),
    ],
)
def test_types_are_written_as_in_code(annotation, text):
    assert type_text(annotation) == text


def test_what_has_no_signature_has_no_parameters():
    assert parameters_of(type) == []


def test_a_class_is_known_by_every_path_that_shows_it():
    assert class_paths(bigain.TokenScorer) == ["bigain.scorers.base.TokenScorer", "bigain.TokenScorer"]
    assert class_paths(Whole) == [f"{Whole.__module__}.Whole"]


def test_versions_go_by_module_or_distribution():
    assert installed_version("yaml") == installed_version("pyyaml") != ""
    assert installed_version("no_such_library") == ""


MESSAGE = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'a.B'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'a.B':
        Parser key "c":
          Expected a <class 'float'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'a.B', 'init_args': {'c': 'x', 'and': 'so on', 'until': 'it is long'}}"""


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (MESSAGE, "model: a.B: c: Expected a float. Got value: x."),
        ("unrecognized arguments: --x", "unrecognized arguments: --x."),
        ("", ""),
        ("Given value: 3", "Given value: 3"),
        ("what nobody\nthought of", "what nobody; or thought of."),
    ],
)
def test_messages_come_down_to_what_is_wrong(message, told):
    assert shortened(message) == told
