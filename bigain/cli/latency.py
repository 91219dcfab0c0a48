"""`bigain latency`: a network of random weights under reducers, timed on this device beside no reduction."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bigain.benchmark.flops import COUNTED
from bigain.benchmark.latency_settings import LatencySettings, measure_methods
from bigain.benchmark.latency_table import check_absent, notes_below, terminal_table, write_latency
from bigain.cli.parser import Parser, recipe_parser
from bigain.cli.terminal import make_console

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    description = "Time a network under reducers on this device: random weights, compiled, beside no reduction."
    parser = recipe_parser("latency", description, "recipes/latency/sd2.yaml")
    parser.add_class_arguments(LatencySettings)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures, too.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Time and print a table."""
    parser = make_parser()
    given = parser.instantiate(parser.parse_args([*arguments]))
    settings = LatencySettings(**{item.name: getattr(given, item.name) for item in fields(LatencySettings)})
    check_absent(given.output)
    console = make_console()
    console.width = min(80, console.width)
    content = measure_methods(settings, lambda line: console.print(line, highlight=False))
    if given.output is not None:
        write_latency(given.output, content)
    below = f"FLOPs {COUNTED[0].lower()}{COUNTED[1:]}"
    for line in ("", content.title, terminal_table(content), notes_below(content), below):
        console.print(line, highlight=False)
