"""The README's walk, from an empty folder to one's own scorer beside L-GTM: its commands, as they are shown."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
WALK = README.split("<!-- ten minutes: begin -->")[1].split("<!-- ten minutes: end -->")[0]
MODULES = {"pip": "pip", "pytest": "pytest", "bigain": "bigain.cli.main"}


@pytest.mark.slow
def test_the_commands_lead_from_an_empty_folder_to_the_page(
    tmp_path, environment, tiny_weights, tiny_features, tiny_reference
):
    python, variables = environment
    tiny = {
        "backbone.init_args.weights": tiny_weights,
        "features": "bigain.metrics.features.EmbeddedFeatures",
        "features.folder": tiny_features,
        "reference": tiny_reference,
        "data.init_args.limit": 2,
        "data.init_args.image_size": 8,
        "prompts.init_args.count": 2,
        "steps": 2,
        "timing_repeats": 1,
        "trainer.accelerator": "cpu",
    }
    variables = variables | {"PYTEST_ADDOPTS": "-k 'not compiles'"}  # plugins/template has these tests, all of them
    said = {}
    for line in WALK.strip().splitlines()[1:-1]:
        program, *arguments = shlex.split(line, comments=True)
        if "compare" in arguments:
            arguments += [f"--comparison.{key}={value}" for key, value in tiny.items()]
        command = [python, "-m", MODULES[program], *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        said[" ".join([program, *arguments[:2]])] = done.stdout
    listed = said["bigain list scorers"]
    assert all(f"{name} " in listed for name in ("texture_range", "texture_pairs", "lgtm"))
    assert "largest and smallest channel" in said["bigain describe texture_range"]
    rows = json.loads((tmp_path / "texture" / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["lgtm", "texture_range", "texture_pairs", "none"]
    assert "texture_range" in (tmp_path / "texture" / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "bigain-texture", "texture"}
