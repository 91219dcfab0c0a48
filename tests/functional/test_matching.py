"""Assignment, merging and restoring, each against a loop."""

import numpy as np
import pytest
import torch

from bigain.functional.matching import assign_to_most_similar, group_sizes, merge, restore


def by_loop(tokens, sources, destinations, removed):
    """The group of each destination and of each source that stays, token lists keyed by representative."""
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    cosine = unit @ unit.T
    partner = {i: max(destinations, key=lambda j: cosine[i, j]) for i in sources}
    ranked = sorted(sources, key=lambda i: -cosine[i, partner[i]])
    groups = {j: [j] for j in [*destinations, *ranked[removed:]]}
    for i in ranked[:removed]:
        groups[partner[i]].append(i)
    return groups


def one_token(group, representative, tokens, mode):
    mean = tokens[group].mean(axis=0)
    if mode == "prune":
        return tokens[representative]
    if mode == "mlerp":
        return mean / np.linalg.norm(mean) * max(np.linalg.norm(tokens[i]) for i in group)
    return mean


@pytest.fixture
def case():
    """Two rows of 12 tokens whose sources and destinations differ."""
    tokens = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(3))
    destinations = torch.tensor([[0, 4, 9], [11, 2, 5]])
    sources = torch.tensor([[i for i in range(12) if i not in row] for row in destinations.tolist()])
    return tokens, sources, destinations


@pytest.mark.parametrize("removed", [0, 1, 5, 9])
@pytest.mark.parametrize("mode", ["mean", "prune", "mlerp"])
def test_reduce_and_restore_equal_the_loop(case, removed, mode):
    tokens, sources, destinations = case
    place, representatives = assign_to_most_similar(tokens, sources, destinations, removed)
    reduced = merge(tokens, place, representatives, mode)
    restored = restore(reduced, place)
    sizes = group_sizes(place, representatives.shape[1])

    for row in range(2):
        wide = tokens[row].double().numpy()
        groups = by_loop(wide, sources[row].tolist(), destinations[row].tolist(), removed)
        assert set(representatives[row].tolist()) == set(groups)
        for slot, representative in enumerate(representatives[row].tolist()):
            group = groups[representative]
            expected = torch.from_numpy(one_token(group, representative, wide, mode)).float()
            torch.testing.assert_close(reduced[row, slot], expected, atol=1e-5, rtol=1e-5)
            assert sizes[row, slot] == len(group)
            for i in group:
                torch.testing.assert_close(restored[row, i], expected, atol=1e-5, rtol=1e-5)


def test_most_similar_means_the_angle_not_the_length():
    tokens = torch.tensor([[[100.0, 100.0], [1.0, 0.0], [0.9, 0.1]]])
    place, _ = assign_to_most_similar(tokens, torch.tensor([[2]]), torch.tensor([[0, 1]]), 1)
    assert place[0].tolist() == [0, 1, 1]


def test_zero_tokens_are_matched_without_nan():
    tokens = torch.zeros(1, 4, 3)
    place, representatives = assign_to_most_similar(tokens, torch.tensor([[1, 2, 3]]), torch.tensor([[0]]), 2)
    for mode in ("mean", "prune", "mlerp"):
        assert not merge(tokens, place, representatives, mode).any()


def test_equal_tokens_keep_their_order():
    """Ties go to the first source, on every device: the sort is stable."""
    tokens = torch.ones(1, 5, 1)  # of one channel: similarities are exactly 1 on any processor
    _, representatives = assign_to_most_similar(tokens, torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0]]), 2)
    assert representatives[0].tolist() == [3, 4, 0]


def test_assignment_is_the_same_under_autocast():
    """Similarities are float32 also where a training recipe turns on bf16 autocast."""
    tokens = torch.randn(2, 256, 16, generator=torch.Generator().manual_seed(0))
    index = torch.arange(256).expand(2, -1)
    plain = assign_to_most_similar(tokens, index[:, 64:], index[:, :64], 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = assign_to_most_similar(tokens, index[:, 64:], index[:, :64], 100)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])


@pytest.mark.parametrize("mode", ["mean", "prune", "mlerp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_keeps_the_type_and_sums_in_float32(mode, dtype):
    """Sixteen tokens of 30,000 overflow float16 when they are summed in it."""
    tokens = torch.full((1, 16, 2), 3e4, dtype=dtype)
    place, representatives = torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    reduced = merge(tokens, place, representatives, mode)
    assert reduced.dtype == dtype
    torch.testing.assert_close(reduced.float(), torch.full((1, 1, 2), 3e4), rtol=1e-2, atol=0)


def test_gradient_of_the_mean_is_shared_equally():
    tokens = torch.randn(1, 4, 2, requires_grad=True)
    place = torch.tensor([[0, 0, 0, 1]])
    restore(merge(tokens, place, torch.tensor([[0, 3]])), place).sum().backward()
    # Each of three merged tokens gives a third of three restored ones.
    torch.testing.assert_close(tokens.grad, torch.ones(1, 4, 2))


def test_gradient_of_pruning_goes_to_the_representative():
    tokens = torch.randn(1, 4, 1, requires_grad=True)
    place = torch.tensor([[0, 0, 0, 1]])
    restore(merge(tokens, place, torch.tensor([[1, 3]]), "prune"), place).sum().backward()
    assert tokens.grad.flatten().tolist() == [0, 3, 0, 1]


def test_mlerp_keeps_the_largest_norm_and_the_mean_direction():
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    reduced = merge(tokens, torch.tensor([[0, 0]]), torch.tensor([[0]]), "mlerp")[0, 0]
    torch.testing.assert_close(reduced, torch.tensor([3.0, 1.0]) / 10**0.5 * 3)


def test_the_meta_device_gives_shapes():
    """Where FLOPs are counted without weights."""
    index = torch.arange(16, device="meta").expand(2, -1)
    tokens = torch.empty(2, 16, 4, device="meta")
    place, representatives = assign_to_most_similar(tokens, index[:, 4:], index[:, :4], 6)
    assert restore(merge(tokens, place, representatives), place).shape == (2, 16, 4)
    assert representatives.shape == (2, 10)
