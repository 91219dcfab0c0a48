"""The store: whole results, nothing lost, one process at a time, one sentence where it cannot write."""

import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from bigain.errors import DataError, SettingError
from bigain.results.store import FORMAT, ResultFolder, read_json, read_result, write_json, write_result

IDENTITY = {"seed": 0, "trials": (5, 20)}


def tensors(chunk):
    return {"index": torch.tensor([2 * chunk, 2 * chunk + 1]), "value": torch.full((2,), float(chunk))}


def stopped(path, *chunks):
    """Leave unfinished work behind, as a process that ended does."""
    store = ResultFolder(path, IDENTITY, resume=True)
    for chunk in chunks:
        store.add(chunk, tensors(chunk))
    store.discard_if_empty()
    return store.partial


def result(folder):
    (folder / "result.json").write_text("{}")


def test_the_folder_appears_only_when_it_is_whole(tmp_path):
    output = tmp_path / "result"
    store = ResultFolder(output, IDENTITY)
    store.add(1, tensors(1))
    assert not output.exists()
    store.add(0, tensors(0))
    assert [chunk for chunk, _ in store.chunks()] == [0, 1]
    assert [found["value"].tolist() for _, found in store.chunks()] == [[0, 0], [1, 1]]
    store.publish(result)
    assert [path.name for path in output.iterdir()] == ["result.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("name", ["parts", "chunks", "run.json", "lock", "result"])
def test_no_name_in_a_result_clashes_with_the_stores_own(tmp_path, name):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    (store.folder / name).mkdir()
    (store.folder / name / "figure").write_text("1")
    store.add(0, tensors(0))
    store.publish(result)
    assert (tmp_path / "r" / name / "figure").read_text() == "1"


def test_resuming_continues_and_a_chunk_done_again_is_the_same_one(tmp_path):
    stopped(tmp_path / "r", 0, 3)
    again = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert again.done == {0, 3}
    again.add(3, tensors(5))
    assert [(chunk, found["value"][0].item()) for chunk, found in again.chunks()] == [(0, 0), (3, 5)]


def test_the_same_chunk_is_the_same_bytes(tmp_path):
    files = [next((stopped(tmp_path / name, 2) / "chunks").iterdir()) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_half_written_chunk_is_ignored_and_leaves_nothing_behind(tmp_path):
    partial = stopped(tmp_path / "r", 0)
    (partial / "chunks" / ".00000009.safetensors-1.tmp").write_bytes(b"half")
    (partial / "result" / ".result.json-1.tmp").write_bytes(b"half")
    again = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert again.done == {0}
    again.publish(result)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["result.json"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_publication_loses_nothing(tmp_path, stop):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.add(0, tensors(0))

    def fail(folder):
        raise stop

    with pytest.raises((KeyboardInterrupt, DataError)):
        store.publish(fail)
    assert not (tmp_path / "r").exists()
    store.discard_if_empty()
    again = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert again.done == {0}
    again.publish(result)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["result.json"]


def test_a_damaged_chunk_is_named(tmp_path):
    partial = stopped(tmp_path / "r", 0)
    chunk = next((partial / "chunks").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    for _ in range(2):  # it is still there, and so is the way out
        with pytest.raises(DataError, match=rf"{chunk.name} is damaged .*remove this one file and resume"):
            ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    chunk.unlink()
    assert ResultFolder(tmp_path / "r", IDENTITY, resume=True).done == set()


def test_an_existing_result_is_never_overwritten(tmp_path):
    (tmp_path / "r").mkdir()
    for resume in (False, True):
        with pytest.raises(SettingError, match="exists already"):
            ResultFolder(tmp_path / "r", IDENTITY, resume)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_unfinished_work_needs_resume_and_stays(tmp_path):
    partial = stopped(tmp_path / "r", 0)
    with pytest.raises(SettingError, match="--resume"):
        ResultFolder(tmp_path / "r", IDENTITY)
    assert len(list((partial / "chunks").iterdir())) == 1


def test_other_settings_are_refused_and_named(tmp_path):
    stopped(tmp_path / "r", 0)
    with pytest.raises(SettingError, match=r"other settings .*\(seed: 0 then, 1 now\)"):
        ResultFolder(tmp_path / "r", {**IDENTITY, "seed": 1}, resume=True)


def test_work_of_another_format_is_refused_in_words(tmp_path):
    partial = stopped(tmp_path / "r", 0)
    write_json(partial / "run.json", IDENTITY)
    with pytest.raises(SettingError, match=r"another version of bigain \(format 1 then, 2 now\)"):
        ResultFolder(tmp_path / "r", IDENTITY, resume=True)


def test_where_nothing_is_finished_any_start_is_a_fresh_one(tmp_path):
    (tmp_path / "r.partial").mkdir()
    store = ResultFolder(tmp_path / "r", IDENTITY)
    write_json(store.partial / "run.json", {"left by": "a process that was killed at once"})
    store._lock.release()
    again = ResultFolder(tmp_path / "r", IDENTITY)
    assert again.done == set()
    assert read_json(again.partial / "run.json") == {"format": FORMAT, "seed": 0, "trials": [5, 20]}


def test_an_empty_start_can_be_discarded_but_work_cannot(tmp_path):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.discard_if_empty()
    assert list(tmp_path.iterdir()) == []
    assert stopped(tmp_path / "r", 0).exists()


OTHER = """
import sys, time
from pathlib import Path
import torch
from bigain.errors import BigainError
from bigain.results.store import ResultFolder
try:
    store = ResultFolder(Path(sys.argv[1]), {"seed": 0, "trials": [5, 20]}, resume=True)
    for chunk in range(int(sys.argv[2])):
        store.add(chunk, {"index": torch.tensor([chunk])})
except BigainError as error:
    sys.exit(str(error))
print("at work", flush=True)
if len(sys.argv) > 3:
    worker = torch.utils.data.DataLoader(range(1000), num_workers=1, multiprocessing_context="fork")
    iterator = iter(worker)
    print("with a worker", flush=True)
    time.sleep(100)
store.publish(lambda folder: (folder / "result.json").write_text("{}"))
"""


def other(path, chunks, *waits):
    return [sys.executable, "-c", OTHER, str(path), str(chunks), *waits]


def test_a_second_process_is_refused_and_leaves_nothing(tmp_path):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.add(0, tensors(0))
    before = sorted(tmp_path.rglob("*"))
    second = subprocess.run(other(tmp_path / "r", 3), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr.startswith(f"Another process is at work on {tmp_path / 'r'}: wait")
    assert "Traceback" not in second.stderr
    assert sorted(tmp_path.rglob("*")) == before
    store.publish(result)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["r", "result.json"]


def test_the_lock_goes_with_a_killed_process_though_its_workers_outlive_it(tmp_path):
    command = other(tmp_path / "r", 2, "wait")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout.readline() == "at work\n"
        assert first.stdout.readline() == "with a worker\n"
        with pytest.raises(SettingError, match="Another process is at work"):
            ResultFolder(tmp_path / "r", IDENTITY, resume=True)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=20)
        store = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
        os.killpg(first.pid, signal.SIGKILL)  # the worker, which would wait for its parent for ever
    assert store.done == {0, 1}
    store.publish(result)


def test_a_store_that_is_forgotten_locks_nothing(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).add(0, tensors(0))
    gc.collect()
    assert ResultFolder(tmp_path / "r", IDENTITY, resume=True).done == {0}


def test_the_processes_of_one_run_share_the_lock_of_the_first(tmp_path, monkeypatch):
    first = ResultFolder(tmp_path / "r", IDENTITY)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    second = ResultFolder(tmp_path / "r", IDENTITY)
    second.add(1, tensors(1))
    second.discard_if_empty()
    first.add(0, tensors(0))
    assert [chunk for chunk, _ in first.chunks()] == [0, 1]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from bigain.errors import BigainError
from bigain.results.store import ResultFolder
from safetensors.torch import save_file
store = ResultFolder(Path(sys.argv[1]), {"seed": 0, "trials": [5, 20]})
store.add(0, {"index": torch.arange(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    if sys.argv[2] == "add":
        store.add(1, {"index": torch.arange(10_000)})
    elif sys.argv[2] == "publish":
        store.publish(lambda folder: (folder / "result.json").write_text("x" * 10_000))
    else:
        store.publish(lambda folder: save_file({"x": torch.arange(10_000)}, folder / "x.safetensors"))
except BigainError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("moment", ["add", "publish", "publish tensors"])
def test_a_full_disk_is_one_sentence_and_resuming_goes_on(tmp_path, moment):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "r"), moment]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "cannot be written: File too large. 1 finished chunks are in" in ended.stderr
    assert "--resume goes on" in ended.stderr
    store = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert store.done == {0}
    assert [path.name for path in (store.partial / "chunks").iterdir()] == ["00000000.safetensors"]
    store.publish(result)
    assert (tmp_path / "r" / "result.json").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file" / "r", Path("/proc/nowhere/r")):
        with pytest.raises(DataError, match=r"cannot be written: .*Nothing was run\. Give another --output"):
            ResultFolder(output, IDENTITY)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unsupported(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match=r"has no locks \(Function not implemented\): make sure"):
        ResultFolder(tmp_path / "r", IDENTITY).add(0, tensors(0))


def test_an_obstacle_in_the_middle_loses_nothing(tmp_path):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.add(0, tensors(0))
    (store.partial / "chunks").rename(store.partial / "away")
    (store.partial / "chunks").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written: Not a directory\. 1 finished chunks are in"):
        store.add(1, tensors(1))


@pytest.mark.parametrize("output", [".", "", "..", "/", "/proc", "new/.."])
def test_the_folder_one_is_in_is_no_output(tmp_path, monkeypatch, output):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SettingError, match=r"--output is a new folder, which appears when the result is whole; got"):
        ResultFolder(Path(output), IDENTITY)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here"]


def test_json_of_another_kind_is_refused_in_words(tmp_path):
    path = tmp_path / "config.json"
    for text, kind in (("[1]", "list"), ("3", "number"), ('"x"', "string"), ("null", "null"), ("true", "truth value")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"config\.json holds a JSON {kind}; accepted is an object"):
            read_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        read_json(path)
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read_json(tmp_path / "nowhere.json")


def test_results_have_a_format_and_others_are_refused(tmp_path):
    write_result(tmp_path / "result.json", {"scores": []})
    assert read_result(tmp_path) == read_result(tmp_path / "result.json") == {"format": 2, "scores": []}
    for content, sentence in (
        ({"scores": []}, "has no format number: .* This version reads format 2"),
        ({"format": 3}, "has format 3; this version reads format 2: use a newer bigain"),
        ({"format": 1}, "has format 1; this version reads format 2: run it again"),
        ({"format": "two"}, "has format 'two'"),
    ):
        (tmp_path / "result.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=sentence):
            read_result(tmp_path)
