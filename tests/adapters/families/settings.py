"""Reducers and parts that the tests of several families go through."""

from itertools import product

KEYS = [
    {"name": "iekvd", "factor": 2},
    {"name": "todo", "factor": 2},
    {"name": "select", "keep": 0.4, "scorer": "laplacian_l1"},
]
"""Keys and values alone shrink."""

PLACES = [("self",), ("cross",), ("mlp",), ("self", "cross", "mlp")]
"""Parts of a block that has all three."""


def merges(ratio=0.5, **settings):
    """One reducer of each kind that merges; `ratio` is L-GTM's."""
    lgtm = {"name": "lgtm", "ratio": ratio, **settings}
    others = [{"name": name, "ratio": 0.4, **settings} for name in ("tome", "abm")]
    return [lgtm, *others, {"name": "cached", "reducer": lgtm}]


def cases(merging):
    """Merging in each place, and fewer keys in self-attention: pairs of settings and parts."""
    return [*product(merging, PLACES), *((settings, ("self",)) for settings in KEYS)]
