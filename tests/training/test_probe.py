"""Candidates of the embedded models are trained and measured, and one that takes too long is ended."""

import json
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

NAME = "dit-144x11-o3"
PARTS = ("top1", "by_timestep", "lgtm50_first1", "lgtm50_all3", "steps", "gpu")


@pytest.fixture
def run(root, tmp_path):
    """Runs the launcher on the CPU at a tiny setting."""
    options = ["--tiny", "--seconds=0.5", "--compile=none", f"--out={tmp_path}", f"--cache={tmp_path / 'images.pt'}"]
    command = [sys.executable, root / "recipes/train/probe.py", *options]
    return lambda *more: subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)


def test_a_candidate_is_trained_and_measured(run, tmp_path):
    done = run(NAME)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (tmp_path / "probe.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert line in done.stdout.splitlines()
    assert found["name"] == NAME
    assert set(PARTS) <= found.keys()
    assert found["steps"] > 0
    assert found["M"] * 1e6 == pytest.approx(
        sum(value.numel() for value in load_file(tmp_path / f"{NAME}.safetensors").values()), abs=5000
    )


def test_one_that_takes_too_long_is_ended_and_its_log_told(run, tmp_path):
    began = time.monotonic()
    done = run(NAME, "--limit=0.6")
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    assert f"{NAME} was ended" in done.stdout
    assert not (tmp_path / "probe.jsonl").exists()


def test_an_unknown_candidate_is_named_with_those_there_are(run):
    done = run("dit-1x1")
    assert done.returncode == 2
    assert "unknown: dit-1x1; the candidates are dit-176x7-o1" in done.stderr
