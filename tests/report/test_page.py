"""The page of a finished comparison."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bigain.backbones.pixel_dit import PixelDiT
from bigain.data.dataset import ImageDataset
from bigain.data.sources.base import ImageSource
from bigain.errors import DataError
from bigain.report.gallery import test_gallery as gallery_of
from bigain.report.headline import headline
from bigain.report.page import write_page
from bigain.report.palette import method_styles
from bigain.report.plots import plot, points_of
from bigain.report.shipped import shipped_run_beside
from bigain.report.tables import comparison_table
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.provenance import fingerprint
from bigain.results.scores import Score

CLASSES = ("cat", "dog", "sea & lake")
ODD = "a<b"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def score(name: str, value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    label, unit, better = {
        "top1": ("top-1", "share", "higher"),
        "top1_difference": ("paired", "points", "higher"),
        "frechet_distance": ("Fréchet distance (embedded CIFAR-10 features)", "number", "lower"),
        "fid": ("FID", "number", "lower"),
        "gflops": ("GFLOPs", "GFLOPs", "lower"),
        "time": ("time", "ratio", "lower"),
        "evaluations_per_image": ("evals", "count", "lower"),
    }[name]
    value = math.nan if value is None else value
    return Score(name, value, low, high, label, unit, better).to_json()


def method(name: str, **changes: Any) -> dict[str, Any]:
    """Describe a row; a change is a figure, or a figure with its interval."""
    figures: dict[str, Any] = {
        "top1": (0.9, 0.89, 0.91),
        "top1_difference": (0.0, -0.01, 0.01),
        "frechet_distance": 12.5,
        "gflops": 2.0,
        "time": (1.0, 0.98, 1.02),
        "evaluations_per_image": 85.0,
    }
    facts = {"images": 5000, "generated": 4, "sites": [{"name": "blocks.0.attn", "before": 16, "after": 8}]}
    facts |= {key: changes.pop(key) for key in list(changes) if key in facts}
    figures |= changes
    scores = [score(key, *(found if isinstance(found, tuple) else (found,))) for key, found in figures.items() if found]
    return {"name": name, "method": "LGTM(ratio=0.5)", **facts, "scores": scores}


def baseline(**changes: Any) -> dict[str, Any]:
    return method("none", **{"top1_difference": None, "time": None, **changes})


def content(*rows: dict[str, Any], weights: str = "3f2a") -> dict[str, Any]:
    return {
        "format": 2,
        "title": "Tokens & more",
        "baseline": rows[0]["name"],
        "rows": list(rows),
        "classes": list(CLASSES),
        "settings": {"trials": [2, 5], "seed": 0, "compile": False, "weights": weights},
        "provenance": {
            "finished": "2026-01-02T03:04:05+00:00",
            "command": "bigain compare --output 'x'",
            "device": "CPU (x86_64, 2 threads)",
            "versions": {"torch": "2.11"},
        },
    }


class Pixels(ImageSource):
    """PNG images in memory."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
        self.source, self.classes = "test", CLASSES
        self.names = tuple(f"{i}<.png" for i in range(count))
        self.labels = tuple((i % 3,) for i in range(count))

    def read(self, row: int) -> bytes:
        target = io.BytesIO()
        Image.fromarray(self.images[row].permute(1, 2, 0).numpy()).save(target, "PNG")
        return target.getvalue()


@pytest.fixture
def images() -> ImageDataset:
    return ImageDataset(Pixels(6), 4)


def predictions_of(images: ImageDataset, answers: list[int]) -> Predictions:
    errors = Errors.of(torch.rand(len(images), 3, 2), torch.arange(len(images)))
    return Predictions(images.names, images.labels, torch.tensor(answers), errors, CLASSES)


def fill(folder: Path, images: ImageDataset, described: dict[str, Any], maps: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(described))
    whole = images.batch(range(len(images)))
    for number, entry in enumerate(described["rows"]):
        place = folder / "rows" / entry["name"]
        (place / "classification").mkdir(parents=True)
        (place / "generation" / "samples").mkdir(parents=True)
        answers = [(labels[0] + number) % 3 for labels in images.labels]
        predictions_of(images, answers).save(place / "classification")
        for chunk in range(2):
            rows = torch.arange(2 * chunk, 2 * chunk + 2)
            save_file(
                {"index": rows, "label": rows % 3, "seed": rows + 100, "image": whole["image"][rows]},
                place / "generation" / "samples" / f"{chunk:08d}.safetensors",
            )
        if maps and number:
            save_map(place, whole["image"])
    return folder


def save_map(place: Path, images: torch.Tensor, tokens: int = 16) -> None:
    # Tokens 0 .. 7 stay; 8 .. 15 merge into 0 .. 7.
    tensors = {
        "image": images[:1].clone(),
        "noisy": images[1:2].clone(),
        "place": (torch.arange(tokens) % 8)[None],
        "representatives": torch.arange(8)[None],
        "shape": torch.tensor([4, 4]),
        "timestep": torch.tensor([125]),
    }
    save_file(tensors, place / "merge_map.safetensors")
    (place / "merge_map.json").write_text('{"site": "blocks.0.attn"}')


class Reader(HTMLParser):
    """Gathers what the page refers to, and refuses elements that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.untold = 0
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found[key] or "" for key in ("src", "href") if key in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.untold += tag == "img" and not found.get("alt")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def test_page_is_whole_self_contained_and_escaped(tmp_path: Path, images: ImageDataset) -> None:
    described = content(baseline(), method("lgtm"), method(ODD))
    path = write_page(fill(tmp_path / "run", images, described), images)
    page = path.read_text()
    reader = Reader(page)
    assert path == tmp_path / "run" / "report.html"
    assert not re.search(r"https?://|url\((?!#)|@import|<script", page)
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert len(set(reader.ids)) == len(reader.ids)
    assert not reader.untold
    assert ODD not in page
    assert "a&lt;b" in page
    for told in ("none", "lgtm", ODD, *CLASSES, "5<.png", "Tokens & more", "blocks.0.attn", "16 → 8 tokens"):
        assert told in reader.text, told
    assert "This run: 5,000 images on CPU" in reader.text
    assert not list(path.parent.glob(".*"))


def test_equal_input_gives_equal_pages(tmp_path: Path, images: ImageDataset) -> None:
    described = content(baseline(), method("lgtm"))
    pages = [write_page(fill(tmp_path / name, images, described), images).read_bytes() for name in ("x", "y")]
    assert pages[0] == pages[1]


def test_the_shipped_run_stands_beside_the_embedded_model_alone(tmp_path: Path, images: ImageDataset) -> None:
    other = write_page(fill(tmp_path / "other", images, content(baseline(), method("lgtm")), maps=False), images)
    assert "Shipped run" not in other.read_text()
    assert "What was merged" not in other.read_text()
    weights = fingerprint(PixelDiT().network.state_dict())
    assert shipped_run_beside(content(baseline(), weights=weights)) is not None
    embedded = content(baseline(), method("lgtm"), weights=weights)
    page = write_page(fill(tmp_path / "own", images, embedded), images)
    assert "Shipped run: 5,000 images on NVIDIA H200" in Reader(page.read_text()).text


def test_points_stand_at_their_exact_cost() -> None:
    """Points of like cost were once moved apart, so that the page misstated GFLOPs."""
    rows = [baseline(gflops=13.73), method("tome", gflops=11.69), method("lgtm", gflops=11.70)]
    points = points_of(rows, "top1")
    assert [(point.name, point.cost, point.value) for point in points] == [
        ("none", 13.73, 90.0),
        ("tome", 11.69, 90.0),
        ("lgtm", 11.70, 90.0),
    ]
    assert (points[0].low, points[0].high) == (pytest.approx(89), pytest.approx(91))
    drawing = str(plot(points, method_styles(["none", "tome", "lgtm"]), "Top-1", "p"))
    lines = re.findall(r'<path d="M ([\d.]+) [\d.]+ *\nL ([\d.]+) [\d.]+ *\n"[^>]*var\(--m', drawing)
    tome, lgtm, none = sorted(float(left) for left, right in lines if left == right)
    assert (lgtm - tome) / (none - tome) == pytest.approx(0.01 / 2.04, rel=1e-3)


def test_a_map_that_does_not_fill_its_grid_is_told(tmp_path: Path, images: ImageDataset) -> None:
    fill(tmp_path, images, content(baseline(), method("lgtm")), maps=False)
    save_map(tmp_path / "rows" / "lgtm", images.batch(range(6))["image"], tokens=17)
    assert "This map cannot be drawn" in write_page(tmp_path, images).read_text()


def test_nothing_measured_is_a_dash(tmp_path: Path, images: ImageDataset) -> None:
    empty = dict.fromkeys(("top1", "frechet_distance", "gflops", "time", "evaluations_per_image"), math.nan)
    described = content(baseline(**empty), method("lgtm", **{**empty, "top1_difference": math.nan}, sites=[]))
    page = write_page(fill(tmp_path, images, described), images).read_text()
    assert not re.search(r"\bnan\b", Reader(page).text.lower())
    assert "There is no finite figure to plot." in page
    row = comparison_table(described, "This run").rows[1]
    assert [cell.value for cell in row.cells] == ["–"] * 7


def test_missing_and_foreign_files_are_refused(tmp_path: Path, images: ImageDataset) -> None:
    fill(tmp_path, images, content(baseline(), method("lgtm")))
    with pytest.raises(DataError, match="another choice of 2"):
        write_page(tmp_path, images.subset(2))
    (tmp_path / "rows" / "lgtm" / "classification" / "errors.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        write_page(tmp_path, images)
    assert not (tmp_path / "report.html").exists()


LOWER = {"top1_difference": (-0.02, -0.03, -0.01)}
HIGHER = {"top1_difference": (0.02, 0.01, 0.03)}
FASTER = {"time": (0.8, 0.79, 0.81)}
SLOWER = {"time": (1.2, 1.19, 1.21)}


@pytest.mark.parametrize(
    ("changes", "parts", "absent"),
    [
        ({}, ["within the noise (the 95 % interval includes zero)", "lgtm is neither faster nor slower"], ["accurate"]),
        (LOWER, ["lgtm (−2.0 points) is less accurate than none, beyond what chance explains"], ["noise", "few"]),
        (HIGHER, ["lgtm (+2.0 points) is more accurate than none"], ["less", "noise"]),
        (FASTER, ["lgtm (0.80× the time) is faster than none", "within the noise"], ["slower"]),
        (SLOWER, ["lgtm (1.20× the time) is slower than none"], ["faster"]),
        ({"time": 0.8}, ["too few passes were timed to tell speeds apart"], ["faster"]),
        ({"time": None}, ["the speed of lgtm was not measured"], ["faster"]),
        ({"top1_difference": -0.1}, ["the accuracy of lgtm could not be compared"], ["noise"]),
    ],
)
def test_headline_says_what_the_figures_support(changes: dict[str, Any], parts: list[str], absent: list[str]) -> None:
    sentence = headline(content(baseline(), method("lgtm", **changes)))
    assert sentence.startswith("On 5,000 images, ")
    assert sentence.count(".") - len(re.findall(r"\d\.\d", sentence)) == 1
    for part in parts:
        assert part in sentence
    for part in absent:
        assert part not in sentence


def test_headline_trusts_no_difference_on_few_images() -> None:
    sentence = headline(content(baseline(images=16), method("lgtm", images=16, **LOWER)))
    assert "so few images prove little" in sentence
    assert "less accurate" not in sentence


def test_headline_groups_methods_and_stands_alone() -> None:
    both = headline(content(baseline(), method("tome", **LOWER, **FASTER), method("lgtm", **SLOWER)))
    assert "tome (−2.0 points) is less accurate" in both
    assert "between lgtm and none is within the noise" in both
    assert "is faster than none and lgtm (1.20× the time) is slower" in both
    assert "nothing to compare" in headline(content(baseline()))


def test_only_inception_is_called_fid() -> None:
    embedded = comparison_table(content(baseline()), "This run")
    inception = comparison_table(content(baseline(frechet_distance=None, fid=10.0, generated=5000)), "This run")
    assert [column.value for column in embedded.columns][1] == "Fréchet distance"
    assert any("not FID" in note for note in embedded.notes)
    assert "4 generated images" in embedded.warnings[0]
    assert "FID" in [column.value for column in inception.columns]
    assert not any("not FID" in note for note in inception.notes)
    assert not inception.warnings


def test_a_score_that_nobody_foresaw_has_a_column_and_a_plot(tmp_path: Path, images: ImageDataset) -> None:
    row = method("lgtm")
    row["scores"].append(Score("top5", 0.99, 0.98, 1.0, "top-5", "share", "higher", "Of the best five.").to_json())
    page = Reader(write_page(fill(tmp_path, images, content(baseline(), row)), images).read_text()).text
    for text in ("Top-5", "99.0", "98.0 to 100.0", "Top-5: Of the best five.", "Top-5 against GFLOPs"):
        assert text in page


def test_an_old_result_is_refused_in_words(tmp_path: Path, images: ImageDataset) -> None:
    fill(tmp_path, images, content(baseline()))
    (tmp_path / "comparison.json").write_text('{"methods": []}')
    with pytest.raises(DataError, match="has no format number"):
        write_page(tmp_path, images)


def test_gallery_shows_disagreements_first() -> None:
    images = ImageDataset(Pixels(60), 4)
    agree = [labels[0] for labels in images.labels]
    other = [*agree]
    other[50], other[58] = (agree[50] + 1) % 3, (agree[58] + 1) % 3
    both = {"none": predictions_of(images, agree), "lgtm": predictions_of(images, other)}
    shown = gallery_of(images, both)
    assert [card.name for card in shown.cards[:3]] == ["50<.png", "58<.png", "0<.png"]
    assert len(shown.cards) == 48
    assert "The 2 on which the methods disagree come first" in shown.about
    right, wrong = shown.cards[0].answers
    assert (right[0], right[2], wrong[0], wrong[2]) == ("none", True, "lgtm", False)
