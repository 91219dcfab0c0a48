import pytest
import torch

from bigain.diffusion.condition import Condition
from bigain.errors import SettingError


def whole(rows=5):
    generator = torch.Generator().manual_seed(0)
    return Condition(
        labels=torch.arange(rows),
        states=torch.randn(rows, 7, 4, generator=generator),
        mask=torch.rand(rows, 7, generator=generator) < 0.5,
        pooled=torch.randn(rows, 6, generator=generator),
        added={"time_ids": torch.randn(1, 6, generator=generator)},
    )


def test_rows_are_gathered_and_what_is_added_stays():
    given, rows = whole(), [3, 0, 3]
    found = given.take(rows)
    assert len(found) == 3
    for name, value in found.tensors.items():
        assert torch.equal(value, given.tensors[name][rows])
    assert found.added is given.added
    assert torch.equal(given.take(torch.tensor(rows)).states, found.states)


def test_only_floats_change_their_type():
    found = whole().to("cpu", torch.bfloat16)
    assert found.states.dtype == found.pooled.dtype == found.added["time_ids"].dtype == torch.bfloat16
    assert (found.labels.dtype, found.mask.dtype) == (torch.int64, torch.bool)
    assert whole().to("cpu").states.dtype == torch.float32


def test_joined_rows_come_apart_again():
    given = whole()
    joined = Condition.cat([given.take([4]), given.take([0, 1])])
    assert torch.equal(joined.states, given.states[[4, 0, 1]])
    with pytest.raises(SettingError, match="labels; labels, states"):
        Condition.cat([Condition(labels=torch.arange(2)), given])


def test_its_identity_changes_with_every_value():
    given = whole()
    assert given.identity() == whole().identity()
    assert set(given.identity()) == {"labels", "states", "mask", "pooled", "time_ids"}
    changed = Condition(**{**given.tensors, "states": given.states + 1e-6}, added=given.added).identity()
    assert {name for name in changed if changed[name] != given.identity()[name]} == {"states"}
    assert Condition(labels=torch.tensor([0]), added={}).identity() != Condition(labels=torch.tensor([1])).identity()


def test_rows_on_a_device_are_refused():
    with pytest.raises(SettingError, match="on the host; these lie on meta"):
        whole().take(torch.zeros(2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({}, "got nothing"),
        ({"labels": torch.zeros(2, 1)}, r"labels \[2, 1\]"),
        ({"labels": torch.zeros(2), "pooled": torch.zeros(3, 4)}, "same number of rows"),
        ({"labels": torch.zeros(2), "added": {"size": torch.zeros(2, 6)}}, r"size \[2, 6\]: each is \[1"),
    ],
)
def test_impossible_shapes_are_refused(tensors, expected):
    with pytest.raises(SettingError, match=expected):
        Condition(**tensors)
