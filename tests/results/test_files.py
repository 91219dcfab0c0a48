"""Places for results."""

import os
from pathlib import Path

import pytest

from bigain.errors import DataError, SettingError
from bigain.results.files import check_absent


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    # Root may write anywhere that is a file system, and nowhere in the kernel's.
    place = Path("/proc/result") if os.geteuid() == 0 else tmp_path / "locked" / "result"
    with pytest.raises(DataError, match="lets you write nothing"):
        check_absent(place)


def test_a_free_place_is_left_as_it_was(tmp_path):
    check_absent(tmp_path / "result")
    assert not any(tmp_path.iterdir())
    (tmp_path / "result").mkdir()
    with pytest.raises(SettingError, match="exists already"):
        check_absent(tmp_path / "result")
