"""Token reduction for diffusion and vision transformers, judged on generation and classification.

The public names load on first use, so that `import bigain` and the command line start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bigain.registry import available

if TYPE_CHECKING:
    from bigain.adapters.attach import attach
    from bigain.adapters.placement import Placement
    from bigain.grid import Grid
    from bigain.reducers.base import Context, Reduction, TokenReducer
    from bigain.reducers.build import build_reducer
    from bigain.scorers.base import TokenScorer
    from bigain.scorers.build import build_scorer

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

_MODULES = {
    "Context": "bigain.reducers.base",
    "Grid": "bigain.grid",
    "Placement": "bigain.adapters.placement",
    "Reduction": "bigain.reducers.base",
    "TokenReducer": "bigain.reducers.base",
    "TokenScorer": "bigain.scorers.base",
    "attach": "bigain.adapters.attach",
    "build_reducer": "bigain.reducers.build",
    "build_scorer": "bigain.scorers.build",
}
"""Where each name is defined."""

if not TYPE_CHECKING:  # a type checker that saw this would accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
