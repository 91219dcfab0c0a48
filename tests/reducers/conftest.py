"""A slow, obvious version of bipartite merging, straight from the description."""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest


def _cells(shape, cell):
    corners = itertools.product(*(range(0, n - s + 1, s) for n, s in zip(shape, cell, strict=True)))
    offsets = list(itertools.product(*map(range, cell)))
    return [[int(np.ravel_multi_index(np.add(c, o), shape)) for o in offsets] for c in corners]


def _slow_merge(tokens, shape, cell, ratio, pick, mode="mean"):
    """Merge one image's tokens `[N, C]`; `pick(number of the cell, its tokens)` names the destination.

    Returns the groups by representative, and what restoring gives.
    """
    tokens = tokens.double().numpy()
    destinations = [pick(number, members) for number, members in enumerate(_cells(shape, cell))]
    sources = [i for i in range(len(tokens)) if i not in destinations]
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    partner = {i: max(destinations, key=lambda j: unit[i] @ unit[j]) for i in sources}
    best_first = sorted(sources, key=lambda i: -(unit[i] @ unit[partner[i]]))
    removed = math.floor(len(tokens) * ratio)

    groups = {i: [i] for i in [*destinations, *best_first[removed:]]}
    for i in best_first[:removed]:
        groups[partner[i]].append(i)
    restored = np.empty_like(tokens)
    for representative, group in groups.items():
        mean = tokens[group].mean(axis=0)
        if mode == "mlerp":
            mean *= max(np.linalg.norm(tokens[i]) for i in group) / np.linalg.norm(mean)
        restored[group] = tokens[representative] if mode == "prune" else mean
    return SimpleNamespace(groups=groups, restored=restored)


@pytest.fixture(scope="session")
def slow_merge() -> Callable[..., SimpleNamespace]:
    """The loop version: `slow_merge(tokens, shape, cell, ratio, pick, mode)`."""
    return _slow_merge
