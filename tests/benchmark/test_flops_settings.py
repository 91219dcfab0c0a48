"""`bigain flops` as its users meet it: options, other commands' recipes, its table and its errors."""

import csv
import json
import shutil

import pytest
import yaml

from bigain.adapters.placement import Placement
from bigain.benchmark.cost import TimedRow, count_operations
from bigain.benchmark.flops_settings import FlopsSettings, count_methods
from bigain.cli.main import main
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.tome import ToMe
from bigain.results.scores import scores_of
from bigain.tasks.method import Reduced

PIXEL_DIT = "bigain.backbones.pixel_dit.PixelDiT"
L_GTM = {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}


def count_whole(backbone, reducer, placement=Placement(), sharing=1):
    """Operations of one evaluation, as a comparison counts them."""
    row = TimedRow(Reduced(reducer), placement, 0)
    return count_operations(backbone, row, backbone.embed(range(10)), sharing)


@pytest.fixture
def tiny(tmp_path, tiny_unet_config):
    """A folder with the configuration of a tiny U-Net, and nothing else."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_unet_config))
    return folder


@pytest.fixture
def shapes(tmp_path, tiny_weights):
    """The tiny DiT's folder without its weights."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    shutil.copy(tiny_weights / "config.json", folder)
    return folder


@pytest.fixture
def write(tmp_path):
    """Write a recipe: `write({...})`."""

    def written(content):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return written


def evaluation(shapes, reducer=L_GTM, **settings):
    backbone = {"class_path": PIXEL_DIT, "init_args": {"weights": str(shapes)}}
    task = "bigain.tasks.classification.ClassificationTask"
    init = {"backbone": backbone, "reducer": reducer, "rows": 4, **settings}
    return {"trainer": {"precision": "bf16-true"}, "model": {"class_path": task, "init_args": init}, "data": "unread"}


def flops_of(content):
    return {method.name: method.count.total for method in content.methods}


def test_names_serve_for_reducers_in_both_ways_of_writing(tiny, tmp_path, capsys):
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    main(["flops", f"--network={tiny}", "--reducer=lgtm", "--reducer.ratio=0.5", f"--csv={files[0]}"])
    main(["flops", "--network", str(tiny), "--reducer", "lgtm", "--reducer.ratio", "0.5", "--csv", str(files[1])])
    assert files[0].read_text() == files[1].read_text()
    rows = list(csv.DictReader(files[0].open()))
    assert [row["method"] for row in rows] == ["none", "lgtm"]
    assert rows[1]["reducer"].startswith("LGTM(ratio=0.5")
    assert (rows[1]["tokens_before"], rows[1]["tokens_after"]) == ("256", "128")
    assert float(rows[1]["saved"]) == pytest.approx(1 - float(rows[1]["flops"]) / float(rows[0]["flops"]))


def test_the_table_says_what_was_counted_and_fits_a_hundred_columns(tiny, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    main(["flops", f"--network={tiny}", "--reducer=tome", "--reducer.ratio=0.5", "--placement.preset=sd_sa_ca"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    joined = " ".join(printed.split())
    assert "16 x 16 tokens at its input" in joined
    assert "placement preset='sd_sa_ca'" in joined
    assert "multiply-add as 2; sorting and element-wise work are not" in joined
    assert "The 6 parts taken hold" in joined


def test_a_given_shape_is_what_is_counted(tiny, tmp_path):
    main(["flops", f"--network={tiny}", "--shape=[24,16]", f"--csv={tmp_path / 'a.csv'}"])
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert row["tokens_before"] == str(24 * 16)


def test_a_config_is_overridden_by_options(tiny, write, tmp_path):
    file = write({"network": "sd2", "reducers": {"short": L_GTM}, "placement": {"preset": "sd"}, "sharing": 2})
    main(["flops", f"--config={file}", f"--network={tiny}", "--placement.preset=sd_encoder", f"--csv={tmp_path}/a.csv"])
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["method"] for row in rows] == ["none", "short"]
    assert {row["parts"] for row in rows} == {"1"}


def test_a_recipe_of_a_task_is_counted_as_its_backbone_without_weights(shapes, write, tiny_backbone):
    found = flops_of(count_methods(FlopsSettings(recipe=write(evaluation(shapes)))))
    expected = {
        name: count_whole(tiny_backbone, reducer) for name, reducer in (("none", Identity()), ("lgtm", LGTM(0.5)))
    }
    assert found == expected


def test_a_recipe_brings_its_placement_and_its_sharing(shapes, write, tiny_backbone):
    placement = {"layers": 4, "parts": ["self", "mlp"]}
    content = count_methods(FlopsSettings(recipe=write(evaluation(shapes, placement=placement, share_plans=True))))
    merged = content.methods[1]
    assert len(merged.count.parts) == 8
    assert "10 evaluations share a plan" in content.title
    alone = count_methods(FlopsSettings(recipe=write(evaluation(shapes, placement=placement)))).methods[1].count.total
    planning = 4 * (2 * 48 * 16 * 16 + 2 * 9 * 64 * 16)
    assert alone - merged.count.total == pytest.approx(0.9 * planning, rel=1e-9)


def test_a_recipe_of_a_comparison_is_counted_method_by_method(shapes, write, tiny_backbone):
    backbone = {"class_path": PIXEL_DIT, "init_args": {"weights": str(shapes)}}
    tome = {"class_path": "bigain.reducers.tome.ToMe", "init_args": {"ratio": 0.25}}
    file = write({"comparison": {"backbone": backbone, "reducers": {"a": L_GTM, "b": tome}, "steps": 3}})
    found = flops_of(count_methods(FlopsSettings(recipe=file)))
    reducers = {"none": Identity(), "a": LGTM(0.5), "b": ToMe(0.25)}
    assert found == {name: count_whole(tiny_backbone, reducer) for name, reducer in reducers.items()}


@pytest.mark.parametrize("recipe", ["classify/cifar10_lgtm", "generate/cifar10_tome", "benchmark/cifar10_full"])
def test_shipped_recipes_are_counted_and_no_weights_are_read(recipe, root, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("bigain.backbones.pixel_dit.load_file", refuse)
    main(["flops", f"--recipe={root}/recipes/{recipe}.yaml"])
    assert "32 x 32 tokens at its input" in " ".join(capsys.readouterr().out.split())


def test_the_shipped_comparison_counted_what_this_counts(root):
    """The GFLOPs of the full run, but for the Laplacian, which it did not count."""
    from bigain.assets import asset

    found = flops_of(count_methods(FlopsSettings(recipe=root / "recipes/benchmark/cifar10_full.yaml")))
    run = json.loads((asset("cifar10_full_run") / "comparison.json").read_text())
    shown = {row["name"]: scores_of(row)["gflops"].value for row in run["rows"]}
    assert found["none"] / 1e9 == pytest.approx(shown["none"], abs=1e-9)
    assert found["tome"] / 1e9 == pytest.approx(shown["tome"], abs=1e-9)
    assert -1e-9 <= found["lgtm"] / 1e9 - shown["lgtm"] <= 3 * 2 * 9 * 192 * 1024 / 1e9 + 1e-9


def test_a_timestep_settles_a_reducer_that_switches(tiny):
    switching = Scheduled([Rule(Identity(), timesteps=(600, 1000)), Rule(LGTM(0.5))])
    plans = {
        at: FlopsSettings(str(tiny), reducers={"x": switching, "lgtm": LGTM(0.5)}, timestep=at) for at in (900, 100)
    }
    assert "timestep 900" in count_methods(plans[900]).title
    early, late = (flops_of(count_methods(plans[at])) for at in (900, 100))
    assert early["x"] == early["none"]
    assert late["x"] == late["lgtm"] != late["none"]


BAD = {
    "nothing": ([], "Give --network"),
    "both": (["--network=sd2", "--recipe=README.md"], "one of them"),
    "unknown network": (["--network=sdxll"], "no architecture 'sdxll'. Did you mean sdxl"),
    "unknown reducer": (["--network=TINY", "--reducer=lgmt"], "no reducer named 'lgmt'. Did you mean lgtm"),
    "impossible ratio": (["--network=TINY", "--reducer=lgtm", "--reducer.ratio=0.8"], "at most 192"),
    "mistyped setting": (["--network=TINY", "--reducer=lgtm", "--reducer.rtio=0.8"], "rtio"),
    "missing setting": (["--network=TINY", "--reducer=lgtm"], "ratio"),
    "another family's placement": (
        ["--network=TINY", "--placement.preset=dit_xl_2"],
        "for models of the adapter 'dit'",
    ),
    "no such placement": (["--network=TINY", "--placement.preset=sdd"], "no placement 'sdd'"),
    "one axis": (["--network=TINY", "--shape=[16]"], "each of 2 axes"),
    "no sharing": (["--network=TINY", "--sharing=0"], "sharing is 1 or more"),
    "one and several": (
        ["--network=TINY", "--reducer=tome", "--reducer.ratio=0.5", '--reducers={"a": {"class_path": "Identity"}}'],
        "reducer or reducers, not both",
    ),
    "no folder for the table": (["--network=TINY", "--csv=nowhere/a.csv"], "no folder nowhere"),
    "a folder as the table": (["--network=TINY", "--csv=/"], "that is a folder"),
    "missing recipe": (["--recipe=nowhere.yaml"], "there is no file nowhere.yaml"),
    "no recipe": (["--recipe=README.md"], "README.md is no YAML"),
    "a recipe without backbone": (["--recipe=recipes/train/cifar10_features.yaml"], "no backbone under"),
    "a recipe and settings": (["--recipe=recipes/classify/cifar10_lgtm.yaml", "--sharing=2"], "leave out sharing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, tiny, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    options, message = BAD[case]
    with pytest.raises(SystemExit) as stop:
        main(["flops", *(option.replace("TINY", str(tiny)) for option in options)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("reducer", "said"),
    [
        ({"class_path": "bigain.reducers.lgtm.LGMT"}, "no attribute 'LGMT'"),
        ({"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"rtio": 0.5}}, "Option 'rtio' is not accepted"),
        ({"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 1.5}}, "in [0, 1); got 1.5"),
        ({"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.8}}, "at most 48"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_clear_line(reducer, said, shapes, write, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["flops", f"--recipe={write(evaluation(shapes, reducer))}"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("bigain: error: ")
    assert message.count("\n") == 1


def test_a_recipe_whose_model_is_missing_is_refused(tmp_path, write, capsys):
    with pytest.raises(SystemExit):
        main(["flops", f"--recipe={write(evaluation(tmp_path / 'gone'))}"])
    assert "config.json is missing" in capsys.readouterr().err
