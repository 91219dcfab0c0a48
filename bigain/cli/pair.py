"""`bigain pair`: two stored classifications of the same images, image by image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigain.benchmark.pair import Pair, compare_pair
from bigain.cli.parser import Parser
from bigain.results.wording import count, quantity, score_line

__all__ = ["make_parser", "run"]

_LONGEST = 60
"""Characters of a setting that are shown."""


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain pair", description="Compare two results of classification image by image.")
    parser.add_argument("first", type=Path, help="A result folder, or a row of a comparison: OUTPUT/rows/NAME.")
    parser.add_argument("second", type=Path, help="Another, of the same images, classes, stages and noise.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print the difference with its interval, McNemar's p, and how many predictions differ."""
    given = make_parser().parse_args([*arguments])
    pair = compare_pair(given.first, given.second)
    print("\n".join(_lines(pair, str(given.first), str(given.second))))


def _lines(pair: Pair, first: str, second: str) -> list[str]:
    return [
        f"{quantity(pair.images, 'image')}, classified by",
        *(f"  {name}: {score_line(score)}" for name, score in zip((first, second), pair.scores, strict=True)),
        f"first minus second, {score_line(pair.difference)}",
        f"only the first is right: {count(pair.first_alone)}; only the second: {count(pair.second_alone)}",
        f"McNemar's exact test: p = {pair.p:.3g}",
        f"predictions that differ, right or wrong: {count(pair.changed)}",
        *_differences(pair.differences),
    ]


def _differences(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    if not found:
        return ["the runs have the same settings"]
    return ["the runs differ in", *(f"  {key}: {_short(one)} | {_short(other)}" for key, (one, other) in found.items())]


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}.."
