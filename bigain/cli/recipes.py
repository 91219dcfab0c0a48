"""`bigain recipes`: the recipes that ship with bigain, listed, copied, and found where there is no checkout."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from bigain.cli.folders import new_folder
from bigain.cli.terminal import did_you_mean, make_console
from bigain.errors import SettingError
from bigain.registry import running_version

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bigain.cli.parser import Parser

__all__ = ["Recipe", "copy_recipes", "make_parser", "recipes", "run", "with_shipped"]

_TOP = "recipes"
"""Folder of the recipes: in a checkout, in the package, and in what users type."""

_SUFFIXES = (".yaml", ".py", ".md")
"""Suffixes of the files that are copied. The training images, 15 MB, are only in the repository."""

_OPTIONS = ("-c", "--config", "--recipe")
"""Options that take a recipe."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that ships.

    Args:
        name: As users type it, `recipes/benchmark/cifar10_demo.yaml`.
        summary: First sentence of its comment.
        command: How to run it, as its comment says.
    """

    name: str
    summary: str
    command: str


def make_parser() -> "Parser":
    """Make the command's parser."""
    from bigain.cli.parser import Parser  # imports jsonargparse, which `with_shipped` does not need

    parser = Parser(prog="bigain recipes", description="List the recipes that ship with bigain, or copy them.")
    parser.add_argument("--output", type=Path, default=None, help="Folder to make, with a copy of each.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """List the recipes, or copy them."""
    given = make_parser().parse_args([*arguments])
    if given.output is not None:
        print(f"Wrote {given.output}: {copy_recipes(given.output)} files.")
        return
    make_console().print(_table(recipes()), highlight=False)
    print("The first lines of each say how it is run. To edit them: bigain recipes --output recipes")


def recipes() -> list[Recipe]:
    """List the recipes that ship, by name."""
    return [_read(path) for path in _shipped() if path.suffix == ".yaml"]


def copy_recipes(folder: Path) -> int:
    """Copy recipes and examples, to be edited. The folder appears whole or not at all.

    Args:
        folder: Folder to make.

    Returns:
        How many files were written.

    Raises:
        SettingError: The folder exists, or cannot be made.
    """
    shipped = _shipped()
    with new_folder(folder, "--output") as written:
        for path in shipped:
            target = written / path.relative_to(_root())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return len(shipped)


def _table(rows: Sequence[Recipe]) -> "RenderableType":
    """Lay recipes out for a terminal, folder by folder."""
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    laid_out: list[RenderableType] = []
    width = max(len(Path(row.name).name) for row in rows)
    for folder in dict.fromkeys(str(Path(row.name).parent) for row in rows):
        of_it = [row for row in rows if str(Path(row.name).parent) == folder]
        verb = " ".join(of_it[0].command.split()[:2])
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column()
        for row in of_it:
            table.add_row(Path(row.name).name, escape(row.summary))
        laid_out += [f"[bold]{folder}[/bold], for {verb}", Padding(table, (0, 0, 1, 2))]
    return Group(*laid_out)


def with_shipped(arguments: Sequence[str]) -> list[str]:
    """Make `--config recipes/...` name the shipped recipe if the working directory has no such file.

    Args:
        arguments: What follows `bigain` on the command line.

    Raises:
        SettingError: There is no such file, here or in the package.
    """
    found: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if found and found[-1] in _OPTIONS and not argument.startswith("-"):
            found.append(_found(found[-1], argument))
        elif equals and option in _OPTIONS:
            found.append(f"{option}={_found(option, value)}")
        elif argument.startswith("-c") and argument != "-c" and argument[2] != "=":
            found.append(f"-c{_found('-c', argument[2:])}")
        else:
            found.append(argument)
    return found


def _found(option: str, given: str) -> str:
    # A config may also be YAML text, which jsonargparse reads or refuses.
    if given in ("", "null") or given[0] in "{[" or ":" in given or "\n" in given:
        return given
    path = Path(given).expanduser()
    try:
        if path.exists():
            return given
    except OSError:
        return given  # its reader reports why it cannot be read
    shipped = _root().parent / path
    if path.parts[0] == _TOP and ".." not in path.parts and shipped.is_file():
        print(f"bigain: there is no {given} here; reading the one of bigain {running_version()}.", file=sys.stderr)
        return str(shipped)
    raise SettingError(f"{option}: there is no file {given}.{_hint(path)} See bigain recipes.")


def _hint(path: Path) -> str:
    """Suggest one or two recipes that may have been meant."""
    names = [recipe.name for recipe in recipes()]
    near = did_you_mean(path.as_posix(), names, cutoff=0.75)
    same = [name for name in names if Path(name).stem == path.stem][:2]
    return f" {near}" if near else f" bigain has {' and '.join(same)}." if same else ""


def _root() -> Path:
    return Path(str(files("bigain"))) / _TOP


def _shipped() -> list[Path]:
    found = sorted(path for path in _root().rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    if not found:
        raise SettingError(f"This installation of bigain has no recipes: {_root()} is missing.")
    return found


def _read(path: Path) -> Recipe:
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[:8]]
    command = next((line for line in lines if line.startswith("bigain ")), "")
    sentence = " ".join(lines[: lines.index(command)] if command in lines else lines[:1])
    return Recipe((Path(_TOP) / path.relative_to(_root())).as_posix(), sentence, command)
