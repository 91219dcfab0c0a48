"""`bigain classify`: what a diffusion model takes images for, without and with a reducer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bigain.benchmark.classified_files import accuracy_of, changed_of, write_classified
from bigain.benchmark.classify import ClassifiedFolder, classify_folder
from bigain.benchmark.classify_settings import ClassifySettings
from bigain.cli.parser import Parser, settings_of
from bigain.cli.terminal import make_console
from bigain.results.files import check_absent

__all__ = ["make_parser", "run"]

_SHOWN = 20
"""Images in the printed table; the file has all."""


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain classify", description="Classify images without and with a reducer.")
    parser.add_argument("folder", type=Path, help="A folder of images, of class folders, or a known data set.")
    parser.add_argument("--config", action="config", help="A YAML file with these settings.")
    parser.add_class_arguments(ClassifySettings)
    parser.add_argument("--output", type=Path, default=Path("classified"), help="Folder for predictions and settings.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Classify, write the folder, and print what changed and what it cost."""
    parser = make_parser()
    given = parser.instantiate(parser.parse_args([*arguments]))
    settings = settings_of(ClassifySettings, given)
    check_absent(given.output)
    console = make_console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    content = classify_folder(given.folder, settings, say)
    write_classified(given.output, content)
    console.print(_predictions(content))
    console.print(_costs(content))
    say(f"All predictions: {given.output / 'predictions.csv'}.")


def _predictions(content: ClassifiedFolder) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("image", overflow="fold")
    for one in content.methods:
        table.add_column(one.name)
    classes = content.images.classes
    # What a method changes is what a reader looks for.
    shown = sorted(range(len(content.images)), key=lambda row: not _differs(content, row))[:_SHOWN]
    for row in shown:
        cells = [f"{classes[int(one.predicted[row])]} {float(one.confidence[row]):.2f}" for one in content.methods]
        table.add_row(
            Text(content.images.names[row]),
            *(Text(cell) for cell in cells),
            style="bold" if _differs(content, row) else None,
        )
    if len(content.images) > _SHOWN:
        table.add_row(f"and {len(content.images) - _SHOWN} more", *[""] * len(content.methods))
    return table


def _differs(content: ClassifiedFolder, row: int) -> bool:
    return len({int(one.predicted[row]) for one in content.methods}) > 1


def _costs(content: ClassifiedFolder) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    for column in (*(["right"] if content.labelled else []), "changed", "s an image", "x none"):
        table.add_column(column, justify="right")
    for one in content.methods:
        accuracy = accuracy_of(content, one)
        right = [] if accuracy is None else [f"{accuracy:.1%}"]
        ratio = one.seconds / content.methods[0].seconds
        table.add_row(one.name, *right, str(changed_of(content, one)), f"{one.seconds:.2f}", f"{ratio:.2f}")
    return table
