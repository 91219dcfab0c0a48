"""Memory of a CPU that does not suffice: really, in a process of its own with a limit."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.pipelines import save_sd

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.skipif(sys.platform != "linux", reason="limits")]

LIMITED = """
import os, resource, sys
import torch
from bigain.cli.main import main

torch.set_num_threads(1)
shared, out = sys.argv[1:-1], sys.argv[-1]
main([*shared, "--image_size=16", "--rows=1", f"--output={out}/small"])  # what is loaded once is loaded
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + 250 * 2**20,) * 2)
main([*shared, "--image_size=96", f"--output={out}/halved"])
main([*shared, "--image_size=96", "--rows=32", f"--output={out}/refused"])
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of which 32 rows of 96 pixels take some 700 MB, and few rows a tenth of it."""
    return save_sd(tmp_path_factory.mktemp("memory") / "model", block_out_channels=(64, 128))


def test_half_the_rows_are_taken_and_rows_that_were_asked_for_are_refused(wide, tmp_path, root):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "photos" / "red.png")
    asked = ["classify", str(tmp_path / "photos"), f"--model={wide}", "--classes=a,b", "--timesteps=4", "--device=cpu"]
    alone = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, *asked, str(tmp_path)]
    ended = subprocess.run(command, cwd=root, env={**os.environ, **alone}, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    rows = json.loads((tmp_path / "halved" / "result.json").read_text())["settings"]["rows"]
    assert rows in (16, 8, 4, 2, 1)
    assert f"memory does not suffice: {rows} rows a pass" in ended.stdout
    (line,) = ended.stderr.strip().splitlines()
    assert "does not fit into the memory of cpu: take a smaller --image_size or fewer --rows or --dtype=bf16" in line
    assert not (tmp_path / "refused").exists()


def test_a_huge_image_is_refused_in_one_line(wide, tmp_path, refused):
    """An allocation of terabytes, which no machine grants."""
    command = ["generate", "a", f"--model={wide}", "--steps=1", "--device=cpu", "--image_size=2000000"]
    refused([*command, f"--output={tmp_path / 'out'}"], "does not fit into the memory of cpu: take a smaller --image_")
