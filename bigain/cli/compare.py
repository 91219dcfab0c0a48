"""`bigain compare`: several reducers on one backbone, one page."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import seed_everything

from bigain.benchmark.compare import run_comparison
from bigain.benchmark.compare_table import terminal_table
from bigain.benchmark.comparison import Comparison
from bigain.cli.parser import Parser, recipe_parser
from bigain.cli.terminal import make_console
from bigain.report.page import write_page

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = recipe_parser("compare", "Run several reducers, write one page.", "recipes/benchmark/cifar10_demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("results/compare"), help="Folder of the result.")
    parser.add_argument("--resume", action="store_true", help="Finish an interrupted comparison.")
    parser.add_class_arguments(Comparison, "comparison", as_group=True)
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run a comparison and say where its page is."""
    parser = make_parser()
    given = parser.parse_args([*arguments])
    console = make_console()
    seed_everything(given.comparison.seed, verbose=False)
    comparison = parser.instantiate(given).comparison

    def add_page(folder: Path) -> Path:
        return write_page(folder, comparison.data.test_set)

    content = run_comparison(comparison, given.output, given.resume, console, parser.dump(given), add_page)
    console.print(terminal_table(content))
    console.print(
        f"Wrote {given.output / 'report.html'} (open it in a browser), table.csv and comparison.json beside it."
    )
