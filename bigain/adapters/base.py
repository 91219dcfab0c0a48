"""What an adapter knows of a family of models."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from bigain.grid import Grid

__all__ = ["Adapter", "Moment", "Part", "PlanFrom", "Site"]

Part = Literal["self", "cross", "mlp"]
"""A part of a block: self-attention, the queries of cross-attention, the MLP."""

PlanFrom = Literal["block", "part"]
"""What a plan is made from: the block's input, or that of the first part that is reduced."""


@dataclass(frozen=True)
class Site:
    """A transformer block in which a reducer can work.

    Args:
        name: Path of the block in the model.
        block: The block.
        layer: Its index, counted from the input.
        parts: The parts it has, each with the name of its module in the block.
            Attentions have a `processor`, which is wrapped.
        stage: Name of the resolution stage, in models that have stages.
        downsample: How many times coarser its grid is than the model's input grid, along each axis.
    """

    name: str
    block: nn.Module
    layer: int
    parts: Mapping[Part, str]
    stage: str | None = None
    downsample: int = 1

    def module(self, part: Part) -> nn.Module:
        """Return the module of a part."""
        return cast("nn.Module", getattr(self.block, self.parts[part]))

    def path(self, part: Part) -> str:
        """Return the path of a part's module in the model."""
        return f"{self.name}.{self.parts[part]}"


@dataclass(frozen=True)
class Moment:
    """What an adapter reads from the model's input at the start of a forward pass.

    Args:
        shape: Tokens along each axis of the model's input grid.
        timestep: Timestep of each row, `[B]`, one for all, `[]`, or a number that the
            host knows; `None` if the model has none.
    """

    shape: tuple[int, ...]
    timestep: Tensor | float | None = None


class Adapter(ABC):
    """Where the blocks of a family of models are, and what they see.

    An adapter never knows a method.

    Attributes:
        library: Module that must be imported already for a model of this family to exist.
        family: What it serves, in words, for listings and errors.
        plan_from: What the published methods plan from in this family.
    """

    library: ClassVar[str]
    family: ClassVar[str]
    plan_from: ClassVar[PlanFrom] = "part"

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Say whether the model is of this family."""

    @abstractmethod
    def sites(self, model: nn.Module) -> list[Site]:
        """List every block with attention, from the input to the output."""

    @abstractmethod
    def default_layers(self, sites: list[Site]) -> list[int]:
        """Say at which layers the published methods work."""

    @abstractmethod
    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        """Say which grid a site sees when the model's input grid is `shape`."""

    @abstractmethod
    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        """Read from the model's configuration how tokens lie at its input."""

    @abstractmethod
    def moment(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        """Read a forward call's arguments."""

    @abstractmethod
    def inputs(
        self, model: nn.Module, rows: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Make arguments for one forward pass, to count or time it.

        Args:
            model: The model.
            rows: B.
            shape: Tokens along each axis of its input grid.
            device: Where the tensors are wanted; values on `meta` are none.
            dtype: Type of the floating-point ones.
        """
