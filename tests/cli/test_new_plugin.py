"""`new_plugin`: what it writes, what it refuses, and the three commands that come after."""

import shlex
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from bigain.cli import new_plugin as new_plugin_module
from bigain.cli.main import main
from bigain.cli.new_plugin import new_plugin, next_steps, plugin_files
from bigain.errors import SettingError


def files_below(folder):
    """Text of each file below a folder, without what installing and running leave behind."""
    made = {"__pycache__", ".pytest_cache", "build"}
    return {
        PurePosixPath(path.relative_to(folder).as_posix()): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in made or part.endswith(".egg-info") for part in path.parts)
    }


def test_the_template_in_plugins_is_what_the_command_writes(root):
    """If not: rm -r plugins/template; bigain new-plugin bigain-template --folder plugins/template."""
    assert files_below(root / "plugins" / "template") == plugin_files("bigain-template")


def test_the_folder_holds_the_files_and_nothing_lies_beside_it(tmp_path):
    folder = new_plugin("Bigain-my.Texture_2", tmp_path / "mine")
    assert folder == tmp_path / "mine"
    assert files_below(folder) == plugin_files("Bigain-my.Texture_2")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (folder / "bigain_my_texture_2" / "py.typed").read_text() == ""


def test_the_folder_has_the_permissions_of_any_new_one(tmp_path):
    (tmp_path / "other").mkdir()
    assert new_plugin("fine-texture", tmp_path / "mine").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_are_filled_in_everywhere(tmp_path):
    folder = new_plugin("fine-texture", tmp_path / "x")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "fine-texture"
    assert project["tool"]["setuptools"]["packages"] == ["fine_texture"]
    assert project["project"]["entry-points"] == {
        "bigain.scorers": {"fine_texture_range": "fine_texture.scorer:ChannelRange"},
        "bigain.reducers": {"fine_texture_pairs": "fine_texture.reducer:NeighbourPairs"},
    }
    for path, text in files_below(folder).items():
        assert "{" + "{" not in text, path
        assert "template" not in text, path


def test_without_a_folder_it_is_named_as_the_distribution_and_made_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_plugin("fine-texture") == Path("fine-texture")
    assert (tmp_path / "fine-texture" / "fine_texture" / "scorer.py").is_file()


@pytest.mark.parametrize(
    "name",
    ["", "-x", "x-", "3d", "a b", "a/b", "../x", "naïve", "x\n", "class", "Lambda", "Tests", "a'b", "{x}"],
)
def test_what_cannot_be_a_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"A plugin's name has letters.* such as bigain-texture; got") as caught:
        new_plugin(name)
    assert repr(name) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["numpy", "bigain", "Torch", "json", "sys", "bigain-sito"])
def test_the_name_of_a_module_that_exists_is_refused(tmp_path, name):
    with pytest.raises(SettingError, match=f"{name!r} would be the module .*, which exists already: "):
        new_plugin(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_left_as_it_is(tmp_path, kind):
    target = tmp_path / "mine"
    {"folder": target.mkdir, "file": target.touch, "dangling link": lambda: target.symlink_to("nowhere")}[kind]()
    with pytest.raises(SettingError, match="mine exists already"):
        new_plugin("fine-texture", target)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert target.is_symlink() or target.is_file() or not list(target.iterdir())


def test_a_folder_in_none_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"mine cannot be made, since there is no folder .*absent"):
        new_plugin("fine-texture", tmp_path / "absent" / "mine")


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    """A file where a folder has to be stops the writing, after others were written."""
    content = {**plugin_files("fine-texture"), PurePosixPath("README.md/inner"): ""}
    monkeypatch.setattr(new_plugin_module, "plugin_files", lambda name: content)
    with pytest.raises(SettingError, match=r"mine cannot be written: .*README\.md"):
        new_plugin("fine-texture", tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_the_templates_are_in_the_wheel(root):
    """`package-data` names them: they are no modules."""
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["bigain"]
    package = root / "bigain"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    templates = {path for path in (package / "templates").rglob("*") if path.is_file()}
    assert len(templates) == len(plugin_files("fine-texture"))
    assert templates <= shipped


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new-plugin", "fine-texture"])
    told = capsys.readouterr().out
    assert told.startswith("Wrote fine-texture.")
    assert all(f"\n  {line}\n" in told for line in next_steps(Path("fine-texture")).splitlines())
    assert (tmp_path / "fine-texture" / "recipe.yaml").is_file()


def test_a_path_with_a_space_is_quoted():
    assert next_steps(Path("my plugins/x")) == "pip install -e 'my plugins/x[test]'\npytest 'my plugins/x'\nbigain list"


@pytest.mark.slow
def test_the_three_commands_install_it_pass_its_tests_and_list_it(tmp_path, environment):
    """The commands are run as they are shown, each program as the environment's own."""
    python, variables = environment
    modules = {"pip": "pip", "pytest": "pytest", "bigain": "bigain.cli.main"}
    variables = variables | {"PYTEST_ADDOPTS": "-k 'not compiles'"}  # plugins/template has these tests, all of them
    new_plugin("fine-texture", tmp_path / "fine texture")
    said = []
    for line in next_steps(Path("fine texture")).splitlines():
        program, *arguments = shlex.split(line)
        command = [python, "-m", modules[program], *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    _, tested, listed = said
    assert " passed" in tested
    assert "failed" not in tested
    rows = {line.split()[0]: line.split()[1:3] for line in listed.splitlines() if len(line.split()) > 2}
    for name in ("fine_texture_range", "fine_texture_pairs"):
        assert rows[name] == ["fine-texture", "0.1.0"]
