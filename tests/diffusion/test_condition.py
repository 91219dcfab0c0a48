import gc
import weakref

import pytest
import torch

from bigain.diffusion.condition import Condition, PromptConditions
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


def embedding(given, calls):
    """Embed numbers as rows of a condition; `calls` gathers how many at once."""

    def embed(prompts):
        calls.append(len(prompts))
        return given.take([int(prompt) for prompt in prompts])

    return embed


@pytest.mark.parametrize("hold", [0, 1, 400, 2**20])
def test_prompts_that_are_embedded_when_needed_are_those_embedded_at_once(hold):
    given, calls = whole(11), []
    late = PromptConditions(embedding(given, calls), [str(row) for row in range(11)], hold)
    assert len(late) == 11
    assert late.identity() == given.identity()
    for rows in ([3, 0, 3], torch.tensor([10, 1])):
        for name, value in late.take(rows).tensors.items():
            assert torch.equal(value, given.tensors[name][rows])
        assert torch.equal(late.take(rows).added["time_ids"], given.added["time_ids"])
    assert late.identity() == given.identity()
    with pytest.raises(SettingError, match="taken on the host"):
        late.take(torch.zeros(1, dtype=torch.int64, device="meta"))


def test_no_more_prompts_are_in_memory_than_said():
    given, alive, calls = whole(40), weakref.WeakSet(), []
    row = sum(value[0].nbytes for value in given.tensors.values())

    def embed(prompts):
        found = embedding(given, calls)(prompts)
        alive.update(found.tensors.values())
        return found

    late = PromptConditions(embed, [str(row) for row in range(40)], hold=5 * row)
    late.identity()
    assert max(calls) == 2
    assert sum(len(condition.tensors["states"]) for condition in late._rows.values()) == 5
    gc.collect()
    assert sum(value.nbytes for value in alive) == 0
    late.take(range(30, 34))
    late.take(range(5))
    assert sum(len(condition.tensors["states"]) for condition in late._rows.values()) == 5
    assert calls[-1] == 4  # the first five stayed
    assert late._held <= 5 * row
