"""The comparison: nothing late, nothing lost, nothing mixed."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bigain.adapters.placement import Placement
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.compare import _Run, run_comparison
from bigain.benchmark.compare_table import terminal_table
from bigain.benchmark.comparison import Comparison, Row
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.diffusion.noise_set import Stages
from bigain.errors import BigainError, SettingError
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.label_ranking import LabelRankingPrecision
from bigain.metrics.top1 import Top1
from bigain.metrics.top_k import TopK
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo
from bigain.reducers.tome import ToMe
from bigain.report.tables import comparison_table
from bigain.results.predictions import Predictions
from bigain.results.scores import Score, scores_of
from bigain.results.wording import score_line
from bigain.tasks.method import Applied, Method

CONSOLE = Console(quiet=True)
QUIET = {"accelerator": "cpu", "precision": "bf16-true", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def comparison(tiny_weights, tiny_features, tiny_reference):
    """Make a small comparison, afresh each time, as a new process would."""

    def make(**settings):
        return Comparison(
            **{
                "backbone": PixelDiT(tiny_weights),
                "reducers": {"none": Identity(), "lgtm": LGTM(0.5)},
                "data": ImageData(limit=4, image_size=8, chunk=2),
                "prompts": ClassPrompts(count=4, chunk=2),
                "stages": Stages((1, 2), (3, 1)),
                "features": EmbeddedFeatures(tiny_features),
                "reference": tiny_reference,
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
    """Every figure but times."""
    scores = [[score for score in row["scores"] if score["name"] not in ("time", "ms")] for row in content["rows"]]
    return [{**row, "scores": own} for row, own in zip(content["rows"], scores, strict=True)]


@pytest.fixture(scope="module")
def whole(comparison, tmp_path_factory):
    """Figures of a comparison that nothing interrupted."""
    return figures(run_comparison(comparison(), tmp_path_factory.mktemp("compared") / "whole", False, CONSOLE))


@pytest.mark.same_digits
@pytest.mark.parametrize("stop_at", ["_classification", "_generation", "_count", "_time"])
def test_an_interrupted_comparison_resumes_to_the_same_table(comparison, whole, tmp_path, monkeypatch, stop_at):
    """Half precision, each step of the second method: the first one is done and stays."""
    step = getattr(_Run, stop_at)

    def interrupted(run, first, *rest):
        if stop_at == "_time" or (first.name == "lgtm" and rest != (Path("unused"),)):
            raise KeyboardInterrupt
        return step(run, first, *rest)

    monkeypatch.setattr(_Run, stop_at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(comparison(), tmp_path / "out", False, CONSOLE)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="--resume"):
        run_comparison(comparison(), tmp_path / "out", False, CONSOLE)
    with pytest.raises(SettingError, match=r"\(metrics: "):
        run_comparison(comparison(features=None), tmp_path / "out", True, CONSOLE)
    others = comparison(classification_metrics=[Top1(), TopK(3)])
    with pytest.raises(SettingError, match=r"\(classification_metrics: .*Evaluations.* then, .*'k': 3.* now"):
        run_comparison(others, tmp_path / "out", True, CONSOLE)
    found = run_comparison(comparison(), tmp_path / "out", True, CONSOLE)
    assert figures(found) == whole
    assert not (tmp_path / "out.partial").exists()


def test_nothing_hangs_in_the_model_afterwards_and_nobody_copied_it(comparison, tmp_path, monkeypatch):
    made = comparison()
    seen = []
    encode = PixelDiT.encode
    # Hashing the weights of a large model takes as long as reading them: once is enough.
    monkeypatch.delattr("bigain.tasks.evaluation.fingerprint")
    monkeypatch.setattr(PixelDiT, "encode", lambda self, images: seen.append(id(self)) or encode(self, images))
    run_comparison(made, tmp_path / "out", False, CONSOLE)
    assert set(seen) == {id(made.backbone)}
    assert not made.backbone.network._forward_hooks
    assert made.backbone.network._compiled_call_impl is None


def test_distances_of_two_kinds_of_features_are_two_columns(comparison, tiny_features, tiny_reference, tmp_path):
    given = [FrechetDistance(EmbeddedFeatures(folder), tiny_reference) for folder in (tiny_features, None)]
    settings = {"features": None, "reference": None, "generation_metrics": given}
    content = run_comparison(comparison(**settings), tmp_path / "out", False, CONSOLE)
    scores = scores_of(content["rows"][1])
    one, other = scores["frechet_distance"], scores["frechet_distance_2"]
    assert one.value != other.value
    alone = run_comparison(comparison(), tmp_path / "alone", False, CONSOLE)
    assert one.value == scores_of(alone["rows"][1])["frechet_distance"].value


NAMES = ("parts", "report.html", "table.csv", "comparison.json", "rows", "timing.json")


def test_any_name_of_a_row_is_safe(comparison, tmp_path):
    """Names that clashed with files of the result: results were lost in silence, or the end crashed."""
    few = {"stages": Stages((1,), (1,)), "steps": 1, "prompts": ClassPrompts(count=2, chunk=2)}
    made = comparison(reducers={name: Identity() for name in NAMES}, timing_repeats=1, **few)
    content = run_comparison(made, tmp_path / "out", False, CONSOLE, "recipe", finish=lambda folder: None)
    assert [row["name"] for row in content["rows"]] == list(NAMES)
    for name in NAMES:
        assert len(Predictions.load(tmp_path / "out" / "rows" / name / "classification")) == 4
    assert (tmp_path / "out" / "table.csv").is_file()
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "recipe"


def test_rows_have_placements_and_seeds_of_their_own_and_share_the_noise(comparison, tmp_path):
    rows = [
        Row("none"),
        Row("one", ToMe(0.5), Placement(layers=[0])),
        Row("four", ToMe(0.5), Placement(layers=4)),
        Row("again", ToMe(0.5), Placement(layers=[0]), seed=1),
    ]
    content = run_comparison(comparison(methods=rows, reducers={}), tmp_path / "out", False, CONSOLE)
    assert [len(row["sites"]) for row in content["rows"]] == [1, 1, 4, 1]
    errors = [
        Predictions.load(tmp_path / "out" / "rows" / row.name / "classification").errors.dense(4, 10) for row in rows
    ]
    both = errors[1].isfinite() & errors[3].isfinite()
    assert not torch.allclose(errors[1][both], errors[3][both])
    results = [
        json.loads((tmp_path / "out" / "rows" / row.name / "classification" / "result.json").read_text())
        for row in rows
    ]
    assert [result["settings"]["noise_seed"] for result in results] == [0] * 4
    assert [result["settings"]["seed"] for result in results] == [0, 0, 0, 1]


class HalfTheInput(Method):
    """The control: the same network on an input half as fine, whose prediction is enlarged."""

    @contextmanager
    def applied(self, backbone, placement, seed):
        yield Applied(Halved(backbone))


class Halved(PixelDiT):
    """Wraps a backbone; nothing of it is copied."""

    def __init__(self, whole):
        torch.nn.Module.__init__(self)
        self.network, self.scheduler, self.image_size = whole.network, whole.scheduler, whole.image_size
        self.latent_shape, self.label_count, self.overlap = whole.latent_shape, whole.label_count, whole.overlap

    def predict(self, noisy, t, condition):
        small = torch.nn.functional.avg_pool2d(noisy, 2)
        found = super().predict(small, t, condition)
        return torch.nn.functional.interpolate(found, scale_factor=2)


def test_a_method_may_change_the_input_instead_of_tokens(comparison, tmp_path):
    rows = [Row("none"), Row("half", HalfTheInput())]
    content = run_comparison(comparison(methods=rows, reducers={}), tmp_path / "out", False, CONSOLE)
    whole, half = (scores_of(row) for row in content["rows"])
    assert half["gflops"].value < 0.5 * whole["gflops"].value
    assert content["rows"][1]["sites"] == []
    assert content["rows"][1]["method"] == "HalfTheInput()"
    assert {"top1", "top1_difference", "frechet_distance", "time"} <= half.keys()


def test_few_passes_give_no_milliseconds_and_no_interval(comparison, tmp_path):
    few, enough = (
        scores_of(run_comparison(comparison(timing_repeats=n), tmp_path / str(n), False, CONSOLE)["rows"][1])
        for n in (2, 6)
    )
    assert "ms" not in few
    assert few["time"].low is None
    assert enough["ms"].value > 0
    assert enough["time"].low <= enough["time"].value <= enough["time"].high
    seconds = json.loads((tmp_path / "6" / "timing.json").read_text())["seconds"]
    assert {name: len(times) for name, times in seconds.items()} == {"none": 6, "lgtm": 6}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reducers": {"none": Identity(), "lgtm": LGTM(0.9)}}, "at most 48"),
        ({"steps": 0}, "steps"),
        ({"guidance": 0.5}, "guidance"),
        ({"prompts": ClassPrompts(count=4, classes=("cat", "dog"))}, "The prompts have the classes cat, dog"),
        ({"reference": "nowhere"}, "No images at nowhere"),
        ({"loss": "l3"}, "l2"),
    ],
)
def test_every_setting_is_refused_before_any_work(comparison, tmp_path, settings, told):
    with pytest.raises(BigainError, match=told):
        run_comparison(comparison(**settings), tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"timing_repeats": 0}, "timing_repeats"),
        ({"reducers": {}}, "one row or more"),
        ({"reducers": {"a/b": Identity()}}, "a/b"),
        ({"reducers": {"..": Identity()}}, "the first no '.'"),
        ({"reducers": {"": Identity()}}, "1 to 100"),
        ({"reducers": {"x" * 101: Identity()}}, "1 to 100"),
        ({"methods": [Row("lgtm")]}, "'lgtm' stands there twice"),
        ({"reducers": {"lgtm": LGTM(0.5), "LGTM": LGTM(0.5)}}, "beside 'lgtm'"),
        ({"trainer": {"precision": "bf16-mixed"}}, "bf16-mixed"),
        ({"trainer": {"devices": 2}}, "one device"),
    ],
)
def test_impossible_comparisons_are_refused(comparison, settings, told):
    with pytest.raises(SettingError, match=told):
        comparison(**settings)


@pytest.mark.parametrize(("unit", "expected"), [("amx_bf16", "bf16-true"), ("avx2", "32-true")])
def test_auto_precision_follows_the_processor(comparison, monkeypatch, unit, expected):
    """bfloat16 is twice as fast as float32 on a CPU that has units for it, and four times slower elsewhere."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True}, raising=False)
    assert comparison(trainer={"accelerator": "cpu", "precision": "auto"}).trainer["precision"] == expected


def test_nan_leaves_no_folder(comparison, tmp_path):
    made = comparison()
    with torch.no_grad():
        made.backbone.network.proj_out_2.bias.fill_(torch.nan)
    with pytest.raises(BigainError, match="NaN"):
        run_comparison(made, tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_table_fits_eighty_columns(root):
    content = json.loads((root / "bigain/assets/cifar10_full_run/comparison.json").read_text())
    row = content["rows"][1]
    row["name"] = "lgtm-released"
    next(score for score in row["scores"] if score["name"] == "top1_difference").update(
        {"value": -0.299, "low": -0.323, "high": -0.275}
    )
    console = Console(width=80, record=True, quiet=False, file=io.StringIO())
    console.print(terminal_table(content))
    shown = console.export_text()
    for text in (
        "none",
        "lgtm-released",
        "lgtm",
        "73.0",
        "71.7 to 74.2",
        "\N{MINUS SIGN}0.3",
        "\N{MINUS SIGN}1.2 to +0.5",
    ):
        assert text in shown
    for text in ("\N{MINUS SIGN}32.3 to \N{MINUS SIGN}27.5", "distance", "GFLOPs", "13.73", "1.07", "evals", "125"):
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
def test_what_classification_cannot_do_is_refused_before_any_work(comparison, tmp_path, changes, told):
    with pytest.raises(SettingError, match=told):
        run_comparison(comparison(**changes), tmp_path / "out", False, CONSOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metrics", [0, 1, 3, 8])
def test_a_terminal_of_80_columns_shows_names_and_whole_figures(metrics):
    """What finds no room goes, the intervals first, then the last columns."""
    usual = [
        Score("top1", 0.731, 0.717, 0.742, "top-1", "share"),
        Score("gflops", 13.73, label="GFLOPs", unit="GFLOPs"),
    ]
    more = [Score(f"m{n}", 0.167, 0.047, 0.448, f"Precision{n} (some features)", "share") for n in range(metrics)]
    settings = {"trials": [6], "steps": 2, "guidance": 1.5, "precision": "32-true", "compile": False}
    scores = [score.to_json() for score in (usual[0], *more, usual[1])]
    row = {"name": "half_of_them", "images": 2, "generated": 12, "scores": scores}
    content = {"title": "t", "rows": [row], "settings": settings, "provenance": {"device": "CPU"}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(content))
    text = console.export_text()
    assert "…" not in text
    assert "half_of_them" in text
    assert text.count("16.7") == min(metrics, 4)
    assert ("4.7 to 44.8" in text) == (metrics in (1, 3))
    assert ("13.73" in text) == (metrics < 8)
    assert ("further columns are on the page" in text) == (metrics == 8)


def test_how_pruned_classes_rank_is_said_beside_the_figure(comparison, tmp_path):
    few = {"stages": Stages((1, 2), (3, 1)), "steps": 1, "prompts": ClassPrompts(count=2, chunk=2), "reducers": {}}
    made = comparison(methods=[Row("none")], classification_metrics=[Top1(), TopK(), LabelRankingPrecision()], **few)
    content = run_comparison(made, tmp_path / "out", False, CONSOLE)
    caption, notes = terminal_table(content).caption, " ".join(comparison_table(content, "This run").notes)
    for text in (caption, notes):
        assert "Classes rank by the stage of pruning that they survived, then by error" in text
        assert "classes rank by the stage of pruning that they survived, then by error" in text
    assert "classes rank by the stage" in score_line(scores_of(content["rows"][0])["label_ranking"])
