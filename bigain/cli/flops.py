"""`bigain flops`: the operations of one network evaluation under reducers; no weights, no GPU."""

from collections.abc import Sequence
from pathlib import Path

from bigain.benchmark.flops import COUNTED
from bigain.benchmark.flops_settings import FlopsSettings, count_methods
from bigain.benchmark.flops_table import check_writable, parts_note, terminal_table, write_csv
from bigain.cli.parser import Parser, recipe_parser, settings_of
from bigain.cli.terminal import make_console

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    description = "Count the operations of one network evaluation under reducers: no weights, no GPU."
    parser = recipe_parser("flops", description, "recipes/flops/sd2_tables_11_18.yaml")
    parser.add_class_arguments(FlopsSettings)
    parser.add_argument("--csv", type=Path, default=None, help="Also write the table to this file.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Count and print a table."""
    parser = make_parser()
    given = parser.instantiate(parser.parse_args([*arguments]))
    settings = settings_of(FlopsSettings, given)
    check_writable(given.csv)
    content = count_methods(settings)
    if given.csv is not None:
        write_csv(given.csv, content)
    console = make_console()
    console.width = min(100, console.width)
    for line in (content.title, terminal_table(content), parts_note(content), COUNTED):
        console.print(line, highlight=False)
