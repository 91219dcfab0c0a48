"""The command line starts without what it does not need."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "lightning", "diffusers", "transformers", "scipy", "matplotlib")
PROGRAM = """
import sys
from bigain.cli.main import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code
loaded = [name for name in {heavy!r} if name in sys.modules]
assert loaded == [], loaded
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], (*HEAVY, "jsonargparse", "rich")),
        (["--version"], (*HEAVY, "jsonargparse", "rich")),
        (["list", "--help"], HEAVY),
        (["list", "tasks"], HEAVY),
        (["describe", "--help"], HEAVY[2:]),
        (["recipes"], HEAVY),
        (["export", "--help"], HEAVY),
        (["new-plugin", "--help"], HEAVY),
        (["list"], HEAVY[2:]),
        (["describe", "lgtm"], HEAVY[2:]),
        (["flops", "--help"], HEAVY[2:]),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments, heavy):
    program = PROGRAM.format(arguments=arguments, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_checker_sees_the_public_names_and_no_others(root, tmp_path):
    """`bigain` loads its names lazily: a checker must neither lose them nor take any name for one."""
    pytest.importorskip("mypy")
    # Of other packages nothing is asked, and reading PyTorch takes seven times as long as all of bigain.
    others = ",".join(f"{name}.*" for name in (*HEAVY, "jsonargparse", "rich", "safetensors", "PIL", "timm"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\n[mypy-{others}]\nfollow_imports = skip\n")
    file = tmp_path / "uses.py"
    file.write_text("import bigain\nreveal_type(bigain.Grid)\nreveal_type(bigain.attach)\nbigain.no_such_name\n")
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", str(file)]
    variables = {**os.environ, "MYPYPATH": str(root)}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables).stdout
    assert "-> bigain.grid.Grid" in shown
    assert "bigain.adapters.report.AttachReport" in shown
    assert 'has no attribute "no_such_name"' in shown
