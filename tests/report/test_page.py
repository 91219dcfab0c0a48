"""The page of a finished comparison."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bigain.data.dataset import LabelledImages
from bigain.errors import DataError
from bigain.report.gallery import test_gallery as gallery_of
from bigain.report.headline import headline
from bigain.report.page import write_page
from bigain.report.tables import comparison_table

CLASSES = ("cat", "dog", "sea & lake")
ODD = "a<b"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def method(name: str, **changes: object) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": name,
        "reducer": "LGTM(ratio=0.5)",
        "images": 5000,
        "top1": 0.9,
        "top1_low": 0.89,
        "top1_high": 0.91,
        "difference": 0.0,
        "difference_low": -0.01,
        "difference_high": 0.01,
        "generated": 4,
        "frechet": 12.5,
        "features": "Fréchet distance (embedded CIFAR-10 features)",
        "gflops": 2.0,
        "ms": 10.0,
        "ms_low": 9.8,
        "ms_high": 10.2,
        "rows": 25,
        "evaluations_per_image": 85.0,
        "sites": [{"name": "blocks.0.attn", "before": 16, "after": 8}],
    }
    return given | changes


def content(*methods: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": "Tokens & more",
        "baseline": methods[0]["name"],
        "methods": list(methods),
        "classes": list(CLASSES),
        "settings": {"trials": [2, 5], "seed": 0, "compile": False, "weights": "3f2a"},
        "provenance": {
            "finished": "2026-01-02T03:04:05+00:00",
            "command": "bigain compare --output 'x'",
            "device": "CPU (x86_64, 2 threads)",
            "versions": {"torch": "2.11"},
        },
    }


def baseline(**changes: object) -> dict[str, Any]:
    return method("none", difference=None, difference_low=None, difference_high=None) | changes


@pytest.fixture
def images() -> LabelledImages:
    pixels = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return LabelledImages(pixels, torch.tensor([0, 1, 2] * 2), tuple(f"{i}<.png" for i in range(6)), CLASSES, "test")


def fill(folder: Path, images: LabelledImages, described: dict[str, Any], maps: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(described))
    for number, entry in enumerate(described["methods"]):
        place = folder / entry["name"]
        (place / "classification").mkdir(parents=True)
        (place / "generation").mkdir()
        index, label = torch.arange(6), images.labels
        errors = torch.full((6, 3, 2), torch.nan)
        prediction = (label + number) % 3
        save_file(
            {"index": index, "label": label, "prediction": prediction, "errors": errors},
            place / "classification" / "errors.safetensors",
        )
        save_file(
            {"index": index[:4], "label": index[:4] % 3, "seed": index[:4] + 100, "image": images.images[:4].clone()},
            place / "generation" / "samples.safetensors",
        )
        if maps and number:
            save_map(place, images)
    return folder


def save_map(place: Path, images: LabelledImages, tokens: int = 16) -> None:
    # Tokens 0 .. 7 stay; 8 .. 15 merge into 0 .. 7.
    tensors = {
        "image": images.images[:1].clone(),
        "noisy": images.images[1:2].clone(),
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


def test_page_is_whole_self_contained_and_escaped(tmp_path: Path, images: LabelledImages) -> None:
    described = content(baseline(), method("lgtm"), method(ODD))
    path = write_page(fill(tmp_path / "run", images, described), images, content(baseline(), method("lgtm")))
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
    assert "Shipped run: 5,000 images on CPU" in reader.text
    assert not list(path.parent.glob(".*"))


def test_equal_input_gives_equal_pages(tmp_path: Path, images: LabelledImages) -> None:
    described = content(baseline(), method("lgtm"))
    pages = [write_page(fill(tmp_path / name, images, described), images).read_bytes() for name in ("x", "y")]
    assert pages[0] == pages[1]


def test_without_shipped_run_and_without_maps(tmp_path: Path, images: LabelledImages) -> None:
    page = write_page(fill(tmp_path, images, content(baseline(), method("lgtm")), maps=False), images).read_text()
    assert "Shipped run" not in page
    assert "What was merged" not in page


def test_a_map_that_does_not_fill_its_grid_is_told(tmp_path: Path, images: LabelledImages) -> None:
    fill(tmp_path, images, content(baseline(), method("lgtm")), maps=False)
    save_map(tmp_path / "lgtm", images, tokens=17)
    assert "This map cannot be drawn" in write_page(tmp_path, images).read_text()


def test_nothing_measured_is_a_dash(tmp_path: Path, images: LabelledImages) -> None:
    empty = dict.fromkeys(
        ("top1", "top1_low", "top1_high", "frechet", "gflops", "ms", "ms_low", "ms_high"), float("nan")
    )
    described = content(
        baseline(**empty), method("lgtm", **empty, difference=None, evaluations_per_image=None, sites=[])
    )
    page = write_page(fill(tmp_path, images, described), images).read_text()
    assert not re.search(r"\bnan\b", Reader(page).text.lower())
    assert "There is no finite figure to plot." in page
    row = comparison_table(described, "This run").rows[1]
    assert [cell.value for cell in row.cells] == ["–"] * 7


def test_missing_and_foreign_files_are_refused(tmp_path: Path, images: LabelledImages) -> None:
    fill(tmp_path, images, content(baseline(), method("lgtm")))
    with pytest.raises(DataError, match="has 2 images"):
        write_page(tmp_path, images.first(2))
    (tmp_path / "lgtm" / "classification" / "errors.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        write_page(tmp_path, images)
    assert not (tmp_path / "report.html").exists()


LOWER = {"difference": -0.02, "difference_low": -0.03, "difference_high": -0.01}
HIGHER = {"difference": 0.02, "difference_low": 0.01, "difference_high": 0.03}
FASTER = {"ms": 8.0, "ms_low": 7.9, "ms_high": 8.1}
SLOWER = {"ms": 12.0, "ms_low": 11.9, "ms_high": 12.1}


@pytest.mark.parametrize(
    ("changes", "told", "untold"),
    [
        ({}, ["within the noise (the 95 % interval includes zero)", "lgtm is neither faster nor slower"], ["accurate"]),
        (LOWER, ["lgtm (−2.0 points) is less accurate than none, beyond what chance explains"], ["noise", "few"]),
        (HIGHER, ["lgtm (+2.0 points) is more accurate than none"], ["less", "noise"]),
        (FASTER, ["lgtm (0.80× the time) is faster than none", "within the noise"], ["slower"]),
        (SLOWER, ["lgtm (1.20× the time) is slower than none"], ["faster"]),
        (FASTER | {"timings": 3}, ["too few passes were timed (3 of each) to tell speeds apart"], ["faster"]),
        ({"ms_low": None}, ["the speed of lgtm was not measured"], ["faster"]),
        ({"difference_low": None}, ["the accuracy of lgtm could not be compared"], ["noise"]),
    ],
)
def test_headline_says_what_the_figures_support(changes: dict[str, Any], told: list[str], untold: list[str]) -> None:
    sentence = headline(content(baseline(), method("lgtm", **changes)))
    assert sentence.startswith("On 5,000 images, ")
    assert sentence.count(".") - len(re.findall(r"\d\.\d", sentence)) == 1
    for part in told:
        assert part in sentence
    for part in untold:
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
    inception = comparison_table(content(baseline(features="FID", generated=5000)), "This run")
    assert embedded.columns[2].value == "Fréchet distance"
    assert "not FID" in embedded.notes[1]
    assert "4 generated images" in embedded.warnings[0]
    assert inception.columns[2].value == "FID"
    assert not inception.warnings


def test_gallery_shows_disagreements_first() -> None:
    pixels = torch.zeros(60, 3, 2, 2, dtype=torch.uint8)
    names = tuple(str(i) for i in range(60))
    images = LabelledImages(pixels, torch.zeros(60, dtype=torch.int64), names, CLASSES, "test")
    agree = dict.fromkeys(range(60), 0)
    shown = gallery_of(images, {"none": agree, "lgtm": agree | {58: 1, 50: 2}})
    assert [card.name for card in shown.cards[:3]] == ["50", "58", "0"]
    assert len(shown.cards) == 48
    assert "The 2 on which the methods disagree come first" in shown.about
    assert shown.cards[0].answers == (("none", "cat", True), ("lgtm", "sea & lake", False))
