"""Do tokens lie where the adapter says?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Part, Site
from bigain.grid import Grid
from bigain.testing.adapters.bench import Bench, Inputs, hooked
from bigain.testing.adapters.reductions import working
from bigain.testing.comparing import expect
from bigain.testing.failures import NotApplicable

__all__ = ["check_grids_count_tokens", "check_grids_lie_as_the_input_does", "check_work_is_done_on_fewer_tokens"]


def check_grids_count_tokens(bench: Bench) -> None:
    """A grid with another number of tokens than its module gets is refused, or lets text be reduced with the image."""
    leads: dict[str, set[int]] = {}
    for shape in (bench.shape, *bench.other_shapes()):
        for site, part, given in _seen(bench, bench.inputs(2, shape=shape)):
            grid = bench.adapter.grid(bench.model, shape, site)
            leads.setdefault(site.path(part), set()).add(given - grid.tokens)
            seen = f"{site.path(part)} is given {given} tokens, its grid {grid} has {grid.tokens}"
            joint = site.after_text or getattr(site.parts[part], "joint", False)
            expect(given >= grid.tokens if joint else given == grid.tokens, seen)
    for path, lead in leads.items():
        expect(len(lead) == 1, f"{path}: at different sizes, {sorted(lead)} tokens come beside those of its grid")


def _seen(bench: Bench, inputs: Inputs) -> list[tuple[Site, Part, int]]:
    """Run the model, and count the tokens that each part's module gets."""
    found: list[tuple[Site, Part, int]] = []
    called = [(site, part) for site in bench.sites for part in site.parts]

    def noting(site: Site, part: Part) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((site, part, prod(_tokens(args, kwargs, site).shape[:-1]) // 2))

        return note

    undo = [
        site.module(part).register_forward_pre_hook(noting(site, part), with_kwargs=True).remove
        for site, part in called
    ]
    with hooked(undo):
        bench.run(inputs)
    met = {site.path(part) for site, part, _ in found}
    missing = [site.path(part) for site, part in called if site.path(part) not in met]
    expect(not missing, f"never called: {', '.join(missing)}")
    return found


def _tokens(args: Sequence[Any], kwargs: Mapping[str, Any], site: Site) -> Tensor:
    """Pick the tokens among a call's arguments."""
    named = [kwargs.get(name) for name in (site.tokens, "hidden_states")]
    found = [item for item in (*args[:1], *named, *kwargs.values()) if isinstance(item, Tensor)]
    expect(bool(found), f"a module of {site.name} is called without a tensor")
    return found[0]


def check_grids_lie_as_the_input_does(bench: Bench) -> None:
    """Height and width exchanged pass every count, and merge tokens that are not neighbours."""
    shape = next(iter(bench.other_shapes()), bench.shape)
    inputs, site = bench.inputs(1, shape=shape), bench.sites[0]
    grid = bench.adapter.grid(bench.model, shape, site)
    name, packed = _spatial(inputs, shape)
    plain = _block_input(bench, inputs, site, grid)
    for place in product(*(sorted({0, length // 3, length - 1}) for length in shape)):
        changed = _touched(inputs[name], place, shape, packed)
        moved = (_block_input(bench, {**inputs, name: changed}, site, grid) - plain).norm(dim=-1)[0]
        where = [int(item) for item in torch.unravel_index(moved.argmax(), grid.shape)]
        expected = [at * few // many for at, few, many in zip(place, grid.shape, shape, strict=True)]
        # After a convolution a neighbour may change more.
        near = all(abs(found - wanted) <= 1 for found, wanted in zip(where, expected, strict=True))
        seen = f"{name} was changed at {place} of {shape}: of the grid {grid} at {site.name}"
        expect(bool(moved.max() > 0), f"{seen} no token changes")
        expect(near, f"{seen} the token at {where} changes most, expected {expected}")


def _spatial(inputs: Inputs, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Find the argument that lies on the grid, and say whether its tokens are already in one sequence."""
    tensors = {name: item for name, item in inputs.items() if isinstance(item, Tensor) and item.is_floating_point()}
    for name, value in tensors.items():
        if value.ndim == 3 and value.shape[1] == prod(shape):
            return name, True
    for axes in (len(shape) + 2, len(shape) + 1):
        for name, value in tensors.items():
            ends = value.shape[-len(shape) :]
            if value.ndim == axes and all(end >= length for end, length in zip(ends, shape, strict=True)):
                return name, False
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
    raise AssertionError(f"no argument that inputs() makes lies as the grid {shape}: {shapes}")


def _touched(value: Tensor, place: Sequence[int], shape: tuple[int, ...], packed: bool) -> Tensor:
    """Change the values of one token."""
    if packed:
        number = 0
        for at, length in zip(place, shape, strict=True):
            number = number * length + at
        changed = value.clone()
        changed[:, number] += 3
        return changed
    where = torch.ones_like(value)
    for axis, (at, length) in enumerate(zip(place, shape, strict=True), start=value.ndim - len(shape)):
        end = value.shape[axis]
        numbers = torch.arange(end, device=value.device) * length // end
        where = where * (numbers == at).reshape(-1, *(1,) * (value.ndim - axis - 1))
    return value + 3 * where


def _block_input(bench: Bench, inputs: Inputs, site: Site, grid: Grid) -> Tensor:
    """Run the model, and return the grid's own tokens at a block's input, `[1, N, C]`."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(args[0] if args else kwargs[site.tokens])

    with hooked([site.block.register_forward_pre_hook(note, with_kwargs=True).remove]):
        bench.run(inputs)
    tokens = found[0].reshape(1, -1, found[0].shape[-1])  # one row, whichever axis the rows are
    return grid.body(tokens[:, tokens.shape[1] - grid.tokens :])


def check_work_is_done_on_fewer_tokens(bench: Bench) -> None:
    """An output may change although nothing is saved: projections have to get the reported number of tokens."""
    inputs = bench.inputs(2)
    counted = False
    for name, reducer in working(bench).items():
        for part in bench.parts_for(reducer):
            places = [site for site in bench.places_for(reducer, (part,)) if part in site.parts]
            plain = [_inside(bench, inputs, site, part) for site in places]
            with bench.attach(reducer, (part,)) as report:
                fewer = {row.name: row.before - row.after for row in report.sites}
                for site, before in zip(places, plain, strict=True):
                    after = _inside(bench, inputs, site, part)
                    seen = f"{name} in {site.path(part)}: tokens went from {before} to {after}"
                    off = {key: before[key] - after.get(key, 0) for key in before}
                    wanted = fewer[site.path(part)]
                    expect(set(off.values()) <= {0, wanted}, f"{seen}, the report says {wanted} fewer")
                    expect(not before or wanted in off.values(), f"{seen}, the report says {wanted} fewer")
                    counted = counted or bool(before)
    if not counted:
        raise NotApplicable("the parts have no linear layers of their own to count tokens at")


def _inside(bench: Bench, inputs: Inputs, site: Site, part: Part) -> dict[str, int]:
    """Run the model, and count the tokens of one row at each linear layer of a part."""
    found: dict[str, int] = {}
    undo = []
    for path, layer in _layers(bench.model, site.covered(part)):

        def note(module: nn.Module, args: Any, path: str = path) -> None:
            found[path] = prod(args[0].shape[:-1]) // 2

        # Registered last, so that it runs after the hooks that reduce.
        undo.append(layer.register_forward_pre_hook(note).remove)
    with hooked(undo):
        bench.run(inputs)
    return found


def _layers(model: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    for path in paths:
        for name, module in model.get_submodule(path).named_modules(prefix=path):
            if isinstance(module, nn.Linear):
                yield name, module
