"""Every recipe, found by looking, runs a batch on a tiny model."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from bigain.cli.main import main
from bigain.results.scores import scores_of
from bigain.results.store import read_result
from tests.classifiers import save_images, save_timm

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
KINDS = {"classify", "generate", "train", "benchmark", "flops", "latency"}
VERBS = {"classify": "test", "generate": "test", "train": "fit"}
"""Lightning's, by kind; the others have a command of their own."""


def test_recipes_were_found_and_are_of_known_kinds():
    assert {Path(recipe).parts[1] for recipe in RECIPES} == KINDS


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_lines_say_how_to_run_it(recipe):
    head = (ROOT / recipe).read_text().splitlines()[:8]
    assert any(recipe in line for line in head)


def small_start(folder):
    """What the recipe of Stable Diffusion in small begins with, smaller still."""
    shape = [folder / "start", "--width=32", "--layers=1", "--text-width=16"]
    with patch.object(sys, "argv", ["cifar10_sd_start.py", *map(str, shape)]):
        runpy.run_path(str(ROOT / "recipes/train/cifar10_sd_start.py"), run_name="__main__")
    return folder / "start"


def small(recipe, tiny_weights, output):
    """Options that keep the shape of a run and shrink its size."""
    kind = Path(recipe).parts[1]
    if kind == "train":
        network = not Path(recipe).stem.endswith("features")
        width = ["--model.backbone.init_args.width=24", "--model.backbone.init_args.depth=2"] if network else []
        compiled = ["--model.compile=false"] if network else []
        if "sd" in Path(recipe).stem.split("_"):
            width = [f"--model.backbone.init_args.model={small_start(output.parent)}"]
        return ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.devices=1",
                "--data.chunk=4", "--data.limit=4", f"--data.train={ROOT}/bigain/assets/cifar10_test/test.parquet",
                *width, *compiled]  # fmt: skip
    if "vit" in Path(recipe).stem:
        folder = save_timm(output.with_name("vit"))
        return ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", f"--output={output}", "--model.rows=4",
                f"--model.classifier.init_args.weights={folder}", "--data.chunk=4",
                f"--data.test={save_images(output.with_name('images'))}"]  # fmt: skip
    options = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", f"--output={output}",
               f"--model.backbone.init_args.weights={tiny_weights}", "--model.rows=4"]  # fmt: skip
    if kind == "classify":
        return [*options, "--data.chunk=1", "--data.image_size=8", "--model.stages.trials=[1,2]"]
    return [*options, "--data.chunk=2", "--data.count=2", "--model.steps=2"]


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if Path(recipe).parts[1] in VERBS])
def test_it_runs_a_batch(recipe, root, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    verb = VERBS[Path(recipe).parts[1]]
    main([verb, "--config", recipe, *small(recipe, tiny_weights, tmp_path / "out")])
    if verb == "test":
        assert read_result(tmp_path / "out")["scores"]


COMPARED = [recipe for recipe in RECIPES if "/benchmark/cifar" in recipe] + ["plugins/template/recipe.yaml"]


def fewer_rows(recipe, folder):
    """Leave out rows that differ from others in a ratio alone: a recipe without most, and the name of it."""
    content = yaml.safe_load(Path(recipe).read_text())
    rows = content["comparison"].get("methods", [])
    if len(rows) <= 8:
        return recipe
    content["comparison"]["methods"] = [*rows[:7], rows[-1]]
    (folder / "fewer.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "fewer.yaml")


@pytest.mark.parametrize("recipe", COMPARED)
def test_a_comparison_runs_small_and_writes_its_page(recipe, root, tiny_weights, tiny_features, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    out = tmp_path / "out"
    settings = {
        "backbone.init_args.weights": tiny_weights,
        "features": "bigain.metrics.features.EmbeddedFeatures",
        "features.folder": tiny_features,
        "data.init_args.limit": 2,
        "data.init_args.image_size": 8,
        "prompts.init_args.count": 3,
        "stages.trials": "[1,2]",
        "rows": 10,
        "sampling_rows": 3,
        "steps": 2,
        "compile": "false",
        "timing_repeats": 1,
        "trainer.accelerator": "cpu",
    }
    given = fewer_rows(recipe, tmp_path)
    main(["compare", "--config", given, f"--output={out}", *(f"--comparison.{k}={v}" for k, v in settings.items())])
    content = read_result(out / "comparison.json")
    plan = yaml.safe_load(Path(given).read_text())["comparison"]
    methods = [*(row["name"] for row in plan.get("methods", [])), *plan.get("reducers", [])]
    lgtm = next(name for name in methods if name.startswith("lgtm"))
    assert [row["name"] for row in content["rows"]] == methods
    assert "none" in methods
    scores = {row["name"]: scores_of(row) for row in content["rows"]}
    assert [name for name in methods if "top1_difference" not in scores[name]] == methods[:1]
    whole = scores["none"]["gflops"].value
    # So narrow a network saves less than the weights of keys cost.
    reduced = [name for name in methods if name != "none" and "weighted" not in name]
    assert all(scores[name]["gflops"].value < whole for name in reduced)
    assert len((out / "table.csv").read_text().splitlines()) == 1 + len(methods)
    assert lgtm in (out / "report.html").read_text()
    assert (out / "rows" / lgtm / "classification" / "predictions.csv").exists()
    assert not (tmp_path / "out.partial").exists()
    shutil.rmtree(out)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "/flops/" in recipe])
def test_operations_are_counted_on_a_tiny_network(recipe, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    stages = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
    stages |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "block_out_channels": [16, 16]}
    tiny = {"_class_name": "UNet2DConditionModel", "sample_size": 16, "norm_num_groups": 8, "cross_attention_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps({**tiny, **stages}))
    main(["flops", "--config", recipe, f"--network={tmp_path}", "--shape=null", f"--csv={tmp_path / 'table.csv'}"])
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    plan = yaml.safe_load((root / recipe).read_text())
    assert [row["method"] for row in rows] == list(plan["reducers"])
    assert float(rows[0]["saved"]) == 0
    assert all(int(row["tokens_after"]) < int(row["tokens_before"]) == 256 for row in rows[1:])


SHRUNK = {
    "UNet2DConditionModel": {
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 8,
        "transformer_layers_per_block": 1,
        "attention_head_dim": 2,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    "DiTTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 16},
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "in_channels": 8,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
    },
    "SD3Transformer2DModel": {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "sample_size": 16,
        "pos_embed_max_size": 16,
    },
    "WanTransformer3DModel": {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 16,
        "freq_dim": 8,
        "text_dim": 8,
    },
    "vit_large_patch16_384": {"architecture": "test_vit"},
}
"""Fields that make a network small and leave its blocks as they lie."""


LATENCY = [recipe for recipe in RECIPES if "/latency/" in recipe]
QUICK = {"rows": 2, "dtype": "fp32", "device": "cpu", "modes": "[eager]", "repeats": 1, "warmup": 0}


def timed(recipe, file, **settings):
    """Run a recipe at one small size, and return its rows."""
    main(["latency", "--config", recipe, *(f"--{key}={value}" for key, value in {**settings, "output": file}.items())])
    content = json.loads(file.read_text())
    (size,) = content["sizes"]
    rows = size["modes"]["eager"]
    assert all(row["ms"] > 0 for row in rows)
    assert all(row["settings"] for row in rows if row["kind"] in ("method", "floor") and "no self" not in row["name"])
    return {kind: [row["name"] for row in rows if row["kind"] == kind] for kind in ("none", "method", "floor", "part")}


@pytest.mark.parametrize("recipe", [recipe for recipe in LATENCY if "self_attention" not in recipe])
def test_passes_are_timed_on_a_narrow_network_of_the_same_kind(recipe, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    plan = yaml.safe_load((root / recipe).read_text())
    config = json.loads((root / f"bigain/assets/architectures/{plan['network']}.json").read_text())
    kind = config.get("_class_name") or config["architecture"]
    config |= {key: value for key, value in SHRUNK[kind].items() if key in config}
    if "block_out_channels" in config:
        config["block_out_channels"] = [16] * len(config["block_out_channels"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = plan.get("shapes") or [plan["shape"]]
    side = 10 if kind.startswith("vit") else 8  # of the images that timm's smallest ViT was made for
    shapes = [[2, 8, 8] if len(sizes[0]) == 3 else [side, side]]
    found = timed(recipe, tmp_path / "found.json", **QUICK, network=tmp_path, shape="null", shapes=shapes)
    assert found["none"] + found["method"] == list(plan["reducers"])
    assert len(found["floor"]) == 2


@pytest.mark.parametrize("recipe", [recipe for recipe in LATENCY if "self_attention" in recipe])
def test_a_narrow_self_attention_is_timed_with_its_pieces(recipe, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    plan = yaml.safe_load((root / recipe).read_text())
    found = timed(recipe, tmp_path / "found.json", **QUICK, shapes="[[8, 8]]", channels=16, heads=2)
    assert found["none"] + found["method"] == list(plan["reducers"])
    assert {f"{name}: {step}" for name in found["method"] for step in ("plan", "reduce")} <= set(found["part"])


def test_the_demo_is_as_large_as_promised(root):
    plan = yaml.safe_load((root / "recipes/benchmark/cifar10_demo.yaml").read_text())["comparison"]
    assert plan["data"]["init_args"]["limit"] >= 12
    assert plan["prompts"]["init_args"]["count"] >= 8
    assert list(plan["reducers"]) == ["none", "tome", "lgtm"]
