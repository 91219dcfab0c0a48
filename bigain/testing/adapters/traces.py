"""What attaching leaves in a model, in its copies and in its files."""

import copy
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Part, Site
from bigain.testing.adapters.bench import Bench, Inputs, hooked
from bigain.testing.adapters.reductions import merging, sharing, working
from bigain.testing.comparing import expect
from bigain.testing.failures import NotApplicable

__all__ = [
    "check_copies_are_independent",
    "check_detaching_restores",
    "check_exceptions_leave_nothing",
    "check_pickles",
    "check_saving_and_loading",
]


class Snapshot:
    """All that attaching could change in a model.

    Args:
        bench: The model, with nothing attached.
        inputs: Arguments of a forward pass.
    """

    def __init__(self, bench: Bench, inputs: Inputs) -> None:
        self.bench, self.inputs = bench, inputs
        bench.run(inputs)  # what a model caches on its first pass is not a trace of attaching
        before = _look(bench.model)
        self.output = bench.run(inputs)
        self.state = {name: value.clone() for name, value in bench.model.state_dict().items()}
        seen = _look(bench.model)
        # What a model changes by itself from pass to pass is not one either.
        self.seen = {key: value for key, value in seen.items() if before.get(key) == value}
        self.moving = set(seen) - set(self.seen)

    def check(self, when: str) -> None:
        """Fail unless the model is as it was: its state bit for bit, its output up to rounding."""
        seen = _look(self.bench.model)
        new = set(seen) - set(self.seen) - self.moving
        changed = sorted(new | {key for key, value in self.seen.items() if seen.get(key) != value})
        expect(not changed, f"{when}, these differ: {', '.join(changed[:6])}")
        state = self.bench.model.state_dict()
        expect(list(state) == list(self.state), f"{when}, state_dict has other keys")
        for name, value in self.state.items():
            expect(torch.equal(state[name], value), f"{when}, {name} has other values")
        found = self.bench.run(self.inputs)
        # Up to rounding: the same product elsewhere in memory may have other last bits.
        self.bench.same(found, self.output, f"{when}, the output is not what it was")


def _look(model: nn.Module) -> dict[str, Any]:
    """List every module's attributes by identity, and its class."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"the class of {path or 'the model'}"] = type(module)
        for name, value in vars(module).items():
            identity: Any = id(value)
            if isinstance(value, dict):
                identity = [(key, id(item)) for key, item in value.items()]
            elif isinstance(value, set):
                identity = set(value)
            found[f"{path}.{name}".lstrip(".")] = identity
    return found


def check_detaching_restores(bench: Bench) -> None:
    """A comparison with and without a reducer is about one model only if detaching restores it."""
    inputs = bench.inputs()
    before = Snapshot(bench, inputs)
    for name, reducer in working(bench).items():
        report = bench.attach(reducer)
        taken, parts = {row.name for row in report.sites}, bench.parts_for(reducer)
        sites = bench.places_for(reducer, parts)
        expected = {site.path(part) for site in sites for part in parts if part in site.parts}
        expect(taken == expected, f"the report of {name} lists {sorted(taken)}, expected {sorted(expected)}")
        bench.run(inputs)
        report.detach()
        before.check(f"after attaching {name}, a pass, and detaching")
        bench.attach(reducer).detach()
        before.check(f"after attaching {name} and detaching")


class _InterruptionError(Exception):
    """Raised inside a model by a check."""


def check_exceptions_leave_nothing(bench: Bench) -> None:
    """Out of memory and Ctrl-C happen in the middle of a block; the next pass must not find plans of the last."""
    inputs = bench.inputs()
    before = Snapshot(bench, inputs)
    for name, reducer in working(bench).items():
        parts = bench.parts_for(reducer)
        places = bench.places_for(reducer, parts)
        ends = {site.name: site for site in (places[0], places[-1])}.values()
        inside = [
            (site.path(part), _innermost(bench, inputs, site, part))
            for site in ends
            for part in parts
            if part in site.parts
        ]
        with bench.attach(reducer):
            expected = bench.run(inputs)
            for path, module in inside:
                _interrupt(bench, inputs, module)
                bench.same(bench.run(inputs), expected, f"{name}, the pass after an exception in {path}")
        before.check(f"after {name}, exceptions, and detaching")


def _innermost(bench: Bench, inputs: Inputs, site: Site, part: Part) -> nn.Module:
    """Find the last module without children that a part calls, or the part itself."""
    called: list[nn.Module] = [site.module(part)]
    leaves = [module for module in site.module(part).modules() if not list(module.children())]
    undo = [leaf.register_forward_pre_hook(lambda module, args: called.append(module)).remove for leaf in leaves]
    with hooked(undo):
        bench.run(inputs)
    return called[-1]


def _interrupt(bench: Bench, inputs: Inputs, module: nn.Module) -> None:
    def interrupt(*_: Any) -> None:
        raise _InterruptionError

    with hooked([module.register_forward_pre_hook(interrupt).remove]):
        try:
            bench.run(inputs)
        except _InterruptionError:
            return
    raise AssertionError("an exception inside a block does not come out of the model")


def check_copies_are_independent(bench: Bench) -> None:
    """An average of weights is a copy of the model: it has to work, whatever happens to the original."""
    _check_copies(bench, "copied", copy.deepcopy)


def check_pickles(bench: Bench) -> None:
    """Processes that load data or spread over devices send models to one another by pickling."""
    try:
        pickle.dumps(bench.model)
    except Exception as error:  # whatever a library's models raise
        raise NotApplicable(f"{type(bench.model).__name__} cannot be pickled without a reducer: {error}") from error
    # Unpickling is safe: these bytes were pickled right here.
    _check_copies(bench, "pickled", lambda given: pickle.loads(pickle.dumps(given)))


def _check_copies(bench: Bench, how: str, duplicate: Callable[[Any], Any]) -> None:
    inputs = bench.inputs()
    plain = bench.run(inputs)
    for name, reducer in {**working(bench), "cached": sharing(bench)}.items():
        report = bench.attach(reducer)
        reduced = bench.run(inputs)
        twin, own = duplicate((bench.model, report))
        bench.same(bench.run(inputs, twin), reduced, f"{name}, {how} while attached")
        own.detach()
        bench.same(bench.run(inputs, twin), plain, f"{name}, {how}, and the copy detached by its own report")
        bench.same(bench.run(inputs), reduced, f"{name}, the original, after its {how} twin was detached")
        twin = duplicate(bench.model)
        report.detach()
        bench.same(bench.run(inputs), plain, f"{name}, the original, detached after it was {how}")
        bench.same(bench.run(inputs, twin), reduced, f"{name}, {how}, after the original was detached")


def check_saving_and_loading(bench: Bench) -> None:
    """Weights saved while a reducer is attached must be the model's own, under their own names."""
    if not hasattr(bench.model, "save_pretrained"):
        raise NotApplicable(f"{type(bench.model).__name__} has no save_pretrained")
    bench = Bench(bench.specimen, torch.float32)
    model: Any = bench.model
    names, inputs, reducer = list(model.state_dict()), bench.inputs(), merging(bench)
    with bench.attach(reducer), tempfile.TemporaryDirectory() as folder:
        reduced = bench.run(inputs)
        expect(list(model.state_dict()) == names, "while a reducer is attached, weights have other names")
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).to(next(model.parameters()).device).eval()
    expect(list(loaded.state_dict()) == names, "the loaded model has other names of weights")
    _expect_same_weights(loaded.state_dict(), model.state_dict())
    with bench.attach(reducer, model=loaded):
        bench.same(bench.run(inputs, loaded), reduced, "the loaded model with the reducer, against the saved one")


def _expect_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        expect(torch.equal(found[name], value), f"{name} has other values after loading")
