"""`bigain new-plugin`: a package to start from, with one scorer, one reducer, and their tests."""

import importlib.util
import keyword
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from bigain.cli.folders import new_folder
from bigain.cli.parser import Parser
from bigain.errors import SettingError

__all__ = ["make_parser", "new_plugin", "next_steps", "plugin_files", "run"]

_PACKAGE = "package"
"""Folder of the templates that becomes the package, under its own name."""


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain new-plugin", description="Write a package with a scorer, a reducer and their tests.")
    parser.add_argument("name", help="Name of the package, such as bigain-texture.")
    parser.add_argument("--folder", type=Path, default=None, help="Folder to make. Default: one of that name, here.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Write the package and say what comes next."""
    given = make_parser().parse_args([*arguments])
    folder = new_plugin(given.name, given.folder)
    print(f"Wrote {folder}. To install it, test it, and see it beside the others:\n")
    print("\n".join(f"  {line}" for line in next_steps(folder).splitlines()))
    print(f"\nThen {folder / 'README.md'} says how to compare it with L-GTM.")


def new_plugin(name: str, folder: Path | None = None) -> Path:
    """Write a plugin package.

    The folder appears whole or not at all.

    Args:
        name: Name of the distribution, such as `bigain-texture`; the module has underscores instead.
        folder: Folder to make. Default: one of the distribution's name in the working directory.

    Returns:
        The folder.

    Raises:
        SettingError: The name does not suit a distribution and a module, or is taken; the
            folder exists, or cannot be made.
    """
    content = plugin_files(name)
    _refuse_taken(name)
    folder = Path(name) if folder is None else Path(folder)
    with new_folder(folder, "--folder") as written:
        for path, text in content.items():
            target = written / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    return folder


def next_steps(folder: Path) -> str:
    """Return the three commands to run after `new_plugin`, one in each line.

    Args:
        folder: What `new_plugin` returned.
    """
    return f"pip install -e {shlex.quote(f'{folder}[test]')}\npytest {shlex.quote(str(folder))}\nbigain list"


def plugin_files(name: str) -> Mapping[PurePosixPath, str]:
    """Fill in the templates.

    Args:
        name: Name of the distribution.

    Returns:
        Text of each file, by its path in the plugin's folder.

    Raises:
        SettingError: The name does not suit a distribution and a module.
    """
    from jinja2 import Environment, StrictUndefined

    module = _module_of(name)
    names = {"name": name, "module": module, "stem": module.removeprefix("bigain_")}
    engine = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    content = {}
    for path, text in sorted(_templates(files("bigain") / "templates" / "plugin", PurePosixPath())):
        parts = [module if part == _PACKAGE else part for part in path.parts]
        if path.suffix == ".j2":
            text = engine.from_string(text).render(names)
        content[PurePosixPath(*parts[:-1], parts[-1].removesuffix(".j2"))] = text
    return content


def _templates(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield path and text of the files below a folder of the package, which may be in an archive."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _templates(entry, path / entry.name)
        else:
            yield path / entry.name, entry.read_text(encoding="utf-8")


def _module_of(name: str) -> str:
    """Return the module's name for a distribution's, refusing a name that does not suit both."""
    module = re.sub(r"[-.]+", "_", name).lower()
    # ASCII letters alone, as in package indexes; "tests" is the folder beside the module.
    possible = re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name)
    if not possible or keyword.iskeyword(module) or module == "tests":
        raise SettingError(
            "A plugin's name has letters, digits, '-', '_' and '.', begins with a letter, ends with a letter or a "
            f"digit, and is no word of Python and not 'tests', such as bigain-texture; got {name!r}."
        )
    return module


def _refuse_taken(name: str) -> None:
    """Refuse the name of a module that can be imported here: one of the two would hide the other."""
    module = _module_of(name)
    found = importlib.util.find_spec(module)
    # A namespace, any folder on the path, has no origin and hides nothing.
    if found is not None and found.origin is not None:
        raise SettingError(f"{name!r} would be the module {module}, which exists already: {found.origin}.")
