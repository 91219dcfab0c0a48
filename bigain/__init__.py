"""Token reduction for diffusion and vision transformers, judged on generation and classification."""

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer
from bigain.registry import available, build_reducer, build_scorer
from bigain.scorers.base import TokenScorer

__all__ = [
    "Context",
    "Grid",
    "Placement",
    "Reduction",
    "TokenReducer",
    "TokenScorer",
    "attach",
    "available",
    "build_reducer",
    "build_scorer",
]
