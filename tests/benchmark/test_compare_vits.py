"""A comparison on a vision transformer: the same table, the same page."""

import csv
import io
import json

import pytest
from rich.console import Console

import bigain
from bigain.adapters.placement import Placement
from bigain.backbones.pixel_dit import PixelDiT
from bigain.backbones.timm_classifier import TimmClassifier
from bigain.backbones.transformers_classifier import TransformersClassifier
from bigain.benchmark.compare import run_comparison
from bigain.benchmark.compare_table import terminal_table
from bigain.benchmark.compare_vits import ViTRun
from bigain.benchmark.comparison import Comparison, Row
from bigain.benchmark.pair import compare_pair
from bigain.cli.main import main
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.errors import SettingError
from bigain.metrics.top1 import Top1
from bigain.metrics.top_k import TopK
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome_vit import ToMeViT
from bigain.report.page import write_page
from bigain.results.predictions import Predictions
from bigain.results.scores import scores_of
from bigain.results.store import read_result
from tests.classifiers import save_images, save_timm, save_transformers

CONSOLE = Console(quiet=True)
ROWS = [
    Row("none"),
    Row("lgtm", LGTM(0.5)),
    Row("tome", ToMeViT(), Placement(progressive=[4, 3, 2])),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("models")
    return {TimmClassifier: save_timm(top / "timm"), TransformersClassifier: save_transformers(top / "transformers")}


@pytest.fixture
def comparison(images, folders):
    def make(kind=TimmClassifier, **settings):
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        usual = {"methods": ROWS, "rows": 4, "timing_repeats": 6, "trainer": quiet}
        return Comparison(
            **{"data": ImageData(test=images, chunk=4), "classifier": kind(folders[kind]), **usual, **settings}
        )

    return make


@pytest.mark.parametrize("kind", [TimmClassifier, TransformersClassifier])
def test_it_makes_one_table_and_one_page(comparison, kind, tmp_path, folders):
    made, out = comparison(kind), tmp_path / "out"
    content = run_comparison(made, out, False, CONSOLE, finish=lambda folder: write_page(folder, made.data.test_set))
    scores = {row["name"]: scores_of(row) for row in content["rows"]}
    assert set(scores["tome"]) >= {"top1", "top1_difference", "top5", "gflops", "time", "ms", "images_per_second"}
    stored = {row.name: Predictions.load(out / "rows" / row.name / "classification") for row in ROWS}
    for name, own in scores.items():
        assert own["top1"] == Top1().score(stored[name])
    assert scores["tome"]["top1_difference"] == Top1().compare(stored["tome"], stored["none"])
    # Operations: as the report of an attached reducer counts them.
    network = kind(folders[kind]).network
    for row in ROWS:
        with bigain.attach(network, row.method, placement=row.placement) as report:
            assert scores[row.name]["gflops"].value == pytest.approx(report.flops().after / 1e9)
    assert scores["tome"]["gflops"].value < scores["none"]["gflops"].value
    seconds = json.loads((out / "timing.json").read_text())["seconds"]
    assert {name: len(times) for name, times in seconds.items()} == {"none": 6, "lgtm": 6, "tome": 6}
    middle = sum(sorted(seconds["tome"])[2:4]) / 2
    assert scores["tome"]["images_per_second"].value == pytest.approx(4 / middle)
    assert [len(row["sites"]) for row in content["rows"]] == [3, 3, 3]
    page = (out / "report.html").read_text()
    assert "Images a second" in page
    assert "Top-5" in page
    assert "10 test images classified by each" in page
    assert "Generated images" not in page
    assert "same noise" not in page.partition("<h2>Figures")[0]
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["method"] for row in rows][2] == "ToMeViT(ratio=0.5)"
    assert float(rows[2]["images_per_second"]) > 0
    assert compare_pair(out / "rows" / "none", out / "rows" / "tome").images == 10


def test_the_table_fits_eighty_columns(comparison, tmp_path):
    content = run_comparison(comparison(), tmp_path / "out", False, CONSOLE)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(content))
    shown = console.file.getvalue()
    assert "images a" in shown
    assert "…" not in shown
    assert "10 images. " in shown


def test_an_interrupted_one_goes_on(comparison, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ViTRun, "_time", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(comparison(), tmp_path / "out", False, CONSOLE)
    with pytest.raises(SettingError, match="rows: 4 then, 5 now"):
        run_comparison(comparison(rows=5), tmp_path / "out", True, CONSOLE)
    with pytest.raises(SettingError, match="classification_metrics"):  # finished rows lack its column
        run_comparison(comparison(classification_metrics=[Top1(), TopK(3)]), tmp_path / "out", True, CONSOLE)
    assert len(run_comparison(comparison(), tmp_path / "out", True, CONSOLE)["rows"]) == 3


def test_speed_may_be_all_that_is_asked(comparison, tmp_path):
    content = run_comparison(comparison(classification_metrics=[]), tmp_path / "out", False, CONSOLE)
    assert [*scores_of(content["rows"][0])] == ["gflops", "ms", "images_per_second"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classifier": None}, "of one model: give backbone"),
        ({"backbone": PixelDiT(None, width=8, depth=1, heads=1)}, "of one model"),
        ({"prompts": ClassPrompts(count=2)}, "neither diffuses nor generates: leave prompts out"),
        ({"steps": 3, "share_plans": True}, "leave steps, share_plans out"),
    ],
)
def test_what_is_about_diffusion_is_refused(comparison, settings, words):
    with pytest.raises(SettingError, match=words):
        comparison(**settings)


def test_every_row_is_tried_before_any_work(comparison, tmp_path):
    with pytest.raises(SettingError, match="for 3 blocks"):
        run_comparison(
            comparison(methods=[Row("none"), Row("x", ToMeViT(), Placement(progressive=[1]))]),
            tmp_path / "out", False, CONSOLE,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_its_recipe_runs_small(folders, images, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    settings = {"classifier.init_args.weights": folders[TimmClassifier], "data.init_args.test": images, "rows": 2,
                "compile": "false", "timing_repeats": 1, "trainer.accelerator": "cpu"}  # fmt: skip
    given = [f"--comparison.{key}={value}" for key, value in settings.items()]
    main(["compare", "--config=recipes/benchmark/vit_progressive.yaml", f"--output={tmp_path / 'out'}", *given])
    names = [row["name"] for row in read_result(tmp_path / "out" / "comparison.json")["rows"]]
    assert names == ["none", "lgtm", "tome", "tome-progressive"]
