"""Batches that lie on the device: every image once a round, the same again after an interruption."""

from itertools import chain, islice

import pytest
import torch

from bigain.data.resident import ResidentBatches
from bigain.errors import DataError


def batches(count=10, rows=3, number=20, **settings):
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    found = list(islice(ResidentBatches(images, torch.arange(count) % 2, rows, **settings), number))
    assert all(torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"]) for batch in found)
    assert all(torch.equal(batch["label"], batch["index"] % 2) for batch in found)
    assert {len(batch["index"]) for batch in found} == {rows}
    return [batch["index"].tolist() for batch in found]


def test_every_image_comes_once_before_any_comes_again():
    seen = [*chain(*batches())]
    rounds = [seen[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == len(rounds)


def test_batches_go_on_where_they_stopped():
    assert batches(number=5, first=lambda: 7) == batches()[7:12]


def test_processes_share_a_step():
    parts = [batches(rows=2, rank=rank, processes=3) for rank in range(3)]
    assert [[*chain(*step)] for step in zip(*parts, strict=True)] == batches(rows=6)


def test_the_seed_decides_the_order():
    assert batches(seed=1) == batches(seed=1) != batches(seed=2)


def test_a_step_of_more_images_than_there_are_is_refused():
    with pytest.raises(DataError, match="A step takes 12 images; there are 10"):
        batches(rows=4, processes=3)
