"""`bigain generate`: the same images without and with a reducer, from a prompt or a class."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bigain.benchmark.at_work import cost_columns
from bigain.benchmark.generate import Generated, GenerateSettings, generate
from bigain.benchmark.strip import write_generated
from bigain.cli.live import shown_progress
from bigain.cli.parser import Parser, settings_of
from bigain.cli.terminal import make_console, settings_lines
from bigain.errors import SettingError
from bigain.results.files import check_absent
from bigain.results.wording import MISSING, decimal

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain generate", description="Draw images, the same seeds without and with a reducer.")
    parser.add_argument("prompt", help="What to draw; for a model of classes, a class name.")
    parser.add_argument("--config", action="config", help="A YAML file with these settings.")
    parser.add_class_arguments(GenerateSettings)
    parser.add_argument("--output", type=Path, default=Path("generated"), help="Folder for images, strip and settings.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Draw, write the folder, and print what each method took."""
    words = [*takewhile(lambda one: not one.startswith("--"), arguments)]
    if len(words) > 1:
        raise SettingError(f'One prompt, in quotes: bigain generate "{" ".join(words)}"; got {len(words)} words apart.')
    parser = make_parser()
    given = parser.instantiate(parser.parse_args([*arguments]))
    settings = settings_of(GenerateSettings, given)
    check_absent(given.output)
    console = make_console()
    with shown_progress(console) as progress:
        content = generate(given.prompt, settings, progress)
    write_generated(given.output, content)
    console.print(_table(content))
    several = len(content.drawn) * len(content.settings["seeds"]) > 1
    strip = given.output / "strip.png"
    written = f"{strip} shows them side by side." if several else f"The image is in {given.output}."
    for line in (*settings_lines(content.drawn), written):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(content: Generated) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    costs = cost_columns([one.cost for one in content.drawn])
    compared = len(content.drawn) > 1
    for column in ("s an image", *costs, *(["pixels differ by"] if compared else [])):
        table.add_column(column, justify="right", overflow="fold")
    for row, one in enumerate(content.drawn):
        mean = sum(one.seconds) / len(one.seconds)
        apart = sum(one.difference) / len(one.difference)
        differs = [f"{apart:.1f} of 255" if row else MISSING] if compared else []
        table.add_row(one.name, decimal(mean), *(cells[row] for cells in costs.values()), *differs)
    return table
