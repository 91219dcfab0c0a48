"""The manifold of nearest neighbours against plain loops."""

import pytest
import torch

from bigain.functional import manifold
from bigain.functional.manifold import in_manifold, neighbor_distances


def slow_radius(features, index, k):
    return sorted(float((features[index] - other).norm()) for number, other in enumerate(features) if number != index)[
        k - 1
    ]


def slow_inside(point, features, k):
    return any(float((point - one).norm()) <= slow_radius(features, index, k) for index, one in enumerate(features))


@pytest.mark.parametrize("most", [1, 50, 2**24])
@pytest.mark.parametrize("k", [1, 3])
def test_it_is_a_loop_over_balls_whatever_fits_into_memory(noise, monkeypatch, most, k):
    monkeypatch.setattr(manifold, "_DISTANCES", most)
    features, points = noise(23, 4).double(), 1.3 * noise(31, 4, seed=1).double()
    expected = [slow_inside(point, features, k) for point in points]
    assert 0 < sum(expected) < len(expected)
    assert in_manifold(points, features, k).tolist() == expected
    radii = torch.tensor([slow_radius(features, index, k) for index in range(23)], dtype=torch.float64)
    torch.testing.assert_close(neighbor_distances(features, k), radii)


def test_distances_in_memory_are_bounded(noise, monkeypatch):
    monkeypatch.setattr(manifold, "_DISTANCES", 120)
    seen, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: seen.append(len(a) * len(b)) or cdist(a, b))
    in_manifold(noise(50, 4), noise(40, 4, seed=1), 2)
    assert max(seen) <= 120
    assert sum(seen) == 40 * 40 + 50 * 40


def test_a_twin_is_a_neighbour_and_oneself_is_none():
    features = torch.tensor([[0.0], [0.0], [5.0]])
    assert neighbor_distances(features, 1).tolist() == [0, 0, 5]
    far = 1e6 + torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 7.0]])
    torch.testing.assert_close(neighbor_distances(far, 1), torch.tensor([2.0, 2.0, 4.0], dtype=torch.float64))
