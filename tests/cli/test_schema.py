"""The JSON schema of recipes, against the recipes that ship and what the commands accept."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from bigain.cli.main import main
from bigain.cli.schema import RECIPE_COMMANDS, recipe_schema
from bigain.errors import SettingError

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[2]
COMMAND_OF = {
    "classify": "test",
    "generate": "test",
    "train": "fit",
    "benchmark": "compare",
    "flops": "flops",
    "latency": "latency",
}
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))

FREE = {("comparison", "trainer"), ("trainer", "callbacks"), ("reducers",), ("comparison", "reducers")}
FREE |= {("model", "init_args", "backbone", "init_args", "scheduler")}
"""Where keys are names of the user's own, Lightning's, or a diffusers scheduler's."""


@pytest.fixture(scope="module")
def validators():
    made = {command: recipe_schema(command) for command in RECIPE_COMMANDS}
    for schema in made.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {command: jsonschema.Draft202012Validator(schema) for command, schema in made.items()}


def of(validators, recipe):
    return validators[COMMAND_OF[Path(recipe).parts[1]]], yaml.safe_load((ROOT / recipe).read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe, validators):
    validator, content = of(validators, recipe)
    assert [error.message for error in validator.iter_errors(content)] == []


def keys(content, path=()):
    """List the paths of all keys in a recipe."""
    found = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in found:
        yield from [(*path, key)] if isinstance(key, str) else []
        yield from keys(value, (*path, key))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_mistyped_key_anywhere_is_noticed(recipe, validators):
    validator, content = of(validators, recipe)
    unnoticed = []
    for path in keys(content):
        mistyped = inner = copy.deepcopy(content)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1] + "x"] = inner.pop(path[-1])
        if validator.is_valid(mistyped):
            unnoticed.append(path)
    in_words = [path for path in unnoticed if path[:-1] not in FREE and path[:2] != ("trainer", "callbacks")]
    assert in_words == []
    # In a list of callbacks, their settings alone are free.
    assert all("init_args" in path[:-1] for path in unnoticed if path[:2] == ("trainer", "callbacks"))


def classify(**changes):
    content = yaml.safe_load((ROOT / "recipes/classify/cifar10_lgtm.yaml").read_text())
    content["model"]["init_args"] |= changes
    return content


LGTM = "bigain.reducers.lgtm.LGTM"
WRONG = {
    "a setting is missing": {"reducer": {"class_path": LGTM}},
    "a type is another": {"reducer": {"class_path": LGTM, "init_args": {"ratio": "half"}}},
    "a literal is unknown": {"reducer": {"class_path": LGTM, "init_args": {"ratio": 0.5, "mode": "median"}}},
    "a scorer is unknown": {"reducer": {"class_path": LGTM, "init_args": {"ratio": 0.5, "scorer": "laplacian"}}},
    "a class of bigain is mistyped": {"reducer": {"class_path": "bigain.reducers.lgtm.LGMT"}},
    "a class is of another kind": {"reducer": {"class_path": "bigain.scorers.laplacian.LaplacianL1"}},
    "a loss is unknown": {"loss": "l3"},
    "a nested reducer is mistyped": {
        "reducer": {"class_path": "bigain.reducers.cached.Cached", "init_args": {"reducer": {"name": "lgmt"}}}
    },
}
RIGHT = {
    "a registered name": {"class_path": LGTM, "init_args": {"ratio": 0.5, "scorer": "dft_amplitude"}},
    "a mapping with a name": {
        "class_path": LGTM,
        "init_args": {"ratio": 0.5, "scorer": {"name": "laplacian_l2", "padding": "zeros"}},
    },
    "a mapping with init_args": {
        "class_path": "bigain.reducers.cached.Cached",
        "init_args": {"reducer": {"name": "lgtm", "init_args": {"ratio": 0.5}}},
    },
    "a class of another package": {"class_path": "my_package.module.MyReducer", "init_args": {"anything": 1}},
    "a cell of one number": {"class_path": LGTM, "init_args": {"ratio": 0.5, "cell": 3}},
    "rules": {
        "class_path": "bigain.reducers.scheduled.Scheduled",
        "init_args": {"rules": [{"reducer": {"name": "todo", "factor": 2}, "timesteps": [0, 500]}]},
    },
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_the_command_would_refuse_is_marked(change, validators):
    assert validators["test"].is_valid(classify())
    assert not validators["test"].is_valid(classify(**change))


@pytest.mark.parametrize("reducer", RIGHT.values(), ids=RIGHT)
def test_what_the_command_accepts_is_not_marked(reducer, validators):
    assert [error.message for error in validators["test"].iter_errors(classify(reducer=reducer))] == []


def test_a_whole_printed_configuration_is_valid(validators, capsys, monkeypatch):
    """Every setting there is, with its default: nothing that the commands know is missing from the schemas."""
    monkeypatch.chdir(ROOT)
    for verb, recipe in {"test": "classify/cifar10_lgtm", "compare": "benchmark/cifar10_demo"}.items():
        with pytest.raises(SystemExit) as stop:
            main([verb, f"--config=recipes/{recipe}.yaml", "--print_config"])
        assert stop.value.code == 0
        content = yaml.safe_load(capsys.readouterr().out)
        assert [error.message for error in validators[verb].iter_errors(content)] == []


def test_settings_carry_their_meaning_for_the_editor(validators):
    settings = validators["test"].schema["$defs"][f"settings of {LGTM}"]["properties"]
    assert settings["ratio"]["description"] == "Share of the tokens removed."
    assert settings["mode"]["enum"] == ["mean", "prune", "mlerp"]


def test_the_command_prints_it(capsys, validators):
    main(["schema", "flops"])
    assert json.loads(capsys.readouterr().out) == validators["flops"].schema
    main(["schema"])
    assert json.loads(capsys.readouterr().out) == validators["test"].schema


def test_a_command_without_recipes_is_refused():
    with pytest.raises(SettingError, match="Recipes are for fit, test, compare, flops, latency; got 'export'"):
        recipe_schema("export")
