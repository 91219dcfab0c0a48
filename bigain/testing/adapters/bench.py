"""A tiny model with random weights, and what checks do with it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.attach import attach
from bigain.adapters.base import Part, Site
from bigain.adapters.find import AdapterSpec, match
from bigain.adapters.placement import Placement
from bigain.adapters.report import AttachReport
from bigain.errors import BigainError, SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, TokenReducer
from bigain.testing.cases import checked_device
from bigain.testing.comparing import expect

__all__ = ["Bench", "Inputs", "Specimen", "distance", "hooked", "tensors_of"]

_SCALE = 0.8
"""Standard deviation of a layer's output for an input of unit variance: visible, but not saturating."""

Inputs = Mapping[str, Any]
"""Arguments of one forward pass."""


@dataclass(frozen=True)
class Specimen:
    """A tiny model to check an adapter on.

    Args:
        make: Makes the model; or a model, which checks copy. Its weights are replaced.
        adapter: The adapter, if no registered one knows the model.
        name: Its name in tests. Default: the name of `make`.
        other_shape: Tokens along each axis of another input grid than the configured one, if
            the model takes another. Default: some are tried.
    """

    make: Callable[[], nn.Module] | nn.Module
    adapter: AdapterSpec | None = None
    name: str = ""
    other_shape: tuple[int, ...] | None = None

    def made(self) -> nn.Module:
        """Make a model."""
        return copy.deepcopy(self.make) if isinstance(self.make, nn.Module) else self.make()

    def __str__(self) -> str:
        made = self.make.func if isinstance(self.make, partial) else self.make
        return self.name or str(getattr(made, "__name__", type(made).__name__))


class Bench:
    """A fresh model of a specimen, in eval mode, on the device that checks run on.

    Parameters are small noise, those with one axis around 1 unless they are biases: an
    output layer that starts at zero, as in DiT, would hide whatever happens before it.

    Args:
        specimen: The specimen.
        dtype: Type of its parameters. Default: float64 if the model runs in it, so that
            rounding does not change which tokens merge.

    Attributes:
        model: The network.
        adapter: Its adapter.
        sites: Its blocks.
        shape: Tokens along each axis of its configured input grid.
    """

    def __init__(self, specimen: Specimen, dtype: torch.dtype | None = None) -> None:
        self.specimen = specimen
        made = specimen.made()
        expect(isinstance(made, nn.Module), f"{specimen} makes a {type(made).__name__}, which is no torch module")
        network, _, self.adapter = match(made, specimen.adapter)
        self.model = _with_noise(network).eval()
        _cast(self.model, checked_device())
        self.shape = tuple(self.adapter.configured_shape(self.model))
        self.dtype = dtype or torch.float32
        if dtype is not None or self._runs_in_double():
            self.dtype = dtype or torch.float64
        _cast(self.model, self.dtype)
        self.sites: list[Site] = self.adapter.sites(self.model)

    def _runs_in_double(self) -> bool:
        try:
            _cast(self.model, torch.float64)
            self.run(self.inputs(1, dtype=torch.float64))
        except Exception:  # whatever a library raises where it expects float32
            return False
        return True

    def inputs(
        self, rows: int = 3, seed: int = 1, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> Inputs:
        """Make seeded arguments for a forward pass."""
        size = self.shape if shape is None else tuple(shape)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.adapter.inputs(self.model, rows, size, checked_device(), dtype or self.dtype)

    def rows_of(self, inputs: Inputs, rows: Sequence[int]) -> Inputs:
        """Take rows of all arguments that have rows."""
        few, many = self.inputs(1), self.inputs(2)
        index = torch.tensor(list(rows), device=checked_device())

        def take(given: Any, one: Any, two: Any) -> Any:
            if isinstance(given, Tensor):
                return given[index] if given.ndim and one.shape[:1] != two.shape[:1] else given
            if isinstance(given, Mapping):
                return {name: take(value, one[name], two[name]) for name, value in given.items()}
            if isinstance(given, list | tuple):
                return type(given)(take(*items) for items in zip(given, one, two, strict=True))
            return given

        taken: Inputs = take(inputs, few, many)
        return taken

    def run(self, inputs: Inputs, model: Callable[..., Any] | None = None) -> list[Tensor]:
        """Run a forward pass without gradients, and list the tensors of its output."""
        with torch.no_grad():
            return tensors_of((self.model if model is None else model)(**inputs))

    @property
    def axes(self) -> int:
        """Axes of the grids."""
        return len(self.shape)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that some block has."""
        order: tuple[Part, ...] = ("self", "cross", "mlp")
        return tuple(part for part in order if any(part in site.parts for site in self.sites))

    def parts_for(self, reducer: TokenReducer) -> tuple[Part, ...]:
        """Return the parts in which a reducer has something to do."""
        return tuple(part for part in self.parts if part == "self" or "merge" in reducer.kinds)

    def places_for(self, reducer: TokenReducer, parts: Sequence[Part]) -> list[Site]:
        """List the blocks that have one of the parts, and a grid on which the reducer has something to do."""
        lengths = [(site, self._length(reducer, site)) for site in self.sites if set(parts) & set(site.parts)]
        able = [(site, length) for site, length in lengths if length is not None]
        shapes = ", ".join(sorted({str(self.grid(site).shape) for site in self.sites}))
        expect(bool(able), f"{reducer!r} fits no grid of {self.specimen} ({shapes}): check a model with larger ones")
        return [site for site, length in able if length < self.grid(site).tokens] or [site for site, _ in able]

    def grid(self, site: Site) -> Grid:
        """Return a block's grid at the configured size."""
        return self.adapter.grid(self.model, self.shape, site)

    def other_shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shape that the specimen names, or else the first other one that the model takes, if any."""
        if self.specimen.other_shape is not None:
            yield self.specimen.other_shape
            return
        *first, last = self.shape
        every = tuple(2 * length for length in self.shape)
        for shape in ((*first, 2 * last), (*first, last + 2), (*first, last // 2), every):
            try:
                self.run(self.inputs(1, shape=shape))
            except BigainError:
                raise
            except Exception:  # whatever a library raises on a size that it does not take
                continue
            yield shape
            return

    def _length(self, reducer: TokenReducer, site: Site) -> int | None:
        """Return the reduced length at a block; `None` if the reducer refuses the grid."""
        try:
            return reducer.reduced_length(self.grid(site), Context(layer=site.layer, stage=site.stage))
        except SettingError:
            return None

    def attach(
        self,
        reducer: TokenReducer,
        parts: Sequence[Part] | None = None,
        layers: Sequence[int] | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ) -> AttachReport:
        """Attach a reducer wherever it fits or at the given layers, to the bench's model or another like it."""
        parts = self.parts_for(reducer) if parts is None else tuple(parts)
        layers = [site.layer for site in self.places_for(reducer, parts)] if layers is None else layers
        placement = Placement(layers=layers, parts=parts, **options)
        return attach(
            self.model if model is None else model,
            reducer,
            placement=placement,
            adapter=self.specimen.adapter,
        )

    def same(self, found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
        """Fail unless two outputs agree up to rounding."""
        expect(len(found) == len(expected), f"{what}: {len(found)} tensors, expected {len(expected)}")
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            shapes = list(one.shape), list(other.shape)
            expect(shapes[0] == shapes[1], f"{what}: output {number} has shape {shapes[0]}, expected {shapes[1]}")
            far = distance(one, other)
            bound = 1e-6 if self.dtype == torch.float64 else 1e-4
            expect(far <= bound, f"{what}: output {number} is off by {far:.2g} of its largest value")

    def differs(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Say whether two outputs differ by more than rounding."""
        return any(distance(one, other) > 1e-3 for one, other in zip(found, expected, strict=True))

    def __str__(self) -> str:
        return f"{type(self.adapter).__name__} on {self.specimen}, a {type(self.model).__name__}"


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest value; infinite if there is NaN."""
    far, size = (found.double() - expected.double()).abs().max(), expected.double().abs().max()
    share = float(far / size.clamp_min(1e-12))
    return share if share == share else float("inf")


def tensors_of(output: Any) -> list[Tensor]:
    """List the floating-point tensors of what a model returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif not isinstance(output, list | tuple) and hasattr(output, "__dict__"):
        output = list(vars(output).values())
    if not isinstance(output, list | tuple):
        return []
    return [tensor for item in output for tensor in tensors_of(item)]


def _cast(model: nn.Module, wanted: torch.device | torch.dtype) -> None:
    nn.Module.to(model, wanted)  # a library's own method may leave out some modules, or warn


def _with_noise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                value = 0.1 * noise + (0 if name.endswith("bias") else 1)
            else:
                value = noise * _SCALE / max(1, parameter[0].numel()) ** 0.5
            parameter.copy_(value)
    return model


@contextmanager
def hooked(undo: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Remove hooks at the end, also after an exception."""
    try:
        yield
    finally:
        for remove in undo:
            remove()
