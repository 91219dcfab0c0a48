"""Tiles of cells, against coordinates and loops."""

import itertools
import math

import pytest
import torch

from bigain.functional.cells import cell_tokens, split_by_pick
from bigain.functional.windows import most_similar_within, tile_members, tile_slots

CPU = torch.device("cpu")
CASES = [
    ((8, 8), (2, 2), (2, 2)),
    ((7, 9), (2, 2), (2, 3)),
    ((21, 6, 5), (2, 2, 2), (3, 2, 1)),
    ((10,), (3,), (2,)),
    ((5, 4), (1, 2), (2, 9)),
]


def coordinates(token, shape):
    found = []
    for length in reversed(shape):
        token, at = divmod(token, length)
        found.append(at)
    return tuple(reversed(found))


def tile_of(token, shape, cell, window):
    """Which tile of whole cells, along each axis; of tokens that none covers, the last."""
    found = []
    for at, length, side, wide in zip(coordinates(token, shape), shape, cell, window, strict=True):
        nearest = min(at // side, length // side - 1)
        found.append(nearest // wide)
    return tuple(found)


@pytest.mark.parametrize(("shape", "cell", "window"), CASES)
def test_every_token_is_a_member_of_its_own_tile(shape, cell, window):
    count = math.prod(shape)
    members, cells = tile_members(shape, cell, window, CPU)
    tile, inside = tile_slots(torch.arange(count), shape, cell, window)
    assert torch.equal(members[tile, inside], torch.arange(count))
    assert cells.shape == (len(members), math.prod(window))
    tiles = sorted({tile_of(token, shape, cell, window) for token in range(count)})
    assert [tiles[number] for number in tile] == [tile_of(token, shape, cell, window) for token in range(count)]


@pytest.mark.parametrize(("shape", "cell", "window"), CASES)
def test_a_source_sees_the_cells_of_its_tile(shape, cell, window):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(2, math.prod(shape), 6, generator=generator)
    cells, leftover = cell_tokens(shape, cell, CPU)
    pick = torch.randint(cells.shape[1], (2, len(cells)), generator=generator)
    destinations, sources = split_by_pick(cells, leftover, pick)
    best, partner = most_similar_within(tokens, sources, destinations, shape, cell, window)

    whole = [length // side for length, side in zip(shape, cell, strict=True)]
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    for row, source in itertools.product(range(2), range(sources.shape[1])):
        token = int(sources[row, source])
        ranges = []
        for at, wide, most in zip(tile_of(token, shape, cell, window), window, whole, strict=True):
            ranges.append(sorted({min(one, most - 1) for one in range(at * wide, (at + 1) * wide)}))
        allowed = [
            sum(at * math.prod(whole[axis + 1 :]) for axis, at in enumerate(one)) for one in itertools.product(*ranges)
        ]
        cosines = unit[row, destinations[row, allowed]] @ unit[row, token]
        assert int(partner[row, source]) == allowed[int(cosines.argmax())]
        torch.testing.assert_close(best[row, source], cosines.max(), atol=1e-6, rtol=0)
