"""Progress: a bar where somebody watches, lines in a log."""

import io
import re

import pytest
from rich.console import Console

from bigain.cli.live import shown_progress


def written(**settings):
    """What a console gets while one method works on two images, and then begins anew."""
    file = io.StringIO()
    with shown_progress(Console(file=file, width=80, **settings)) as progress:
        progress.say("loading [bold]")
        for _ in range(2):
            progress.begin("lgtm", 2)
            progress.reached(0.5)
            progress.finished(1, "1.0 s an image")
            progress.finished(2, "2.0 s an image")
    return file.getvalue()


def test_a_log_has_a_line_of_every_step():
    lines = ["lgtm: 1/2, 1.0 s an image", "lgtm: 2/2, 2.0 s an image"]
    assert written().splitlines() == ["loading [bold]", *lines, *lines]


@pytest.mark.parametrize("dumb", [False, True])
def test_a_terminal_has_a_bar_and_keeps_only_the_other_lines(dumb, monkeypatch):
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm-256color")
    text = written(force_terminal=True)
    assert "loading [bold]" in text
    if dumb:
        assert "lgtm: 1/2" in text
        return
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "lgtm: 1/2" not in plain
    assert re.search(r"lgtm .*2/2 .*2\.0 s an image", plain)
    assert "━" in plain
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is there again
