"""`bigain latency`: networks of random weights, or one self-attention, under reducers, timed on this device."""

from collections.abc import Sequence
from pathlib import Path

from bigain.benchmark.flops import COUNTED
from bigain.benchmark.latency import LatencyTable, measure_latency
from bigain.benchmark.latency_files import write_latency
from bigain.benchmark.latency_settings import LatencySettings
from bigain.benchmark.latency_table import notes_below, terminal_tables
from bigain.cli.parser import Parser, recipe_parser, settings_of
from bigain.cli.terminal import make_console
from bigain.results.files import check_absent

__all__ = ["make_parser", "run"]

_FLAG = "--self-attention"
"""Short for `--self_attention=true`."""


def make_parser() -> Parser:
    """Make the command's parser."""
    description = (
        "Time a network, or one self-attention (--self-attention), under reducers on this device: random weights, in "
        "turn with no reduction, compiled, and on a GPU as CUDA graphs."
    )
    parser = recipe_parser("latency", description, "recipes/latency/sd2.yaml")
    parser.add_class_arguments(LatencySettings)
    help_text = "Folder for JSON with every single time, a CSV table and a picture; or a .json file."
    parser.add_argument("--output", type=Path, default=None, help=help_text)
    return parser


def run(arguments: Sequence[str]) -> None:
    """Time and print tables."""
    parser = make_parser()
    written_out = ["--self_attention=true" if given == _FLAG else given for given in arguments]
    given = parser.instantiate(parser.parse_args(written_out))
    settings = settings_of(LatencySettings, given)
    check_absent(given.output)
    console = make_console()
    console.width = min(80, console.width)

    def keep(content: LatencyTable) -> None:
        """Write after each size, so that a long sweep that is cut short keeps what it has measured."""
        if given.output is not None:
            write_latency(given.output, content, replace=len(content.sizes) > 1)

    content = measure_latency(settings, lambda line: console.print(line, highlight=False), keep)
    console.print(f"\n{content.title}", highlight=False)
    for title, table in terminal_tables(content):
        console.print(f"\n{title}", highlight=False)
        console.print(table)
    for line in (*notes_below(content), f"FLOPs {COUNTED[0].lower()}{COUNTED[1:]}"):
        console.print(line, highlight=False)
