"""Count the floating-point operations of one network evaluation, with and without reducers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigain.adapters._counting import network_pass
from bigain.adapters.attach import attach, find_sites, part_report
from bigain.adapters.find import match
from bigain.adapters.pass_state import modules_taken
from bigain.adapters.placement import Placement, placement_of
from bigain.benchmark.cost import backbone_pass
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid
from bigain.profiling.operations import COUNTED, META, count_pass, on_meta, operations_of
from bigain.reducers.base import TokenReducer
from bigain.reducers.build import build_reducer

__all__ = ["COUNTED", "FlopCount", "FlopCounter", "PartFlops"]


@dataclass(frozen=True)
class PartFlops:
    """One part of a block that a placement takes.

    Args:
        name: Its path in the model.
        grid: The grid it sees.
        before: Tokens before reduction.
        after: Tokens after reduction; keys and values where only these shrink.
        flops: Operations of the part without reduction.
    """

    name: str
    grid: Grid
    before: int
    after: int
    flops: float


@dataclass(frozen=True)
class FlopCount:
    """Operations of one evaluation of one row.

    Args:
        total: With the reducer. Of a plan that several evaluations share, one's share counts.
        baseline: Without a reducer.
        parts: The parts taken.
    """

    total: float
    baseline: float
    parts: tuple[PartFlops, ...]

    @property
    def saved(self) -> float:
        """Share of the baseline that is saved; below 0 where planning costs more than it saves."""
        return 1 - self.total / self.baseline

    @property
    def share(self) -> float:
        """Share of the baseline that is in the parts taken: no reducer there can save more."""
        return sum(part.flops for part in self.parts) / self.baseline


class FlopCounter:
    """Counts evaluations of one model on the meta device, without weights or arithmetic.

    A multiplication and an addition count as two. Matrix products, convolutions and
    attention count, as in `torch.utils.flop_counter`; sorting and element-wise work do not.

    Args:
        model: A network of a family that an adapter knows, or a pipeline or backbone with
            one, on any device. Only its shapes are copied.
        shape: Tokens along each axis of the network's input grid, for U-Nets the
            latent's size. Default: as configured. With a shape, the network alone is
            counted; otherwise a backbone's whole evaluation.

    Attributes:
        network: The copy on the meta device.
        adapter: Its adapter.
        shape: The shape.
        evaluate: Runs a pass of the copy, given the number of rows.
        baseline: Operations of one row without a reducer.

    Raises:
        SiteError: No adapter knows the model, or a reducer is attached to it already.
        SettingError: The network cannot run on such a grid.
    """

    def __init__(self, model: Any, shape: tuple[int, ...] | None = None) -> None:
        network, _, self.adapter = match(model)
        if modules_taken(network):
            raise SiteError(f"A reducer is attached to this {type(network).__name__} already. Detach it first.")
        whole = isinstance(model, Backbone) and shape is None
        condition = _one_condition(model) if whole else None
        model = on_meta(model if isinstance(model, Backbone) else network).eval()
        self.network, *_ = match(model)
        self.shape = self._checked(model.grid_shape if whole else shape)
        self.evaluate = (
            _of_backbone(model, condition) if condition else network_pass(self.network, self.adapter, self.shape)
        )
        size = " x ".join(map(str, self.shape))
        counter = count_pass(self.evaluate, 1, f"{type(self.network).__name__} cannot run on {size} tokens")
        self._counter = counter
        self.baseline = float(counter.get_total_flops())

    def count(
        self,
        reducer: TokenReducer | str | Mapping[str, Any],
        placement: Placement | str | Mapping[str, Any] | None = None,
        sharing: int = 1,
    ) -> FlopCount:
        """Count one evaluation of one row under a reducer.

        Args:
            reducer: What is attached.
            placement: Where, as for `bigain.attach`.
            sharing: How many evaluations share one plan.

        Raises:
            SiteError: The model has no such blocks or parts.
            SettingError: The reducer's settings do not fit the model's grids, or the reducer
                reads values, which the meta device does not have.
        """
        chosen, place = build_reducer(reducer), placement_of(placement)
        parts = self._parts(chosen, place)
        with attach(self.network, chosen, placement=place, shape=self.shape) as report, report.shared(sharing):
            counter = count_pass(self.evaluate, sharing, f"{chosen!r} cannot be counted without values")
        return FlopCount(counter.get_total_flops() / sharing, self.baseline, parts)

    def _parts(self, reducer: TokenReducer, placement: Placement) -> tuple[PartFlops, ...]:
        network, adapter, placement, sites = find_sites(self.network, placement)
        found: list[PartFlops] = []
        for site in sites:
            for part in placement.parts:
                if part in site.parts:
                    row = part_report(adapter, network, self.shape, reducer, site, part, placement.min_tokens)
                    flops = operations_of(self._counter, self.network, site.covered(part))
                    if not row.left_alone:
                        found.append(PartFlops(row.name, row.grid, row.before, row.after, flops))
        return tuple(found)

    def _checked(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        configured = self.adapter.configured_shape(self.network)
        if shape is None:
            return configured
        if len(shape) != len(configured) or min(shape) < 1:
            raise SettingError(
                f"shape is the tokens along each of {len(configured)} axes, each at least 1; got {list(shape)}. "
                f"{type(self.network).__name__} is configured for {list(configured)}."
            )
        return tuple(shape)


def _one_condition(backbone: Backbone) -> Condition:
    """Return a condition of one row: all cost the same. Text encoders work where their values are."""
    return backbone.embed([0] if backbone.conditioned_on == "labels" else [""])


def _of_backbone(backbone: Backbone, condition: Condition) -> Callable[[int], Any]:
    """Return a function that evaluates a number of rows."""
    return lambda rows: backbone_pass(backbone, condition, rows, META)()
