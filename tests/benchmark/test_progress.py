"""What a log says of a long run: how long it will take, once that is known."""

import pytest

from bigain.benchmark.progress import Progress
from bigain.results.wording import about_seconds


def said(*steps, total=12):
    """The lines of one method; a step is its time, `reached` or `finished`, and the images done."""
    lines, now = [], [0.0]
    progress = Progress(lines.append, lambda: now[0])
    progress.begin("none", total)
    for now[0], what, done in steps:
        getattr(progress, what)(done, *(["note"] if what == "finished" else []))
    return lines


def test_an_estimate_is_said_once_and_what_is_left_with_each_line():
    # A quarter of an image each ten seconds: 12 images take 480 s.
    steps = [(10.0 * k, "reached", k / 4) for k in range(1, 5)]
    lines = said(*steps, (320, "finished", 8), (480, "finished", 12))
    assert lines == [
        "none: 12 images, done in about 8 min",
        "none: 8/12, note, about 3 min left",
        "none: 12/12, note",
    ]


def test_what_precedes_the_first_pass_says_nothing_about_the_others():
    """A compilation of ten minutes."""
    assert said((600, "reached", 1), (630, "reached", 2)) == ["none: 12 images, done in about 5 min"]


def test_a_short_run_has_no_estimate():
    assert said((1, "reached", 1), (2, "finished", 6), (4, "finished", 12)) == ["none: 6/12, note", "none: 12/12, note"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2, "10 s"), (44, "40 s"), (89, "90 s"), (200, "3 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_times_are_written_as_exactly_as_they_are_known(seconds, text):
    assert about_seconds(seconds) == text
