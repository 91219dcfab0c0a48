"""The kernels' tests on a CPU, in a process in which Triton interprets."""

import os
import subprocess
import sys

import pytest


def test_kernels_pass_their_tests_when_interpreted(root):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/functional/kernels"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout
