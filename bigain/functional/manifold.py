"""The manifold of a set of features, estimated from nearest neighbours."""

import torch
from torch import Tensor

__all__ = ["in_manifold", "neighbor_distances"]

_DISTANCES = 2**24
"""Distances in memory at once: 128 MiB in double precision."""


def neighbor_distances(features: Tensor, neighbors: int) -> Tensor:
    """Return the distance of each point to its k-th nearest neighbour among the others.

    Args:
        features: `[M, D]`.
        neighbors: k, below M.

    Returns:
        float64, `[M]`.
    """
    points, rows = features.double(), _rows(len(features))
    found = []
    for first in range(0, len(points), rows):
        distances = torch.cdist(points[first : first + rows], points)
        # A point is no neighbour of its own; products round its distance to itself to something above 0.
        own = torch.arange(len(distances), device=points.device)
        distances[own, own + first] = torch.inf
        found.append(distances.kthvalue(neighbors, dim=1).values)
    return torch.cat(found)


def in_manifold(points: Tensor, features: Tensor, neighbors: int) -> Tensor:
    """Say which points lie in the manifold of a set of features.

    The manifold is the union of balls around each feature, as large as the distance to its k-th nearest neighbour.
    Computed in double precision, in chunks of bounded memory.

    Args:
        points: `[N, D]`.
        features: `[M, D]`.
        neighbors: k, below M.

    Returns:
        bool, `[N]`.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019), equation 1.
    """
    radii, centres, rows = neighbor_distances(features, neighbors), features.double(), _rows(len(features))
    parts = torch.split(points, rows)
    return torch.cat([(torch.cdist(part.double(), centres) <= radii).any(dim=1) for part in parts])


def _rows(columns: int) -> int:
    return max(1, _DISTANCES // columns)
