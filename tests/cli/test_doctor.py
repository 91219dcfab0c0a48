"""What `bigain doctor` finds, against what this machine does."""

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import bigain
from bigain import registry
from bigain.cli import doctor
from bigain.cli.main import main


@pytest.fixture(scope="module")
def findings():
    return {(found.group, found.name): found for found in doctor.examine(compiling=False)}


def test_versions_are_those_of_the_metadata(findings):
    for name in ("bigain", "torch", "lightning", "diffusers", "timm", "transformers"):
        found = findings["versions", name]
        assert (found.state, found.text) == ("ok", version(name))


def test_every_device_is_named(findings):
    devices = {name for group, name in findings if group == "devices"}
    gpus = {f"cuda:{index}" for index in range(torch.cuda.device_count())}
    assert devices - {"mps"} == {"cpu"} | gpus


@pytest.mark.parametrize(("name", "backend"), doctor._BACKENDS.items())
def test_a_backend_of_attention_is_usable_as_told(findings, name, backend):
    query = torch.randn(1, 2, 16, 16)
    try:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        expected = "absent"
    else:
        expected = "ok"
    found = findings["attention on cpu", name]
    assert found.state == expected
    assert found.text
    assert findings["attention on cpu", "math"].state == "ok" or backend is not SDPBackend.MATH


def test_every_adapter_is_told_with_its_library(findings):
    for name in bigain.available("adapters"):
        kind = registry.get("adapters", name)
        assert kind.library in findings["adapters", name].text
    assert version("diffusers") in findings["adapters", "dit"].text


class _Odd:
    library, classes, tested = "torch", (), ""


@pytest.mark.parametrize(
    ("facts", "state", "told"),
    [
        ({"library": "no_such_library"}, "absent", "no_such_library is not installed"),
        ({"tested": "0.0.1"}, "note", "tested with 0.0.1"),
        ({"classes": ("NoSuchModel",)}, "note", "has no NoSuchModel"),
        ({"classes": ("Linear", "NoSuchModel")}, "note", "without NoSuchModel"),
        ({"classes": ("Linear",), "tested": "0.1 and " + torch.__version__.partition("+")[0]}, "ok", "as tested"),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_match_says_why(facts, state, told):
    found = doctor._adapter(type("Odd", (_Odd,), facts))
    assert found[0] == state
    assert told in found[1]


def test_a_library_that_cannot_be_imported_is_broken(tmp_path, monkeypatch):
    (tmp_path / "torn_library.py").write_text("raise OSError('no such symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    state, told = doctor._adapter(type("Odd", (_Odd,), {"library": "torn_library"}))
    assert state == "broken"
    assert "OSError: no such symbol" in told


def test_a_version_that_does_not_fit_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package", "ruff<0; extra == 'dev'"])
    found = {one.name: one for one in doctor._versions()}
    assert found["torch"].state == "broken"
    assert "bigain needs torch>=99" in found["torch"].text
    assert "not installed" in found["no-such-package"].text
    assert "ruff" not in found


def test_without_a_compiler_it_says_so_and_nothing_is_broken(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (found,) = doctor._compilers([], True)
    assert (found.state, found.name) == ("note", "C++ compiler")
    assert "none on the path" in found.text


def test_a_compiler_that_works_is_told():
    found = doctor._compiled(torch.device("cpu"), True)
    assert (found.state, found.name) == ("ok", "torch.compile, cpu")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.stderr.buffer.write(bytes([233])); raise RuntimeError('caf\\xe9')", "RuntimeError: caf"),
        ("import time; time.sleep(60)", "was not done after 1 s"),
        ("import sys; sys.exit(7)", "its process ended with 7"),
        ("raise RuntimeError('no g++')  # {device}", "does not work here: RuntimeError: no g++"),
        (doctor._PROGRAM.replace("torch.compile(total, fullgraph=True)", "torch.sum"), "gives 2016.0 where"),
    ],
)
def test_a_compiler_that_does_not_is_told_with_the_reason(monkeypatch, program, told):
    monkeypatch.setattr(doctor, "_PROGRAM", program)
    found = doctor._compiled(torch.device("cpu"), True, limit=1 if "60" in program else 60)
    assert found.state == ("note" if "60" in program else "broken")
    assert told in found.text


def test_what_lies_in_the_current_folder_is_not_taken_for_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise RuntimeError('mine')")
    monkeypatch.setattr(doctor, "_PROGRAM", "import queue  # as torch does\nassert queue.Queue")
    assert doctor._compiled(torch.device("cpu"), True).state == "ok"


def test_a_compiler_that_hangs_is_ended_with_what_it_started(monkeypatch, tmp_path):
    note = tmp_path / "child"
    program = (
        f"import subprocess, time; c = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(c.pid))"
    )
    monkeypatch.setattr(doctor, "_PROGRAM", program + "; time.sleep(60)")
    assert doctor._compiled(torch.device("cpu"), True, limit=3).state == "note"
    child = Path(f"/proc/{note.read_text()}/stat")
    if not child.parents[1].is_dir():
        pytest.skip("no /proc here")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < end:
        time.sleep(0.1)
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_command_prints_every_finding_and_succeeds(findings, capsys):
    if any(found.state == "broken" for found in findings.values()):
        pytest.skip("something is broken in this environment")
    main(["doctor", "--compile=false"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith("Nothing broken.")
    for group, name in findings:
        assert group in shown
        assert name in shown


def test_nothing_of_cuda_is_initialized_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    program = (
        "import sys, torch\n"
        # The doctor imports these, to see whether they can be: what of CUDA they load by themselves is theirs.
        "import diffusers, timm, transformers\n"
        "from diffusers.models import *\n"
        "before = {name for name in ('triton', 'xformers', 'flash_attn') if name in sys.modules}\n"
        "from bigain.cli.doctor import examine\n"
        "assert list(examine(False))\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert before == {name for name in ('triton', 'xformers', 'flash_attn') if name in sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_misspelt_group_of_entry_points_is_told(tmp_path, monkeypatch):
    """Nobody would ever look there: the plugin would be missing without a word."""
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bigain.scorer]\nmine = odd:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {one.name: one for one in doctor._plugins()}["bigain.scorer"]
    assert found.state == "broken"
    assert "no such group of entry points (mine)" in found.text
    assert "bigain.scorers" in found.text
