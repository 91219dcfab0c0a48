"""What is mistyped, stands twice or has moved: one line that says what was meant."""

import pytest

from bigain.cli.main import main
from bigain.cli.messages import MOVED


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--hlep"], "--help"),
        (["list", "--jsn"], "--json"),
        (["latency", "--network=sd2", "--reducr", "lgtm"], "--reducer or --reducers"),
        (["latency", "--network=sd2", "--placement.prts=mlp"], "--placement.parts"),
        (["latency", "--network=sd2", "--reducer=lgtm", "--reducer.rtio=0.5"], "ratio?"),
        (["compare", "--comparison.giudance=3"], "--comparison.guidance"),
        (["test", "--outptu=x"], "--output"),
        (["test", "--trainer.max_epohcs=3"], "--trainer.max_epochs"),
        (["test", "--config=recipes/classify/cifar10_lgtm.yaml", "--model.reducr=lgtm"], "reducer or"),
        (["test", "--conf=recipes/classify/cifar10_lgtm.yaml"], "--config"),
        (["flops", "--conf=recipes/flops/sd2_ratios.yaml"], "--config"),
        # Cut short, these were taken for the whole option, and a run began.
        (
            ["compare", "--config=recipes/benchmark/cifar10_demo.yaml", "--comparison.guidanc=3"],
            "--comparison.guidance",
        ),
        (["test", "--config=recipes/classify/cifar10_lgtm.yaml", "--model.stages.trial=[3,6]"], "stages?"),
    ],
    ids=str,
)
def test_a_mistyped_option_names_the_nearest(arguments, meant, capsys, root, monkeypatch):
    monkeypatch.chdir(root)
    error = failure(capsys, *arguments)
    assert f"Did you mean {meant}" in error
    assert "NestedArg" not in error


@pytest.mark.parametrize("command", ["flops", "latency"])
def test_a_key_that_stands_twice_is_refused_with_file_and_line(command, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    reducer = "{class_path: bigain.reducers.tome.ToMe, init_args: {ratio: 0.1}}"
    recipe.write_text(f"network: sd2\nreducers:\n  tome: {reducer}\n  tome: {reducer}\n")
    error = failure(capsys, command, "--config", str(recipe))
    assert "recipe.yaml, line 4: the key 'tome' stands in line 3, too." in error


def test_a_key_that_stands_twice_in_a_verbs_recipe_is_refused(root, tmp_path, capsys):
    text = (root / "recipes/classify/cifar10_lgtm.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("    rows: 32\n", "    rows: 32\n    rows: 16\n"))
    assert "the key 'rows' stands in line" in failure(capsys, "test", "--config", str(recipe))


@pytest.mark.parametrize("option", ["--config", "--recipe"])
def test_a_comparisons_recipe_with_a_key_twice_is_refused_by_whoever_reads_it(option, root, tmp_path, capsys):
    """`flops --recipe` reads the file itself."""
    text = (root / "recipes/benchmark/cifar10_demo.yaml").read_text()
    assert "\n    none:" in text
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("\n    none:", "\n    none: bigain.reducers.base.Identity\n    none:"))
    error = failure(capsys, "compare" if option == "--config" else "flops", option, str(recipe))
    assert "recipe.yaml, line " in error
    assert "the key 'none' stands in line" in error


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bigain.tasks.feature_training.FeatureTraining", "bigain.training.features.FeatureTraining"),
        ("bigain.tasks.diffusion_training.DiffusionTraining", "bigain.training.diffusion.DiffusionTraining"),
    ],
)
def test_an_old_recipe_learns_where_its_task_is_now(old, new, root, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = (root / "recipes/train/cifar10_features.yaml").read_text()
    recipe.write_text(text.replace("bigain.training.features.FeatureTraining", old))
    assert f"{old} is now {new}." in failure(capsys, "fit", "--config", str(recipe))


def test_a_moved_class_is_named_wherever_it_is_given(capsys):
    old = "bigain.adapters.unet.UNetAdapter"
    assert f"{old} is now bigain.adapters.families.unet.UNetAdapter." in failure(capsys, "describe", old)
    error = failure(capsys, "describe", "bigain.diffusion.schedule.NoiseSchedule")
    assert "read from its scheduler's configuration" in error


def test_what_has_moved_is_where_the_table_says(root):
    for old, new in MOVED.items():
        assert not (root / old.replace(".", "/")).with_suffix(".py").exists()
        path = root / new.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.parent.with_suffix(".py").exists(), new
