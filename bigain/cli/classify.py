"""`bigain classify`: what a diffusion model takes images for, without and with a reducer."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bigain.benchmark.at_work import cost_columns
from bigain.benchmark.classified_files import accuracy_of, changed_first, changed_of, differs, write_classified
from bigain.benchmark.classify import ClassifiedFolder, classify_folder
from bigain.benchmark.classify_settings import ClassifySettings
from bigain.cli.live import shown_progress
from bigain.cli.parser import Parser, settings_of
from bigain.cli.terminal import make_console, settings_lines
from bigain.errors import SettingError
from bigain.report.classified_page import write_classified_page
from bigain.results.files import check_absent
from bigain.results.wording import decimal

__all__ = ["make_parser", "run"]

_SHOWN = 20
"""Images in the printed table; the file has all."""

_SURENESS = (
    "The figure behind a class says how sure the timesteps are of it: 0.5 is a coin's toss. It is no probability that "
    "the class is right."
)


_IMAGES = "A folder of images or of class folders, a known data set, an image, parquet, arrow or a shard."


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain classify", description="Classify images without and with a reducer.")
    parser.add_argument("folder", type=Path, help=_IMAGES)
    parser.add_argument("--config", action="config", help="A YAML file with these settings.")
    parser.add_class_arguments(ClassifySettings)
    parser.add_argument("--page", action="store_true", help="Write page.html too, without images.")
    images = "Write page.html with the images in it, as thumbnails."
    parser.add_argument("--page.images", dest="page_images", action="store_true", help=images)
    parser.add_argument("--output", type=Path, default=Path("classified"), help="Folder for predictions and settings.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Classify, write the folder, and print what changed and what it cost."""
    parser = make_parser()
    if odd := [one for one in arguments if one.startswith("--page.") and one != "--page.images"]:
        # jsonargparse would take it for --page.
        raise SettingError(f"There are --page and --page.images, which take no value; got {odd[0]}.")
    given = parser.instantiate(parser.parse_args([*arguments]))
    settings = settings_of(ClassifySettings, given)
    check_absent(given.output)
    console = make_console()
    with shown_progress(console) as progress:
        content = classify_folder(given.folder, settings, progress)
    write_classified(given.output, content)
    console.print(_predictions(content))
    console.print(_costs(content))
    for line in settings_lines(content.methods):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_SURENESS, highlight=False)
    written = [f"All predictions: {given.output / 'predictions.csv'}."]
    if given.page or given.page_images:
        page = write_classified_page(given.output, content, pictures=given.page_images)
        written.append(f"The page: {page}.")
    console.print(" ".join(written), highlight=False, markup=False, soft_wrap=True)


def _predictions(content: ClassifiedFolder) -> Table:
    """Make a row for each image: its labels where it has any, and the class that each method predicts."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("image", overflow="fold")
    for name in (*(["label"] if content.labelled else []), *(one.name for one in content.methods)):
        table.add_column(name, overflow="fold")
    classes = content.images.classes
    # What a method changes is what a reader looks for.
    shown = changed_first(content)[:_SHOWN]
    named = [[classes[int(one.predicted[row])] for row in shown] for one in content.methods]
    for place, row in enumerate(shown):
        cells = [content.images.names[row]]
        if content.labelled:
            cells.append(" | ".join(classes[label] for label in content.images.labels[row]))
        for one, names in zip(content.methods, named, strict=True):
            cells.append(f"{names[place]:<{max(map(len, names))}} {float(one.confidence[row]):.2f}")
        table.add_row(*map(Text, cells), style="bold" if differs(content, row) else None)
    if len(content.images) > _SHOWN:
        table.add_row(f"and {len(content.images) - _SHOWN} more")
    return table


def _costs(content: ClassifiedFolder) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    costs = cost_columns([one.cost for one in content.methods])
    for column in (*(["right"] if content.labelled else []), "changed", "s an image", "x none", *costs):
        table.add_column(column, justify="right")
    for row, one in enumerate(content.methods):
        accuracy = accuracy_of(content, one)
        right = [] if accuracy is None else [f"{accuracy:.1%}"]
        ratio = one.seconds / content.methods[0].seconds
        time = decimal(one.seconds), f"{ratio:.2f}"
        table.add_row(one.name, *right, str(changed_of(content, one)), *time, *(cells[row] for cells in costs.values()))
    return table
