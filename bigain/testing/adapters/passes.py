"""Forward passes with a reducer attached."""

import torch
from torch import Tensor

from bigain.adapters.attach import attach
from bigain.adapters.base import PlanFrom, Site
from bigain.adapters.placement import Placement
from bigain.errors import SiteError
from bigain.reducers.base import Identity
from bigain.testing.adapters.bench import Bench, Inputs, distance, hooked, tensors_of
from bigain.testing.adapters.reductions import Recording, Shuffle, ShuffleKeys, merging, working
from bigain.testing.comparing import expect, same
from bigain.testing.failures import NotApplicable

__all__ = [
    "check_half_precision",
    "check_identity_changes_nothing",
    "check_order_of_tokens_does_not_matter",
    "check_plans_are_made_once_a_block",
    "check_reducers_change_every_site",
    "check_rows_are_independent",
    "check_worth_is_counted",
]

_SOURCES: tuple[PlanFrom, ...] = ("block", "part")


def check_identity_changes_nothing(bench: Bench) -> None:
    """Any change by attaching itself would be mistaken for an effect of the reducer."""
    inputs = bench.inputs()
    plain = bench.run(inputs)
    for parts in dict.fromkeys([*((part,) for part in bench.parts), bench.parts]):
        for source in _SOURCES:
            with bench.attach(Identity(), parts, plan_from=source):
                bench.same(bench.run(inputs), plain, f"identity in {', '.join(parts)}, planned from the {source}")
    if "self" not in bench.parts:
        return
    try:
        report = bench.attach(Identity(), ("self",), proportional=True)
    except SiteError:
        return  # refused in words
    with report:
        bench.same(bench.run(inputs), plain, "identity, with proportional attention")


def check_order_of_tokens_does_not_matter(bench: Bench) -> None:
    """Attention ignores order: if another order shows, positions do not follow or tokens are restored elsewhere."""
    inputs = bench.inputs()
    plain = bench.run(inputs)
    for part in bench.parts:
        with bench.attach(Shuffle(), (part,)):
            bench.same(bench.run(inputs), plain, f"tokens in another order in {part}")
    if "self" in bench.parts:
        with bench.attach(ShuffleKeys()):
            bench.same(bench.run(inputs), plain, "keys and values in another order")


def check_reducers_change_every_site(bench: Bench) -> None:
    """A reducer that silently does nothing is the first complaint about every tool of this kind."""
    inputs = bench.inputs(2)
    for reducer in working(bench).values():
        for part in bench.parts_for(reducer):
            for site in bench.places_for(reducer, (part,)):
                plain = _block_output(bench, inputs, site)
                with bench.attach(reducer, (part,), [site.layer]):
                    found = _block_output(bench, inputs, site)
                off = max(distance(one, other) for one, other in zip(found, plain, strict=True))
                expect(off > 1e-4, f"{reducer!r} in {part} of {site.name} leaves its output as it was")


def _block_output(bench: Bench, inputs: Inputs, site: Site) -> list[Tensor]:
    found: list[list[Tensor]] = []
    note = site.block.register_forward_hook(lambda module, args, output: found.append(tensors_of(output)))
    with hooked([note.remove]):
        bench.run(inputs)
    return found[0]


def check_plans_are_made_once_a_block(bench: Bench) -> None:
    """The report follows the configuration: a pass has to plan on the same grids, for its own rows and timesteps."""
    inner, inputs = merging(bench), bench.inputs()
    reducer = Recording(inner)
    sites = bench.places_for(reducer, bench.parts)
    with bench.attach(reducer) as report:
        bench.run(inputs)
    found, wanted = [call.context.layer for call in reducer.calls], [site.layer for site in sites]
    expect(found == wanted, f"plans are made for layers {found}, expected one each for {wanted}")
    moment = bench.adapter.moment(bench.model, (), dict(inputs))
    reported = {row.name: row for row in report.sites}
    for call, site in zip(reducer.calls, sites, strict=True):
        expect(call.tokens.shape[0] == 3, f"{site.name} plans for {call.tokens.shape[0]} rows of 3")
        expect(call.context.stage == site.stage, f"{site.name} plans for the stage {call.context.stage!r}")
        _expect_timestep(site, call.context.timestep, moment.timestep)
        lengths = (call.tokens.shape[1], inner.reduced_length(call.grid, call.context))
        for row in (reported[site.path(part)] for part in site.parts):
            expect(row.grid == call.grid, f"{row.name} has the grid {call.grid}, the report says {row.grid}")
            expect((row.before, row.after) == lengths, f"{row.name}: {lengths} tokens, the report says {row}")


def _expect_timestep(site: Site, found: Tensor | None, expected: Tensor | float | None) -> None:
    expect((found is None) == (expected is None), f"{site.name} plans for the timestep {found}, expected {expected}")
    if found is not None and expected is not None:
        wanted = torch.as_tensor(expected, device=found.device).expand(3)
        same(found.double(), wanted.double(), f"timesteps that {site.name} plans for")


def check_rows_are_independent(bench: Bench) -> None:
    """A diffusion classifier compares the errors of rows, so a row must not depend on the others."""
    inputs = bench.inputs(3)
    for reducer in working(bench).values():
        with bench.attach(reducer):
            whole = bench.run(inputs)
            for rows in ([0], [1], [2], [2, 0]):
                alone = bench.run(bench.rows_of(inputs, rows))
                bench.same(alone, [item[rows] for item in whole], f"{reducer!r} on rows {rows} against the whole batch")


def check_half_precision(bench: Bench) -> None:
    """Models run in half precision: sums in few bits can give NaN, and sums in float32 the wrong type."""
    ran = False
    for dtype in (torch.bfloat16, torch.float16):
        small = Bench(bench.specimen, dtype)
        inputs = small.inputs()
        plain = _plain(small, inputs)
        if plain is None:
            continue
        ran = True
        for reducer in working(small).values():
            with small.attach(reducer):
                for found, expected in zip(small.run(inputs), plain, strict=True):
                    expect(found.dtype == expected.dtype, f"{reducer!r} in {dtype} gives {found.dtype}")
                    expect(bool(found.isfinite().all()), f"{reducer!r} in {dtype} gives NaN or infinity")
    if not ran:
        raise NotApplicable("the model itself does not run in half precision here")


def _plain(bench: Bench, inputs: Inputs) -> list[Tensor] | None:
    """Run without a reducer; `None` if the library itself cannot run."""
    try:
        found = bench.run(inputs)
    except Exception:  # whatever an operator that lacks the type raises
        return None
    return found if all(bool(item.isfinite().all()) for item in found) else None


def check_worth_is_counted(bench: Bench) -> None:
    """Users can count what a reducer saves, so that one that gains nothing is noticed."""
    reducer = merging(bench)
    layers = [site.layer for site in bench.places_for(reducer, bench.parts)]
    placement = Placement(layers=layers, parts=bench.parts)
    with attach(bench.model, reducer, placement=placement, adapter=bench.specimen.adapter) as report:
        operations = report.flops()
    expect(
        0 < operations.share <= 1,
        f"the sites hold {operations.share:.1%} of the model's operations: covers names no work",
    )
    missing = [row.name for row in report.sites if len(report.sites) < 10 and row.name not in str(report)]
    expect(not missing, f"the report does not name {', '.join(missing)}")
