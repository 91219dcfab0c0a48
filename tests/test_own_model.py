"""A tiny pipeline of each family, saved as users' are, goes through every command with their own images."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bigain.benchmark.flops import FlopCounter
from bigain.cli.main import main
from bigain.registry import build, entries
from bigain.results.store import read_result
from tests.pipelines import change_json, save_dit, save_flux, save_pixart, save_sd, save_sd3, save_sdxl


def named(folder):
    """A DiT whose classes have names, as the published one's have."""
    change_json(folder / "model_index.json", id2label={"0": "cat, tomcat", "1": "dog"})
    return folder


FAMILIES = {
    "stable_diffusion": save_sd,
    "stable_diffusion xl": save_sdxl,
    "dit": lambda folder: named(save_dit(folder, num_embeds_ada_norm=2)),
    "pixart": save_pixart,
    "sd3": save_sd3,
    "flux": save_flux,
}
LGTM = ["--reducer=lgtm", "--reducer.ratio=0.5"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """The registered backbone's name, and a folder."""
    folder = tmp_path_factory.mktemp("own") / "model"
    FAMILIES[request.param](folder)
    return request.param.split()[0], folder


@pytest.fixture
def images(tmp_path):
    """Two images of each of two classes."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(["cat", "cat", "dog", "dog"]):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


pytestmark = pytest.mark.usefixtures("own_cache")


SIZE = "--image_size=16"
"""Pixels that all of them take."""


def test_it_classifies(model, images, tmp_path):
    out = tmp_path / "out"
    main(["classify", str(images), f"--model={model[1]}", "--classes=cat,dog", *LGTM, "--timesteps=4", SIZE,
          "--device=cpu", f"--output={out}"])  # fmt: skip
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"cat", "dog"} >= {row["lgtm"] for row in rows}
    assert json.loads((out / "result.json").read_text())["settings"]["image_size"] == 16


def test_it_generates(model, tmp_path):
    prompt = "tomcat" if model[0] == "dit" else "a cat"
    main(["generate", prompt, f"--model={model[1]}", *LGTM, "--steps=2", SIZE, "--device=cpu",
          f"--output={tmp_path / 'out'}"])  # fmt: skip
    for name in ("none_0", "lgtm_0"):
        assert Image.open(tmp_path / "out" / f"{name}.png").size == (16, 16)


def backbone(model):
    (path,) = [entry.target.replace(":", ".") for entry in entries("backbones") if entry.name == model[0]]
    return {"class_path": path, "init_args": {"model": str(model[1]), "image_size": 16}}


def test_it_goes_through_test(model, images, tmp_path):
    data = {"test": str(images), "image_size": 16, "classes": ["cat", "dog"], "chunk": 2}
    recipe = {
        "trainer": {"accelerator": "cpu", "logger": False},
        "model": {
            "class_path": "bigain.tasks.classification.ClassificationTask",
            "init_args": {
                "backbone": backbone(model),
                "reducer": {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}},
                "stages": {"trials": [1, 2], "keeps": [2, 1]},
                "rows": 4,
                "output": str(tmp_path / "out"),
            },
        },
        "data": {"class_path": "bigain.data.module.ImageData", "init_args": data},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["test", "--config", str(tmp_path / "recipe.yaml")])
    assert read_result(tmp_path / "out")["images"] == 4


def test_it_is_compared(model, images, tiny_features, tmp_path):
    features = {"class_path": "bigain.metrics.features.EmbeddedFeatures", "init_args": {"folder": str(tiny_features)}}
    guidance = 1 if model[0] == "flux" else 2
    classes = ["cat", "dog"]
    data = {"test": str(images), "image_size": 16, "classes": classes, "chunk": 2}
    comparison = {
        "title": "Mine",
        "backbone": backbone(model),
        "reducers": {
            "none": {"class_path": "bigain.reducers.base.Identity"},
            "lgtm": {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}},
        },
        "features": features,
        "data": {"class_path": "bigain.data.module.ImageData", "init_args": data},
        "prompts": {"class_path": "bigain.data.prompts.ClassPrompts", "init_args": {"count": 2, "classes": classes}},
        "stages": {"trials": [1, 2], "keeps": [2, 1]},
        "steps": 2,
        "guidance": guidance,
        "rows": 4,
        "sampling_rows": 2,
        "timing_repeats": 1,
        "compile": False,
        "trainer": {"accelerator": "cpu"},
    }
    recipe = {"output": str(tmp_path / "out"), "comparison": comparison}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["compare", "--config", str(tmp_path / "recipe.yaml")])
    rows = {row["name"]: row for row in read_result(tmp_path / "out" / "comparison.json")["rows"]}
    assert set(rows) == {"none", "lgtm"}
    assert (tmp_path / "out" / "report.html").exists()


def test_its_operations_are_counted_with_and_without_values(model, tmp_path):
    """`bigain flops` builds it without values; a loaded model keeps its own."""
    count = {"class_path": backbone(model)["class_path"], "init_args": backbone(model)["init_args"]}
    loaded = build("backbones", count["class_path"], **count["init_args"])
    before = {name: value.clone() for name, value in loaded.network.state_dict().items()}
    found = FlopCounter(loaded)
    with torch.device("meta"):
        bare = build("backbones", count["class_path"], **count["init_args"])
    assert FlopCounter(bare).baseline == found.baseline > 0
    reduced = found.count({"name": "lgtm", "ratio": 0.5})
    assert reduced.total != reduced.baseline
    assert all(torch.equal(value, before[name]) for name, value in loaded.network.state_dict().items())
    if model[0] != "dit":
        assert not loaded.embed(["another cat"]).states.is_meta
