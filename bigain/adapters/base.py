"""What an adapter knows of a family of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from bigain.grid import Grid
from bigain.reducers.base import Reduction, TokenReducer

__all__ = [
    "Adapter",
    "Attached",
    "Moment",
    "Part",
    "PlanFrom",
    "Planner",
    "Seam",
    "Site",
    "StackAdapter",
    "Undo",
    "first_blocks",
    "spread_timesteps",
]

Part = Literal["self", "cross", "mlp"]
"""A part of a block: self-attention, the queries of cross-attention, the MLP."""

PlanFrom = Literal["block", "part", "keys"]
"""What a plan is made from: the block's input, the input of its first reduced part, or its attention's keys."""

Undo = list[Callable[[], None]]
"""Calls that undo changes to a model; the last is called first."""


class Seam(ABC):
    """How one part of a block takes its tokens and gives them back.

    Attributes:
        module: Path of the part's module in the block.
        covers: Paths of all modules that make up the part, to count its operations.
    """

    module: str

    @property
    def covers(self) -> tuple[str, ...]:
        return (self.module,)

    def check(self, site: "Site", part: Part, reducer: TokenReducer, proportional: bool) -> None:  # noqa: B027
        """Refuse what cannot work here, before anything is touched.

        Raises:
            SiteError: The block lacks something, or is set up so that the reducer would do nothing.
        """

    @abstractmethod
    def install(self, planner: "Planner", part: Part, proportional: bool) -> Undo:
        """Make the part of `planner.site` run on reduced tokens; return what undoes it."""


@dataclass(frozen=True)
class Site:
    """A transformer block in which a reducer can work.

    Args:
        name: Path of the block in the model.
        block: The block.
        layer: Its index, counted from the input.
        parts: The parts it has, and how each takes its tokens.
        stage: Name of the resolution stage, in models that have stages.
        downsample: How many times coarser its grid is than the model's input grid, along each axis.
        tokens: Name of the block's argument that holds the tokens, if it is passed by keyword.
        batch_first: Whether tokens are `[B, N, C]`, rather than `[N, B, C]`.
        after_text: Whether text stands before the tokens in the same tensor.
    """

    name: str
    block: nn.Module
    layer: int
    parts: Mapping[Part, Seam]
    stage: str | None = None
    downsample: int = 1
    tokens: str = "hidden_states"
    batch_first: bool = True
    after_text: bool = False

    def module(self, part: Part) -> nn.Module:
        """Return the module of a part."""
        return self.block.get_submodule(self.parts[part].module)

    def modules(self, parts: Sequence[Part]) -> list[nn.Module]:
        """List all modules that make up some parts."""
        return [self.block.get_submodule(name) for part in parts for name in self.parts[part].covers]

    def path(self, part: Part) -> str:
        """Return the path of a part's module in the model."""
        return self.inside(self.parts[part].module) or type(self.block).__name__

    def covered(self, part: Part) -> tuple[str, ...]:
        """Return the paths in the model of all modules that make up a part."""
        return tuple(self.inside(name) for name in self.parts[part].covers)

    def inside(self, name: str) -> str:
        """Return the path in the model of the block's module `name`."""
        # Either may be empty: the model may be the block, and the block its own part.
        return ".".join(filter(None, (self.name, name)))


class Attached(Protocol):
    """A reducer attached to a model, as hooks see it."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    @property
    def reducer(self) -> TokenReducer:
        """The reducer."""

    def watch(self, path: str, parent: Any, name: str) -> None:
        """Refuse later passes if the attribute `name` of `parent`, the module at `path`, has been replaced."""


class Planner(Protocol):
    """The plan of one block in the pass in progress, as the hooks of its parts see it."""

    forgetting: list[Callable[[], None]]
    """Called after an exception in the block: each clears the per-call state of a hook."""

    @property
    def attachment(self) -> Attached:
        """The reducer's attachment to the model."""

    @property
    def site(self) -> Site:
        """The block."""

    @property
    def grid(self) -> Grid:
        """The grid that the block sees."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a run of the block, as its own forward pre-hook does."""

    def __call__(self, tokens: Tensor) -> Reduction:
        """Return the block's plan; `tokens` is the input of the part that asks, `[B, N, C]`."""


@dataclass(frozen=True)
class Moment:
    """What an adapter reads from the model's input at the start of a forward pass.

    Args:
        shape: Tokens along each axis of the model's input grid; `None` where the arguments do
            not say: the shape attached for then holds.
        timestep: Timestep of each row, from 0 to 1000 (pure noise), `[B]`, or one for all,
            `[]`, or a number that the host knows; `None` if the model has none.
        tokens: How many tokens lie on the grid, where the arguments say no more: they have to
            fill the shape attached for.
        suffix: Tokens behind the grid in this pass, never reduced (further images).
    """

    shape: tuple[int, ...] | None
    timestep: Tensor | float | None = None
    tokens: int | None = None
    suffix: int = 0


class Adapter(ABC):
    """Where the blocks of a family of models are, and what they see.

    An adapter never knows a method.

    Attributes:
        library: Module that is imported wherever a model of this family exists.
        family: What it serves, in words, for listings and errors.
        classes: Names of the library's classes that it serves.
        tested: Versions of the library that it was tested with.
        plan_from: What the published methods plan from in this family.
        general: Whether it serves any model; it is then asked after all others.
    """

    library: ClassVar[str]
    family: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = ()
    tested: ClassVar[str] = ""
    plan_from: ClassVar[PlanFrom] = "part"
    general: ClassVar[bool] = False

    def matches(self, model: nn.Module) -> bool:
        """Say whether the model is of one of `classes`, or derived from one."""
        # By name: looking up a class in a library that imports lazily would import its module.
        return any(
            base.__name__ in self.classes and base.__module__.partition(".")[0] == self.library
            for base in type(model).__mro__
        )

    @abstractmethod
    def sites(self, model: nn.Module) -> list[Site]:
        """List every block with attention, from the input to the output."""

    @abstractmethod
    def default_layers(self, sites: list[Site]) -> list[int]:
        """List the layers at which the published methods work."""

    @abstractmethod
    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        """Return the grid that a site sees when the model's input grid is `shape`."""

    def fit(self, grid: Grid, tokens: Tensor) -> Grid:
        """Return the grid that a site's tokens, `[B, N, C]`, lie on: in most families what `grid` returned."""
        return grid

    @abstractmethod
    def configured_shape(self, model: nn.Module) -> tuple[int, ...]:
        """Return the shape of the model's input grid by its configuration."""

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
            device: Where the tensors are wanted; `meta` for none with values.
            dtype: Type of the floating-point tensors.
        """


def first_blocks(sites: Sequence[Site]) -> list[int]:
    """List the layers of the first 12 of 28 blocks, or of the same share of another number.

    References:
        BiGain, appendix B.4.1, for DiT-XL/2.
    """
    return [site.layer for site in sites[: max(1, len(sites) * 12 // 28)]]


def spread_timesteps(rows: int, device: torch.device) -> Tensor:
    """Make timesteps that differ from row to row, int64 `[B]`, from 0 to 999."""
    return torch.arange(rows, device=device) * 389 % 1000


class StackAdapter(Adapter):
    """Every block sees the model's whole grid.

    By default a reducer works in the first 12 of 28 blocks, or that share of them.

    Attributes:
        blocks: Name of the list of blocks in the model.
        parameters: Order of the arguments of the model's forward, as far as they matter.
    """

    blocks: ClassVar[str] = "transformer_blocks"
    parameters: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self, block: nn.Module) -> Mapping[Part, Seam]:
        """Return the parts of a block, and how each takes its tokens."""

    def sites(self, model: nn.Module) -> list[Site]:
        blocks = cast("nn.ModuleList", getattr(model, self.blocks))
        return [Site(f"{self.blocks}.{index}", block, index, self.parts(block)) for index, block in enumerate(blocks)]

    def default_layers(self, sites: list[Site]) -> list[int]:
        return first_blocks(sites)

    def grid(self, model: nn.Module, shape: tuple[int, ...], site: Site) -> Grid:
        return Grid(shape)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a forward call by their names."""
        return dict(zip(self.parameters, args, strict=False)) | kwargs
