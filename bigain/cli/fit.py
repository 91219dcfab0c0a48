"""`bigain fit`: Lightning's training, from a recipe."""

from collections.abc import Sequence

from bigain.cli.lightning_cli import run_verb, verb_parser
from bigain.cli.parser import Parser

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    return verb_parser("fit")


def run(arguments: Sequence[str]) -> None:
    """Parse a recipe and run it."""
    run_verb("fit", arguments)
