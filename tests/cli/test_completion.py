"""Completion, in a shell that sources the script."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
from filelock import FileLock

import bigain
from bigain.cli.commands import COMMANDS
from bigain.cli.completion import SHELLS, completion_script
from bigain.errors import SettingError

pytest.importorskip("shtab")

PROBE = """
source "$1"; shift
function=$(complete -p bigain | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$function bigain "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


PROGRAM = """
from bigain.cli.main import main
for shell in ("bash", "zsh"):
    main(["completion", shell])
    print(end="\\0")
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory, worker_id):
    """Both scripts, made in a process of their own: here, classes of other tests would be among the choices.

    In one, and once for all workers of a run: most of its time goes to starting.
    """
    base = tmp_path_factory.getbasetemp()
    file = (base if worker_id == "master" else base.parent) / "completion"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            made = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
            file.write_text(made)
    made = file.read_text()
    scripts = dict(zip(SHELLS, made.split("\0")[:-1], strict=True))
    for script in scripts.values():
        # A reducer that takes a TokenReducer, and nothing else, is completed within itself: 150 MB of it, once.
        assert len(script) < 3_000_000
        assert "--comparison.guidance" in script
    return scripts


@pytest.fixture(scope="module")
def complete(scripts, tmp_path_factory):
    """Complete a command line: `complete("describe", "l")`."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    file = tmp_path_factory.mktemp("completion") / "bigain"
    file.write_text(scripts["bash"])

    def complete(*words):
        command = ["bash", "-c", PROBE, "probe", str(file), "bigain", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return complete


def test_commands_are_completed(complete):
    assert set(complete("")) == {*COMMANDS}
    assert complete("lat") == ["latency"]


def test_names_are_completed(complete):
    scorers, reducers = bigain.available("scorers"), bigain.available("reducers")
    assert {"lgtm", "laplacian_l1"} <= set(complete("describe", "l"))
    assert set(complete("list", "s")) == {"scorers"}
    assert set(complete("latency", "--reducer", "to")) == {name for name in reducers if name.startswith("to")}
    taken = complete("test", "--model.reducer", "")
    assert set(reducers) <= set(taken)
    assert {name for name in scorers if name.startswith("dft")} == set(complete("latency", "--reducer.scorer", "dft"))


def test_options_of_tasks_and_of_the_trainer_are_completed(complete):
    assert "--model.reducer.ratio" in complete("test", "--model.reducer.")
    assert "--trainer.max_epochs" in complete("fit", "--trainer.max_")
    assert "--comparison.guidance" in complete("compare", "--comparison.g")


def test_zsh_gets_its_script(scripts):
    script = scripts["zsh"]
    assert script.startswith("#compdef bigain")
    assert "lgtm_released" in script
    if shell := shutil.which("zsh"):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_another_shell_is_refused():
    assert SHELLS == ("bash", "zsh")
    with pytest.raises(SettingError, match="Completion is made for bash and zsh; got 'fish'"):
        completion_script("fish")


def test_without_shtab_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("bigain.cli.completion.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="pip install shtab"):
        completion_script("bash")


def typed(shell, line):
    """Type a line and a tab into a real shell, and return what it then shows."""
    os.write(shell, f"{line}\t".encode())
    shown, end = "", time.monotonic() + 60
    while time.monotonic() < end and not (shown.startswith(line) and shown.endswith(" ")):
        shown += heard(shell, 0.2)
    os.write(shell, b"\x15")  # clears the line
    while heard(shell, 0.5):
        pass
    return shown


def heard(shell, seconds):
    return os.read(shell, 65536).decode() if select.select([shell], [], [], seconds)[0] else ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_completes_as_bash_does(scripts, tmp_path):
    (tmp_path / "_bigain").write_text(scripts["zsh"])
    shell, inside = pty.openpty()
    variables = {"TERM": "dumb", "PS1": "", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
    process = subprocess.Popen(["zsh", "-f", "-i"], env=variables, start_new_session=True, **streams)
    try:
        os.write(shell, f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u; echo re''ady\n".encode())
        shown, end = "", time.monotonic() + 60
        while "ready" not in shown and time.monotonic() < end:
            shown += heard(shell, 1)
        while heard(shell, 1):
            pass
        assert typed(shell, "bigain lat") == "bigain latency "
        assert typed(shell, "bigain describe lgtm_") == "bigain describe lgtm_released "
        assert typed(shell, "bigain latency --reducer iek") == "bigain latency --reducer iekvd "
    finally:
        process.kill()
        process.wait()
        os.close(shell)
        os.close(inside)
