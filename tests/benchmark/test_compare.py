"""The comparison: nothing late, nothing lost, nothing mixed."""

import io
import json

import pytest
import torch
from rich.console import Console

from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark import compare as module
from bigain.benchmark.compare import run_comparison
from bigain.benchmark.compare_table import terminal_table
from bigain.benchmark.comparison import Comparison
from bigain.data.module import LabelledImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.noise_set import Stages
from bigain.errors import BigainError, SettingError
from bigain.metrics.features import EmbeddedFeatures
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo

CONSOLE = Console(quiet=True)
QUIET = {"accelerator": "cpu", "precision": "bf16-true", "enable_progress_bar": False}


@pytest.fixture
def plan(tiny_weights, tiny_features):
    """Make a small comparison, afresh each time, as a new process would."""

    def make(**settings):
        return Comparison(
            **{
                "backbone": PixelDiT(tiny_weights),
                "reducers": {"none": Identity(), "lgtm": LGTM(0.5)},
                "data": LabelledImageData(limit=4, image_size=8, batch_size=2),
                "prompts": ClassPrompts(count=4, batch_size=2),
                "stages": Stages((1, 2), (3, 1)),
                "features": EmbeddedFeatures(tiny_features),
                "steps": 2,
                "rows": 8,
                "sampling_rows": 2,
                "timing_repeats": 1,
                "trainer": QUIET,
                **settings,
            }
        )

    return make


def figures(content):
    timed = ("ms", "ms_low", "ms_high")
    return [{key: value for key, value in row.items() if key not in timed} for row in content["methods"]]


@pytest.mark.same_digits
@pytest.mark.parametrize("stop_at", ["_classify", "_generate", "_measure"])
def test_an_interrupted_comparison_resumes_to_the_same_table(plan, tmp_path, monkeypatch, stop_at):
    """Half precision, each step of the second method: the first one is done and stays."""
    expected = figures(run_comparison(plan(), tmp_path / "whole", False, CONSOLE))
    step = getattr(module, stop_at)

    def interrupted(the_plan, reducer, *rest):
        if isinstance(reducer, LGTM):
            raise KeyboardInterrupt
        return step(the_plan, reducer, *rest)

    monkeypatch.setattr(module, stop_at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(plan(), tmp_path / "out", False, CONSOLE)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="--resume"):
        run_comparison(plan(), tmp_path / "out", False, CONSOLE)
    with pytest.raises(SettingError, match="features"):
        run_comparison(plan(features=None), tmp_path / "out", True, CONSOLE)
    found = run_comparison(plan(), tmp_path / "out", True, CONSOLE)
    assert figures(found) == expected
    assert not (tmp_path / "out.partial").exists()


def test_the_plan_keeps_its_model_as_it_was(plan, tmp_path):
    made = plan()
    run_comparison(made, tmp_path / "out", False, CONSOLE)
    assert next(made.backbone.parameters()).dtype == torch.float32
    assert not made.backbone.network._forward_hooks


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reducers": {"none": Identity(), "lgtm": LGTM(0.9)}}, "at most 48"),
        ({"steps": 0}, "steps"),
        ({"guidance": 0.5}, "guidance"),
        ({"prompts": ClassPrompts(count=4, classes=3)}, "the prompts have 3"),
        ({"reference": "nowhere"}, "No images at nowhere"),
        ({"loss": "l3"}, "l2"),
    ],
)
def test_every_setting_is_refused_before_any_work(plan, tmp_path, settings, told):
    with pytest.raises(BigainError, match=told):
        run_comparison(plan(**settings), tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"timing_repeats": 0}, "timing_repeats"),
        ({"reducers": {}}, "one reducer or more"),
        ({"reducers": {"a/b": Identity()}}, "a/b"),
        ({"trainer": {"precision": "bf16-mixed"}}, "bf16-mixed"),
        ({"trainer": {"devices": 2}}, "one device"),
    ],
)
def test_impossible_plans_are_refused(plan, settings, told):
    with pytest.raises(SettingError, match=told):
        plan(**settings)


@pytest.mark.parametrize(("unit", "expected"), [("amx_bf16", "bf16-true"), ("avx2", "32-true")])
def test_auto_precision_follows_the_processor(plan, monkeypatch, unit, expected):
    """bfloat16 is twice as fast as float32 on a CPU that has units for it, and four times slower elsewhere."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True}, raising=False)
    assert plan(trainer={"accelerator": "cpu", "precision": "auto"}).trainer["precision"] == expected


def test_nan_leaves_no_folder(plan, tmp_path):
    made = plan()
    with torch.no_grad():
        made.backbone.network.proj_out_2.bias.fill_(torch.nan)
    with pytest.raises(BigainError, match="NaN"):
        run_comparison(made, tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_table_fits_eighty_columns(root):
    content = json.loads((root / "bigain/assets/cifar10_full_run/comparison.json").read_text())
    content["methods"][1]["name"] = "lgtm-released"
    content["methods"][1] |= {"difference": -0.299, "difference_low": -0.323, "difference_high": -0.275}
    console = Console(width=80, record=True, quiet=False, file=io.StringIO())
    console.print(terminal_table(content))
    shown = console.export_text()
    for text in ("none", "lgtm-released", "lgtm", "73.0", "71.7 to 74.2", "-0.3", "-1.2 to +0.5"):
        assert text in shown
    for text in ("-32.3 to -27.5", "distance", "GFLOPs", "13.73", "0.0618", "evals", "125"):
        assert text in shown
    assert "…" not in shown  # no figure is cut
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reducers": {"switch": Scheduled([Rule(LGTM(0.5), timesteps=(0, 500))], ToDo(2))}}, "cannot do both"),
        ({"share_plans": True, "rows": 4}, "rows must be 10 or more; got 4"),
    ],
    ids=["merge and kv by timestep", "too few rows to share"],
)
def test_what_classification_cannot_do_is_refused_before_any_work(plan, tmp_path, changes, told):
    with pytest.raises(SettingError, match=told):
        run_comparison(plan(**changes), tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []
