"""`bigain generate`: the same seeds without and with a reducer."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bigain
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.strip import draw_strip
from bigain.cli.main import main
from bigain.diffusion.sampler import Sampler
from tests.pipelines import assert_same_image, save_flux, save_sd

pytestmark = pytest.mark.usefixtures("own_cache")

REDUCER = ["--reducer=lgtm", "--reducer.ratio=0.5"]


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
            assert_same_image(*(torch.from_numpy(np.array(image)) for image in (found, by_hand(sd, seed, one))))
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


@pytest.mark.same_digits
def test_a_class_is_named_by_its_name_or_number(tmp_path):
    for prompt, out in (("cat", "name"), ("3", "number")):
        main(["generate", prompt, "--steps=1", "--guidance=1", "--device=cpu", f"--output={tmp_path / out}"])
    first, second = ((tmp_path / out / "none_0.png").read_bytes() for out in ("name", "number"))
    assert first == second


def test_operations_of_a_schedule_are_those_of_its_reducers_at_their_timesteps(tiny_weights, tmp_path):
    out, tome = tmp_path / "out", "{class_path: bigain.reducers.tome.ToMe, init_args: {ratio: 0.5}}"
    rule = f"{{reducer: {tome}, timesteps: [500, 1000]}}"
    late = f"{{class_path: bigain.reducers.scheduled.Scheduled, init_args: {{rules: [{rule}]}}}}"
    asked = ["--reducers", f"{{all: {tome}, early: {late}}}", "--steps=5", "--guidance=2", "--device=cpu"]
    main(["generate", "3", f"--model={tiny_weights}", *asked, f"--output={out}"])
    none, every, early = (one["gflops_per_image"] for one in json.loads((out / "strip.json").read_text())["methods"])
    backbone = PixelDiT(tiny_weights).eval()
    # Products written out, since the counter does not know the CPU's own attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.predict(torch.zeros(10, 3, 8, 8), torch.full((10,), 500), backbone.embed([3] * 10))
    assert none == pytest.approx(counter.get_total_flops() / 1e9)
    steps = Sampler(backbone, 5).timesteps
    high = sum(500 <= t < 1000 for t in steps)
    assert 0 < high < len(steps)
    assert early == pytest.approx((high * every + (len(steps) - high) * none) / len(steps))


def test_compiled_images_are_the_same_and_compiling_is_no_time_of_them(tiny_weights, tmp_path):
    images, names = {}, ("none", "todo")
    for compiled in ("false", "true"):
        out = tmp_path / compiled
        asked = [
            "--steps=1",
            "--guidance=1",
            "--seeds=0,1",
            "--reducer=todo",
            "--reducer.factor=2",
            f"--compile={compiled}",
        ]
        main(["generate", "3", f"--model={tiny_weights}", *asked, "--device=cpu", f"--output={out}"])
        images[compiled] = [torch.from_numpy(np.array(Image.open(out / f"{name}_0.png"))) for name in names]
        content = json.loads((out / "strip.json").read_text())
        assert content["settings"]["compile"] is (compiled == "true")
        for one in content["methods"]:
            assert one["memory_gib"] is None
            if compiled == "false":
                assert one["compilation"] is None
            else:
                assert one["compilation"]["graphs"] <= 2  # blocks with and without the reducer, each once
                assert one["compilation"]["seconds"] > 3 * max(one["seconds"])
    for eager, compiled in zip(*images.values(), strict=True):
        assert_same_image(eager, compiled)
    assert not torch.equal(*images["true"])  # compiled blocks are reduced, too


REFUSED = {
    "long negative": (["a", "--model=SD", f"--negative={'b ' * 90}"], "has 92 tokens; the text_encoder"),
    "no model": (["a", "--model=nowhere"], "No model at nowhere"),
    "prose": (["a cat on a roof"], "This model.s classes are airplane, .*truck; got 'a cat on a roof'"),
    "no such class": (["12", "--model=DIT"], "the numbers 0 to 9, since it has no names; got '12'"),
    "no digit": (["²", "--model=DIT"], "the numbers 0 to 9"),
    "a huge seed": (["3", "--model=DIT", f"--seeds={2**63}"], "whole numbers from 0 on"),
    "many seeds": (["3", "--model=DIT", f"--seeds={','.join(map(str, range(40)))}"], "32 columns at most"),
    "infinite": (["a", "--model=SD", "--guidance=.inf"], "guidance is a scale"),
    "size 0": (["a", "--model=SD", "--image_size=0"], "multiple of 2"),
    "a path for a name": (
        ["a", "--model=SD", "--reducers", "{a/b: {class_path: bigain.reducers.todo.ToDo, init_args: {factor: 2}}}"],
        "A method's name is letters",
    ),
    "negative for classes": (["3", "--model=DIT", "--negative=dog"], "takes a class, and no negative prompt"),
    "long": (["a " * 90, "--model=SD"], "has 92 tokens; the text_encoder of this model sees 77"),
    "seeds": (["3", "--model=DIT", "--seeds=1,x"], "seeds is whole numbers"),
    "seeds twice": (["3", "--model=DIT", "--seeds=1,1"], "a seed twice"),
    "guidance": (["a", "--model=SD", "--guidance=0.5"], "guidance is a scale of 1 or more"),
    "negative unguided": (["a", "--model=SD", "--guidance=1", "--negative=b"], "for guidance above 1"),
    "steps": (["a", "--model=SD", "--steps=0"], "steps is from 1 to 1000"),
    "image_size": (["a", "--model=SD", "--image_size=15"], "multiple of 2"),
    "reducer": (["a", "--model=SD", "--reducer=lgtm", "--reducer.ratio=0.9"], "ratio"),
    "placement": (["a", "--model=SD", "--reducer=lgtm", "--reducer.ratio=0.5", "--placement.layers=[99]"], "99"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_sentence_and_writes_nothing(sd, tiny_weights, tmp_path, refused, what):
    options, words = REFUSED[what]
    given = [option.replace("=SD", f"={sd}").replace("=DIT", f"={tiny_weights}") for option in options]
    refused(["generate", *given, "--device=cpu", f"--output={tmp_path / 'out'}"], words)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_not_touched(tiny_weights, tmp_path, refused):
    (tmp_path / "out").mkdir()
    refused(["generate", "cat", f"--model={tiny_weights}", f"--output={tmp_path / 'out'}"], "exists already")


def test_flux_is_told_the_guidance_and_nothing_is_guided(tmp_path):
    folder = save_flux(tmp_path / "model")
    for scale in ("3.5", "1.0"):
        command = ["generate", "a cat", f"--model={folder}", f"--guidance={scale}", "--steps=2", "--image_size=16"]
        main([*command, "--device=cpu", f"--output={tmp_path / scale}"])
    content = json.loads((tmp_path / "1.0" / "strip.json").read_text())
    assert content["settings"]["guidance"] == 1
    images = [(tmp_path / scale / "none_0.png").read_bytes() for scale in ("3.5", "1.0")]
    assert images[0] != images[1]


def test_images_are_not_lost_when_the_place_is_taken_meanwhile(tiny_weights, tmp_path, monkeypatch, refused):
    out = tmp_path / "out"

    def taken(content):
        out.mkdir()
        (out / "other").write_text("another run's")
        return draw_strip(content)

    monkeypatch.setattr("bigain.benchmark.strip.draw_strip", taken)
    refused(["generate", "3", f"--model={tiny_weights}", "--steps=1", f"--output={out}"], "the result is in")
    (kept,) = tmp_path.glob(".out-*")
    assert (kept / "none_0.png").exists()
    assert [file.name for file in out.iterdir()] == ["other"]


def test_the_table_fits_a_narrow_terminal_and_settings_stand_below_it(tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(
        [
            "generate",
            "3",
            f"--model={tiny_weights}",
            *REDUCER,
            "--steps=2",
            "--device=cpu",
            f"--output={tmp_path / 'o'}",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "lgtm: LGTM(ratio=0.5)" in lines
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["method"])
    none, lgtm = lines[head + 2 : head + 4]
    assert (none.split()[0], none.split()[-1], lgtm.split()[0], lgtm.split()[-2:]) == (
        "none",
        "–",
        "lgtm",
        ["of", "255"],
    )
    # The full settings are in the file.
    assert "cell=(2, 2)" in json.loads((tmp_path / "o" / "strip.json").read_text())["methods"][1]["method"]


def test_one_image_alone_is_not_side_by_side(tiny_weights, tmp_path, capsys):
    main(["generate", "3", f"--model={tiny_weights}", "--steps=2", "--device=cpu", f"--output={tmp_path / 'o'}"])
    said = capsys.readouterr().out
    assert "pixels differ by" not in said
    assert "side by side" not in said


def test_a_prompt_without_quotes_is_shown_with_them(refused):
    refused(["generate", "a", "cat", "on", "a", "roof", "--steps=2"], 'in quotes: bigain generate "a cat on a roof"')
