"""What an adapter knows of a family of models."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bigain.grid import Grid

__all__ = ["Adapter", "Moment", "Site"]


@dataclass(frozen=True)
class Site:
    """A place where a reducer can work: one attention module.

    Args:
        name: Path of the attention module in the model.
        module: The module; its `processor` is wrapped.
        layer: Index of its block, counted from the input.
        stage: Name of the resolution stage, in models that have stages.
    """

    name: str
    module: nn.Module
    layer: int
    stage: str | None = None


@dataclass(frozen=True)
class Moment:
    """What an adapter reads from the model's input at the start of a forward pass.

    Args:
        shape: Tokens along each axis at the first site.
        timestep: Timestep of each row, `[B]` or `[]`; `None` if the model has none.
    """

    shape: tuple[int, ...]
    timestep: Any = None


class Adapter(ABC):
    """Where the attention sites of a family of models are, and what they see.

    An adapter never knows a method.

    Attributes:
        library: Module that must be imported already for a model of this family to exist.
        family: What it serves, in words, for listings and errors.
    """

    library: ClassVar[str]
    family: ClassVar[str]

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Say whether the model is of this family."""

    @abstractmethod
    def sites(self, model: nn.Module) -> list[Site]:
        """List every attention site, from the input to the output."""

    @abstractmethod
    def default_layers(self, sites: list[Site]) -> list[int]:
        """Say at which layers the published methods work."""

    @abstractmethod
    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        """Say which grid a site sees when the first site sees `shape`."""

    @abstractmethod
    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        """Read from the model's configuration how tokens lie at the first site."""

    @abstractmethod
    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        """Read a forward call's arguments."""
