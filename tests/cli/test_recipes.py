"""The recipes that ship: listed, copied whole, and found from an empty folder."""

import re
import tomllib
from pathlib import Path

import pytest

from bigain.cli import recipes as shipped
from bigain.cli.main import main
from bigain.cli.recipes import copy_recipes, recipes, with_shipped
from bigain.errors import SettingError

DEMO = "recipes/benchmark/cifar10_demo.yaml"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_package_has_the_recipes_of_the_repository(root):
    """In a checkout by a link; in the wheel if `package-data` names them (.ci/packages compares what was installed)."""
    assert [recipe.name for recipe in recipes()] == sorted(
        path.relative_to(root).as_posix() for path in (root / "recipes").rglob("*.yaml")
    )
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["bigain"]
    found = {path for pattern in patterns for path in (root / "bigain").glob(pattern)}
    assert {path for path in shipped._shipped() if path.suffix != ".py"} <= found


def test_each_says_what_it_does_and_which_command_runs_it():
    for recipe in recipes():
        assert recipe.summary.endswith("."), recipe
        assert not recipe.summary.startswith(("bigain ", "#")), recipe
        assert re.match(rf"bigain (fit|test|compare|flops|latency) --config {recipe.name}", recipe.command), recipe


def test_the_command_lists_them(capsys):
    main(["recipes"])
    told = capsys.readouterr().out
    for recipe in recipes():
        assert Path(recipe.name).name in told
    assert "recipes/latency, for bigain latency" in told


def test_copies_are_the_files_and_can_be_read_as_recipes(empty, root, capsys):
    main(["recipes", "--output", "mine"])
    assert "Wrote mine" in capsys.readouterr().out
    copied = {path.relative_to(empty / "mine") for path in (empty / "mine").rglob("*") if path.is_file()}
    ours = {path.relative_to(root / "recipes") for path in (root / "recipes").rglob("*") if path.is_file()}
    kept = {path for path in ours if path.suffix not in (".parquet", ".pyc")}
    assert copied == kept
    assert all((empty / "mine" / path).read_bytes() == (root / "recipes" / path).read_bytes() for path in copied)
    assert [path.name for path in empty.iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["exists already", "cannot be made, since there is no folder"])
def test_a_copy_overwrites_nothing(empty, what):
    (empty / "mine").mkdir()
    with pytest.raises(SettingError, match=what):
        copy_recipes(empty / "mine" if what == "exists already" else empty / "absent" / "mine")
    assert [path.name for path in empty.rglob("*")] == ["mine"]


def test_a_copy_that_fails_half_way_leaves_nothing(empty, monkeypatch):
    files = shipped._shipped()
    monkeypatch.setattr(shipped, "_shipped", lambda: [*files, shipped._root() / "absent.yaml"])
    with pytest.raises(SettingError, match=r"mine cannot be written: .*absent\.yaml"):
        copy_recipes(empty / "mine")
    assert not list(empty.iterdir())


FORMS = [["--config", DEMO], [f"--config={DEMO}"], ["-c", DEMO], [f"-c{DEMO}"], ["--recipe", DEMO]]


@pytest.mark.parametrize("given", FORMS, ids=str)
def test_from_an_empty_folder_the_recipe_that_ships_is_read(empty, root, capsys, given):
    *_, found = with_shipped(given)
    path = Path(found.removeprefix("--config=").removeprefix("-c"))
    assert path.read_bytes() == (root / DEMO).read_bytes()
    assert f"there is no {DEMO} here; reading the one of bigain" in capsys.readouterr().err


def test_a_recipe_that_is_here_comes_first(empty, capsys):
    (empty / DEMO).parent.mkdir(parents=True)
    (empty / DEMO).write_text("mine: 1\n")
    assert with_shipped(["--config", DEMO, "--output", DEMO]) == ["--config", DEMO, "--output", DEMO]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("text", ["{output: x}", "output: x\n", "null", "{}", "", f'{{"title": "{300 * "x"}"}}'])
def test_a_config_that_is_text_is_left_to_the_parser(empty, text):
    assert with_shipped(["--config", text]) == ["--config", text]


def test_a_home_folder_is_found_as_the_parser_finds_it(empty, monkeypatch):
    monkeypatch.setenv("HOME", str(empty))
    (empty / "mine.yaml").touch()
    assert with_shipped(["--config=~/mine.yaml"]) == ["--config=~/mine.yaml"]


def test_a_file_that_may_not_be_looked_at_is_left_to_the_parser(empty, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "exists", refuse)
    assert with_shipped(["--config", "locked/mine.yaml"]) == ["--config", "locked/mine.yaml"]


def test_a_recipe_before_the_verb_is_found(empty, root, capsys):
    with pytest.raises(SystemExit):
        main(["--config", "recipes/classify/cifar10_lgtm.yaml", "test", "--data.limit=x"])
    assert "reading the one of bigain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("recipes/benchmark/cifar10_dem.yaml", f"Did you mean {DEMO}"),
        ("cifar10_demo.yaml", f"bigain has {DEMO}"),
        ("mine.yaml", r"there is no file mine\.yaml\. See bigain recipes"),
        ("a", r"there is no file a\. See bigain recipes"),
        ("x.yaml", r"there is no file x\.yaml\. See bigain recipes"),
        ("recipes/../recipes/benchmark/cifar10_demo.yaml", "there is no file"),
        ("recipes", r"there is no file recipes\. See bigain recipes"),
    ],
)
def test_one_that_is_nowhere_is_refused_with_what_was_meant(empty, capsys, given, hint):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", given])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert re.search(hint, told)
    assert len(told.splitlines()) == 1


def test_a_command_runs_from_an_empty_folder_with_a_shipped_recipe(empty, capsys):
    # Of its reducers one will do: each is a pass through the whole U-Net.
    one = '--reducers={"none": {"class_path": "bigain.reducers.base.Identity"}}'
    main(["flops", "--config", "recipes/flops/sd2_ratios.yaml", one, "--csv", "flops.csv"])
    assert "804.26" in capsys.readouterr().out
    assert [path.name for path in empty.iterdir()] == ["flops.csv"]
