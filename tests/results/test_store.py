import json

import pytest
import torch

from bigain.errors import DataError, SettingError
from bigain.results.store import ResultFolder

IDENTITY = {"seed": 0, "trials": (5, 20)}


def batch(*items):
    index = torch.tensor(items)
    return index, {"value": index.float() * 2}


def test_the_folder_appears_only_when_it_is_whole(tmp_path):
    output = tmp_path / "result"
    store = ResultFolder(output, IDENTITY)
    assert list(tmp_path.iterdir()) == []
    store.add(*batch(2, 3))
    assert not output.exists()
    store.add(*batch(0, 1))
    held = store.gather()
    assert held["index"].tolist() == [0, 1, 2, 3]
    assert held["value"].tolist() == [0, 2, 4, 6]
    store.publish(lambda folder: (folder / "result.json").write_text("{}"))
    assert [path.name for path in output.iterdir()] == ["result.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_resuming_continues_and_counts_nothing_twice(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).add(*batch(0, 1))
    again = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert again.done == {0, 1}
    again.add(*batch(1, 2))
    assert again.gather()["index"].tolist() == [0, 1, 2]


def test_a_half_written_part_is_ignored(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).add(*batch(0))
    (tmp_path / "r.partial" / "parts" / ".00000009-1.tmp").write_bytes(b"half")
    assert ResultFolder(tmp_path / "r", IDENTITY, resume=True).done == {0}


def test_a_failed_publication_loses_nothing(tmp_path):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.add(*batch(0))

    def stop(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(stop)
    again = ResultFolder(tmp_path / "r", IDENTITY, resume=True)
    assert again.done == {0}
    again.publish(lambda folder: (folder / "result.json").write_text("{}"))
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["result.json"]


def test_an_empty_folder_of_unfinished_work_is_a_fresh_start(tmp_path):
    (tmp_path / "r.partial").mkdir()
    assert ResultFolder(tmp_path / "r", IDENTITY).done == set()


def test_a_damaged_part_is_named(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).add(*batch(0))
    part = next((tmp_path / "r.partial" / "parts").iterdir())
    part.write_bytes(b"damaged")
    with pytest.raises(DataError, match=part.name):
        ResultFolder(tmp_path / "r", IDENTITY, resume=True)


def test_an_existing_result_is_never_overwritten(tmp_path):
    (tmp_path / "r").mkdir()
    for resume in (False, True):
        with pytest.raises(SettingError, match="exists already"):
            ResultFolder(tmp_path / "r", IDENTITY, resume)


def test_unfinished_work_needs_resume(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).begin()
    with pytest.raises(SettingError, match="--resume"):
        ResultFolder(tmp_path / "r", IDENTITY)


def test_other_settings_are_refused_and_named(tmp_path):
    ResultFolder(tmp_path / "r", IDENTITY).begin()
    with pytest.raises(SettingError, match="seed: 0 then, 1 now"):
        ResultFolder(tmp_path / "r", {**IDENTITY, "seed": 1}, resume=True)


def test_resuming_nothing_starts_anew(tmp_path):
    assert ResultFolder(tmp_path / "r", IDENTITY, resume=True).done == set()


def test_an_empty_start_can_be_discarded_but_work_cannot(tmp_path):
    store = ResultFolder(tmp_path / "r", IDENTITY)
    store.begin()
    store.discard_if_empty()
    assert list(tmp_path.iterdir()) == []
    store.add(*batch(0))
    store.discard_if_empty()
    assert store.gather()["index"].tolist() == [0]
    assert json.loads((store.partial / "run.json").read_text()) == {"seed": 0, "trials": [5, 20]}
