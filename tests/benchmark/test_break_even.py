"""From how many tokens on a method pays, in closed form, and what is drawn and written of it."""

import csv
import json

import pytest
import torch
from PIL import Image

from bigain.benchmark.break_even import Curve, break_even, curves_of, in_words
from bigain.benchmark.latency import LatencyTable, SizeLatency
from bigain.benchmark.latency_files import write_latency
from bigain.benchmark.latency_table import notes_below, terminal_tables
from bigain.benchmark.timed_cases import Case, Measured


def row(name, kind, *times, failure=None):
    return Measured(Case(name, kind, lambda: None, flops=1.0), times, failure=failure)


def size(tokens, none, lgtm, channels=None, heads=None):
    """Seven rounds, in each of which the method takes the same share of the other's time."""
    times = [none * (1 + turn / 10) for turn in range(7)]
    rows = [row("none", "none", *times), row("lgtm", "method", *(lgtm / none * one for one in times))]
    rows += [row("written", "baseline", failure="does not fit"), row("lgtm: plan", "part", *times)]
    return SizeLatency(f"{tokens} tokens", (tokens,), 1, tokens, None, {"compiled": tuple(rows)}, channels, heads)


def table(*sizes):
    settings = {"repeats": 7, "modes": ["compiled"]}
    return LatencyTable("a network with random weights, fp32", torch.device("cpu"), settings, sizes)


@pytest.mark.parametrize(
    ("tokens", "ratios", "found"),
    [
        ((100, 10000), (1.5, 0.5), 1000.0),  # half way, in the logarithm
        ((10, 1000), (1.25, 0.25), 10 ** (1 + 2 * 0.25)),
        ((100, 200), (0.9, 0.8), 0.0),
        ((100, 200), (1.2, 1.1), None),
        ((100, 200), (0.9, 1.1), None),
        ((100, 200), (1.0, 0.5), 100.0),
        ((1, 10, 100, 1000), (0.9, 1.2, 1.5, 0.5), 10**2.5),  # the last crossing
    ],
)
def test_it_is_where_the_ratio_crosses_one_in_the_logarithm_of_the_tokens(tokens, ratios, found):
    assert break_even(tokens, ratios) == (found if found is None else pytest.approx(found))


def test_words():
    assert in_words(Curve("x", "method", (100, 10000), (1.5, 0.5))) == "x pays from about 1,000 tokens on."
    assert in_words(Curve("x", "method", (100, 2000), (2, 1.5))) == "x pays at none of the sizes up to 2,000 tokens."
    assert "at every size measured, 100 to 2,000" in in_words(Curve("x", "method", (100, 2000), (0.9, 0.5)))


def test_curves_are_of_sizes_that_differ_in_tokens_alone():
    content = table(size(10000, 4.0, 2.0, 320, 5), size(100, 1.0, 1.5, 320, 5), size(100, 1.0, 9.0, 640, 10))
    (curve,) = curves_of(content)["compiled"]
    assert (curve.name, curve.tokens, curve.ratios) == ("lgtm", (100, 10000), pytest.approx((1.5, 0.5)))
    assert curves_of(table(size(100, 1.0, 1.5))) == {}


def test_a_folder_holds_json_csv_and_picture_or_is_not_there(tmp_path, monkeypatch):
    content = table(size(100, 1.0, 1.5), size(10000, 4.0, 2.0))
    write_latency(tmp_path / "out", content)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "latency.csv",
        "latency.json",
        "speed_up_compiled.png",
    ]
    written = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert written["break_even_tokens"]["compiled"]["lgtm"] == pytest.approx(1000)
    with (tmp_path / "out" / "latency.csv").open() as file:
        assert [line["failure"] for line in csv.DictReader(file)] == ["", "", "does not fit", ""] * 2
    with Image.open(tmp_path / "out" / "speed_up_compiled.png") as picture:
        assert picture.width > 1000

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("bigain.benchmark.latency_files.draw_speed_ups", full)
    for name, replace in (("again", False), ("out", True)):
        with pytest.raises(OSError, match="disk full"):
            write_latency(tmp_path / name, content, replace)
        assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "latency.json").read_text()) == written


def test_the_notes_name_the_break_even_and_the_tables_what_failed():
    content = table(size(100, 1.0, 1.5), size(10000, 4.0, 2.0))
    assert "lgtm pays from about 1,000 tokens on." in notes_below(content)
    assert [title for title, _ in terminal_tables(content)][1] == "100 tokens, pieces alone"
    cells = [list(column.cells) for column in terminal_tables(content)[0][1].columns]
    assert [column[2] for column in cells] == ["written", "-", "-", "does not fit", "1.000", "-", "-"]
    assert [column[1] for column in cells][2:4] == ["1.500", "1.500–1.500"]
