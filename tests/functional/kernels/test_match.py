"""Matching without a matrix of scores, against the matrix."""

import pytest
import torch

from bigain.functional import kernels
from bigain.functional.matching import cosine_matrix, most_similar
from bigain.functional.windows import most_similar_within, tile_members, tile_slots

# Triton's interpreter multiplies bfloat16 wrongly.
HALVES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def split(batch, count, destinations, generator):
    index = torch.stack([torch.randperm(count, generator=generator) for _ in range(batch)])
    return index[:, destinations:], index[:, :destinations]


def best_of_matrix(tokens, rows, columns):
    """In float64, from the very numbers that the halves are; and how far the second best is."""
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    left, right = (torch.stack([row[take] for row, take in zip(unit, index, strict=True)]) for index in (rows, columns))
    values, places = (left @ right.transpose(1, 2)).sort(dim=-1, descending=True, stable=True)
    margin = values[..., 0] - values[..., 1] if values.shape[-1] > 1 else torch.ones_like(values[..., 0])
    return values[..., 0], places[..., 0], margin


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("batch", "count", "destinations", "channels"), [
    (2, 96, 24, 40), (1, 70, 1, 64), (3, 33, 30, 8), (1, 200, 80, 100),
    pytest.param(2, 700, 300, 128, marks=pytest.mark.gpu),
])  # fmt: skip
def test_the_best_is_that_of_the_matrix(device, generator, dtype, batch, count, destinations, channels):
    tokens = torch.randn(batch, count, channels, generator=generator).to(dtype)
    rows, columns = split(batch, count, destinations, generator)
    value, place, margin = best_of_matrix(tokens, rows, columns)
    best, partner = most_similar(tokens.to(device), rows.to(device), columns.to(device))
    torch.testing.assert_close(best.cpu().double(), value, atol=2e-6, rtol=0)
    clear = margin > 4e-6
    assert clear.float().mean() > 0.9
    assert torch.equal(partner.cpu()[clear], place[clear])


def test_of_equals_the_first_is_taken(device, generator):
    """Every destination stands at three places, as in an image with a flat ground. Small integers multiply exactly."""
    tokens = torch.randint(-3, 4, (1, 64, 16), generator=generator).half()
    rows = torch.arange(40, 64)[None]
    columns = torch.cat([torch.randperm(40, generator=generator) for _ in range(3)])[None]
    place = best_of_matrix(tokens, rows, columns[:, :40])[1]
    assert torch.equal(most_similar(tokens.to(device), rows.to(device), columns.to(device))[1].cpu(), place)


def test_tokens_of_zeros_match_the_first(device):
    tokens = torch.zeros(1, 20, 16, dtype=torch.float16, device=device)
    rows, columns = torch.arange(10, 20, device=device)[None], torch.arange(10, device=device)[None]
    best, partner = most_similar(tokens, rows, columns)
    assert not best.any()
    assert not partner.any()


def test_a_slice_of_longer_rows(device, generator):
    """Grids with class or text tokens give every row's middle."""
    whole = torch.randn(2, 50, 24, generator=generator).half()
    rows, columns = split(2, 40, 9, generator)
    sliced = most_similar(whole.to(device)[:, 3:43], rows.to(device), columns.to(device))
    copied = most_similar(whole[:, 3:43].contiguous().to(device), rows.to(device), columns.to(device))
    assert all(torch.equal(one, other) for one, other in zip(sliced, copied, strict=True))


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 4)])
def test_tiles_see_their_own_destinations_alone(device, generator, shape):
    count = torch.Size(shape).numel()
    cell, window = (2,) * len(shape), (2, 1, 1)[: len(shape)]
    tokens = torch.randn(2, count, 16, generator=generator).half()
    cells = torch.Size([length // 2 for length in shape]).numel()
    rows, columns = split(2, count, cells, generator)
    inputs = [one.to(device) for one in (tokens, rows, columns)]
    best, partner = (one.cpu() for one in most_similar_within(*inputs, shape, cell, window))

    _, numbers = tile_members(shape, cell, window, torch.device("cpu"))
    matrix = cosine_matrix(tokens.float(), rows, columns)
    for row in range(2):
        for place, source in enumerate(rows[row].tolist()):
            tile = tile_slots(torch.tensor(source), shape, cell, window)[0]
            allowed = sorted(set(numbers[tile].tolist()))
            assert partner[row, place] in allowed
            torch.testing.assert_close(best[row, place], matrix[row, place, allowed].max(), atol=2e-6, rtol=0)


def test_without_kernels_the_result_is_the_same(device, generator, monkeypatch):
    tokens = torch.randn(2, 96, 32, generator=generator).half().to(device)
    rows, columns = (index.to(device) for index in split(2, 96, 24, generator))
    best, partner = most_similar(tokens, rows, columns)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    value, place = most_similar(tokens, rows, columns)
    torch.testing.assert_close(best, value, atol=2e-6, rtol=0)
    assert (partner == place).float().mean() > 0.98


@pytest.mark.gpu
def test_it_compiles_into_one_graph(generator):
    tokens = torch.randn(2, 4096, 320, generator=generator).half().cuda()
    rows, columns = (index.cuda() for index in split(2, 4096, 1024, generator))
    compiled = torch.compile(most_similar, fullgraph=True)(tokens, rows, columns)
    best, partner = most_similar(tokens, rows, columns)
    torch.testing.assert_close(compiled[0], best, atol=1e-6, rtol=0)
    assert (compiled[1] == partner).float().mean() > 0.999


@pytest.mark.gpu
def test_no_matrix_of_scores_is_written(generator):
    tokens = torch.randn(1, 16_384, 64, generator=generator).half().cuda()
    rows, columns = (index.cuda() for index in split(1, 16_384, 4096, generator))
    most_similar(tokens, rows, columns)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    most_similar(tokens, rows, columns)
    assert torch.cuda.max_memory_allocated() - before < 4 * tokens.nbytes
