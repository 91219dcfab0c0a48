"""`bigain generate`: the same seeds without and with a reducer."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import bigain
from bigain.cli.main import main
from tests.backbones.pipelines import save_sd


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return save_sd(tmp_path_factory.mktemp("generate") / "model")


def by_hand(folder, seed, reducer=None):
    """The pipeline's own image, a reducer attached by hand."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "guidance_scale": 4, "negative_prompt": "blurry", "height": 16, "width": 16}
    with bigain.attach(pipe.unet, reducer or bigain.build_reducer("identity")):
        return pipe("a cat on a roof", generator=torch.Generator("cpu").manual_seed(seed), **call).images[0]


def test_images_are_those_of_the_pipeline_and_the_strip_shows_them(sd, tmp_path, capsys):
    out = tmp_path / "out"
    reducer = ["--reducer=lgtm", "--reducer.ratio=0.5"]
    settings = ["--seeds=0,7", "--steps=3", "--guidance=4", "--negative=blurry", "--device=cpu"]
    main(["generate", "a cat on a roof", f"--model={sd}", *reducer, *settings, f"--output={out}"])
    names = [f"{name}_{seed}.png" for name in ("none", "lgtm") for seed in (0, 7)]
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, "strip.json", "strip.png"])
    for seed in (0, 7):
        for name, one in (("none", None), ("lgtm", bigain.build_reducer("lgtm", ratio=0.5))):
            found = np.asarray(Image.open(out / f"{name}_{seed}.png"))
            assert np.array_equal(found, np.asarray(by_hand(sd, seed, one)))
    content = json.loads((out / "strip.json").read_text())
    none, lgtm = content["methods"]
    assert (content["prompt"], content["settings"]["seeds"]) == ("a cat on a roof", [0, 7])
    assert {"guidance": 4.0, "negative": "blurry", "steps": 3, "scheduler": "PNDMScheduler"}.items() <= content[
        "settings"
    ].items()
    images = [np.asarray(Image.open(out / name), dtype=float) for name in names]
    assert none["pixel_difference"] == [0, 0]
    assert lgtm["pixel_difference"] == pytest.approx(
        [abs(images[2] - images[0]).mean(), abs(images[3] - images[1]).mean()]
    )
    assert all(seconds > 0 for one in (none, lgtm) for seconds in one["seconds"])
    width, height = Image.open(out / "strip.png").size
    assert width > 2 * 128
    assert height > 2 * 128
    assert "lgtm: 2/2, seed 7" in capsys.readouterr().out


def test_none_alone_where_no_reducer_is_given(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["generate", "3", f"--model={tiny_weights}", "--steps=2", "--device=cpu"])
    assert sorted(file.name for file in (tmp_path / "generated").iterdir()) == ["none_0.png", "strip.json", "strip.png"]


def test_a_class_is_named_by_its_name_or_number(tiny_weights, tmp_path):
    for prompt, out in (("cat", "name"), ("3", "number")):
        main(["generate", prompt, f"--model={tiny_weights}", "--steps=2", "--device=cpu", f"--output={tmp_path / out}"])
    first, second = ((tmp_path / out / "none_0.png").read_bytes() for out in ("name", "number"))
    assert first == second


def refused(command, words, capsys):
    """The command ends with status 2 and one line."""
    with pytest.raises(SystemExit, match="2"):
        main(command)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, line)


REFUSED = {
    "no model": (["a", "--model=nowhere"], "No model at nowhere"),
    "prose": (["a cat on a roof", "--model=DIT"], "draws classes, not prose: airplane, .*; got 'a cat on a roof'"),
    "no such class": (["12", "--model=DIT"], "draws classes"),
    "negative for classes": (["cat", "--model=DIT", "--negative=dog"], "takes a class, and no negative prompt"),
    "long": (["a " * 90, "--model=SD"], "has 92 tokens; the text_encoder of this model sees 77"),
    "seeds": (["cat", "--model=DIT", "--seeds=1,x"], "seeds is whole numbers"),
    "seeds twice": (["cat", "--model=DIT", "--seeds=1,1"], "a seed twice"),
    "guidance": (["a", "--model=SD", "--guidance=0.5"], "guidance is a scale of 1 or more"),
    "negative unguided": (["a", "--model=SD", "--guidance=1", "--negative=b"], "for guidance above 1"),
    "steps": (["a", "--model=SD", "--steps=0"], "steps is from 1 to 1000"),
    "image_size": (["a", "--model=SD", "--image_size=15"], "divided by 2"),
    "reducer": (["a", "--model=SD", "--reducer=lgtm", "--reducer.ratio=0.9"], "ratio"),
    "placement": (["a", "--model=SD", "--reducer=lgtm", "--reducer.ratio=0.5", "--placement.layers=[99]"], "99"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_sentence_and_writes_nothing(sd, tiny_weights, tmp_path, capsys, what):
    options, words = REFUSED[what]
    given = [option.replace("=SD", f"={sd}").replace("=DIT", f"={tiny_weights}") for option in options]
    refused(["generate", *given, "--device=cpu", f"--output={tmp_path / 'out'}"], words, capsys)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_not_touched(tiny_weights, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    refused(["generate", "cat", f"--model={tiny_weights}", f"--output={tmp_path / 'out'}"], "exists already", capsys)
