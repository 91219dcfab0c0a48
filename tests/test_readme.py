"""What the README says can be typed, and the figures it shows are those that ship."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from PIL import Image

from bigain.assets import asset
from bigain.backbones.cards import card
from bigain.cli import commands
from bigain.cli.main import main
from bigain.results.scores import scores_of
from bigain.results.store import read_result
from tests.pipelines import save_sd

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
FENCES = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(text, language):
    return [body for name, body in FENCES.findall(text) if name == language]


WALK = README.split("<!-- ten minutes: begin -->")[1].split("<!-- ten minutes: end -->")[0]
"""Its commands need a package that one of them writes: tests/test_ten_minutes.py runs them."""
COMMANDS = [
    line
    for body in blocks(README.replace(WALK, ""), "bash")
    for line in body.splitlines()
    if line.startswith("bigain ")
]
TINY = {
    "test": ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=true", "--model.rows=4"],
    "compare": [
        "--comparison.data.init_args.limit=2",
        "--comparison.data.init_args.image_size=8",
        "--comparison.prompts.init_args.count=2",
        "--comparison.steps=2",
        "--comparison.timing_repeats=1",
        "--comparison.trainer.accelerator=cpu",
    ],
}


@pytest.fixture(scope="module")
def tiny_unet(tiny_unet_config, tmp_path_factory):
    """The configuration of a narrow U-Net, in a folder."""
    folder = tmp_path_factory.mktemp("tiny_unet")
    (folder / "config.json").write_text(json.dumps(tiny_unet_config))
    return folder


@pytest.fixture
def own(tmp_path_factory, monkeypatch):
    """What a reader writes in place of `MODEL` and `PHOTOS`."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("BIGAIN_CACHE", str(folder / "cache"))
    (folder / "photos").mkdir()
    Image.new("RGB", (20, 16), "red").save(folder / "photos" / "one.png")
    return {"MODEL": str(save_sd(folder / "model")), "PHOTOS": str(folder / "photos")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_as_typed(command, tiny_weights, tiny_reference, tiny_unet, own, tmp_path, monkeypatch, capsys):
    """On a tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for word, place in own.items():
        command = command.replace(word, place)
    verb, *options = shlex.split(command)[1:]
    extra = list(TINY.get(verb, []))
    if verb == "test":
        extra.append(f"--model.backbone.init_args.weights={tiny_weights}")
        generation = ["--data.chunk=2", f"--model.reference={tiny_reference}"]
        extra += ["--data.image_size=8", "--data.chunk=1"] if "classify" in command else generation
    if verb == "compare":
        extra.append(f"--comparison.backbone.init_args.weights={tiny_weights}")
        extra.append(f"--comparison.reference={tiny_reference}")
    if verb == "flops" and "--recipe" not in options:
        extra += [f"--network={tiny_unet}", "--shape=[16,16]"]
    if verb == "generate":
        extra.append("--steps=2")
    if verb == "latency":
        extra.append(f"--network={tiny_weights}")
    if "--print_config" not in options:
        main([verb, *options, *extra])
        return
    with pytest.raises(SystemExit) as ended:
        main([verb, *options])
    assert not ended.value.code
    assert "scorer" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["completion bash", "completion zsh", "schema test"])
def test_completion_and_schema_stand_in_the_readme(command):
    """What they print is tested in `tests/cli`."""
    assert f"`bigain {command} > " in README


def test_every_command_of_its_own_is_in_the_readme():
    for name in commands.COMMANDS:
        assert f"`bigain {name}" in README


def test_the_python_examples_run_one_after_another(capsys, monkeypatch):
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # as in a script, what it defines can be found
    space = vars(module)
    before, rest = README.split("<!-- families: begin -->")
    for body in blocks(before + rest.split("<!-- families: end -->")[1], "python"):
        exec(body, space)
    assert space["short"].shape == (2, 513, 64)
    assert "1024 -> 512 tokens" in capsys.readouterr().out


def test_the_scorer_of_contributing_is_short_and_works():
    import torch

    import bigain

    body = blocks(CONTRIBUTING, "python")[0]
    code = [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) < 10
    space = {}
    exec(body, space)
    scorer = space["MeanAbs"]()
    tokens, grid = torch.randn(2, 64, 8), bigain.Grid((8, 8))
    torch.testing.assert_close(scorer(tokens, grid), tokens.abs().mean(-1))
    assert bigain.build_reducer("lgtm", ratio=0.5, scorer=scorer).plan(tokens, grid).sizes.shape == (2, 32)


def test_the_table_is_that_of_the_full_run():
    content = read_result(asset("cifar10_full_run/comparison.json"))
    shown = README.split("<!-- full run: begin -->")[1].split("<!-- full run: end -->")[0].strip().splitlines()[2:]
    assert len(shown) == len(content["rows"])
    for line, row in zip(shown, content["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        scores = scores_of(row)
        top1, paired = scores["top1"], scores.get("top1_difference")
        assert cells[1] == f"{100 * top1.value:.1f} ({100 * top1.low:.1f} to {100 * top1.high:.1f})"
        if row["name"] == content["baseline"]:
            assert (paired, cells[2]) == (None, "")
        else:
            assert cells[2] == f"{100 * paired.value:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})"
            assert scores["time"].value == pytest.approx(scores["ms"].value / scores_of(content["rows"][0])["ms"].value)
        assert cells[3] == f"{scores['frechet_distance'].value:.2f}"
        assert cells[4] == f"{scores['gflops'].value:.2f}"
        assert cells[5] == f"{scores['ms'].value:.4f}"
        assert cells[6] == f"{scores['evaluations_per_image'].value:g}"
        assert (row["images"], row["generated"]) == (5000, 5000)


def test_the_table_of_operators_is_that_of_its_card():
    with asset("cifar10_operators_run/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = README.split("<!-- operators: begin -->")[1].split("<!-- operators: end -->")[0].strip().splitlines()[2:]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        top1, low, high = (100 * float(row[key]) for key in ("top1", "top1_low", "top1_high"))
        assert cells[1] == f"{top1:.1f} ({low:.1f} to {high:.1f})"
        assert cells[2] == (f"{100 * float(row['difference']):+.1f}" if row["difference"] else "")
        assert cells[3:] == [row["frechet"], row["gflops"], row["time"]]


@pytest.mark.parametrize(
    "card",
    [
        "cifar10_dit",
        "cifar10_features",
        "cifar10_test",
        "cifar10_full_run",
        "cifar10_operators_run",
        "latency_h100_run",
    ],
)
def test_a_card_names_the_checksum_of_what_it_describes(card):
    import hashlib

    text = (asset(card) / "CARD.md").read_text()
    for digest, name in re.findall(r"`([0-9a-f]{64})` \(([\w.]+)\)", text):
        assert hashlib.sha256((asset(card) / name).read_bytes()).hexdigest() == digest
    assert re.search(r"`[0-9a-f]{64}`", text)


def test_weights_and_data_stay_under_forty_megabytes():
    kinds = {".safetensors", ".parquet", ".gz", ".pt", ".pth", ".npz"}
    files = [p for top in ("bigain", "recipes", "tests", "plugins") for p in (ROOT / top).rglob("*")]
    assert sum(p.stat().st_size for p in files if p.suffix in kinds) < 40e6


def test_the_published_models_are_those_of_the_cards():
    entries = yaml.safe_load((ROOT / "bigain/backbones/cards.yaml").read_text())
    shown = README.split("<!-- cards: begin -->")[1].split("<!-- cards: end -->")[0].strip().splitlines()[2:]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in shown]
    assert cells == [[one["title"], one["repository"], one["licence"]] for one in entries if one["name"] != "embedded"]
    for one in entries:
        found = card(one["name"])
        assert not found.repository.startswith("hub:") or found.repository.count("/") == 1
