"""What a row of a comparison does to a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.adapters.report import AttachReport
from bigain.diffusion.backbone import Backbone
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer

__all__ = ["Applied", "Method", "Reduced", "method_of"]


@dataclass(frozen=True)
class Applied:
    """A backbone with a method at work in it.

    Args:
        backbone: What is evaluated: the same backbone, or one that wraps it.
        report: What `attach` returned, for a method that attaches a reducer.
    """

    backbone: Backbone
    report: AttachReport | None = None

    @property
    def sites(self) -> list[dict[str, Any]]:
        """The modules that a reducer works in, with tokens before and after, as results store them."""
        reduced = [site for site in self.report.sites if not site.left_alone] if self.report else []
        return [{"name": site.name, "before": site.before, "after": site.after} for site in reduced]


class Method(ABC):
    """Changes a model during an evaluation: its tokens, its network or its input.

    A method has settings only. Several may be at work at once, each in a copy of the network
    that shares the weights: so a method replaces tensors and modules, and never writes into a
    tensor of the model.
    """

    @abstractmethod
    def applied(self, backbone: Backbone, placement: Placement, seed: int) -> AbstractContextManager[Applied]:
        """Change the backbone within a `with` block, and leave it as it was at the end, also after an exception.

        Args:
            backbone: The model. A method that changes the input yields another backbone that wraps it.
            placement: Which blocks to work in; a method that works elsewhere ignores it.
            seed: Seeds whatever the method draws.

        Raises:
            BigainError: The method does not work on this model with these settings.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


class Reduced(Method):
    """Attaches a token reducer.

    Args:
        reducer: The reducer.
    """

    def __init__(self, reducer: TokenReducer) -> None:
        self.reducer = reducer

    @contextmanager
    def applied(self, backbone: Backbone, placement: Placement, seed: int) -> Iterator[Applied]:
        shape = backbone.grid_shape
        with attach(backbone.network, self.reducer, placement=placement, shape=shape, seed=seed) as report:
            yield Applied(backbone, report)

    def __repr__(self) -> str:
        return repr(self.reducer)


def method_of(given: TokenReducer | Method) -> Method:
    """Return a method as it is, and a reducer as the method that attaches it.

    Raises:
        SettingError: Neither a method nor a reducer.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, TokenReducer):
        return Reduced(given)
    raise SettingError(f"A method is a TokenReducer or a bigain.tasks.method.Method; got {type(given).__name__}.")


def is_identity(method: Method) -> bool:
    """Say whether a method leaves every token as it is."""
    return isinstance(method, Reduced) and isinstance(method.reducer, Identity)
