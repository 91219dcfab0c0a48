"""Compiled models with a reducer attached."""

import os
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from bigain.reducers.base import TokenReducer
from bigain.testing.adapters.bench import Bench, Inputs
from bigain.testing.adapters.reductions import sharing, working
from bigain.testing.failures import NotApplicable

__all__ = ["check_compiles_to_one_graph"]


def check_compiles_to_one_graph(bench: Bench) -> None:
    """A graph break costs more than a reduction saves, and code that outlives a detached reducer spoils comparisons."""
    inputs = bench.inputs()
    plain = bench.run(inputs)
    torch.compiler.reset()
    # As in the checks of reducers, but with a faster default: a model is longer than a reducer.
    backend = os.environ.get("BIGAIN_CHECK_BACKEND") or "eager"
    compiled = torch.compile(bench.model, fullgraph=True, dynamic=False, backend=backend)
    try:
        # The merge whose plan blocks share replaces the plain one, which would only be traced again.
        for name, reducer in {**working(bench), "merge": sharing(bench)}.items():
            _check_attached(bench, name, reducer, inputs, compiled)
    except TorchDynamoException as error:
        _expect_plain_compiles(bench, inputs, backend, error)
        raise
    # The same compiled model with one reducer, with the next, and with none. Outdated code runs in
    # eager mode here: recompiling would take longer than all the rest.
    with torch.compiler.set_stance("eager_on_recompile"):
        bench.same(bench.run(inputs, compiled), plain, "compiled with a reducer, then detached")


def _check_attached(bench: Bench, name: str, reducer: TokenReducer, inputs: Inputs, compiled: Any) -> None:
    other = bench.inputs(seed=2)
    with bench.attach(reducer):
        bench.same(bench.run(inputs, compiled), bench.run(inputs), f"{name}, compiled against eager")
        with torch.compiler.set_stance("fail_on_recompile"):
            found = bench.run(other, compiled)
        bench.same(found, bench.run(other), f"{name}, compiled against eager, on other values")


def _expect_plain_compiles(bench: Bench, inputs: Inputs, backend: str, seen: Exception) -> None:
    torch.compiler.reset()
    try:
        bench.run(inputs, torch.compile(bench.model, fullgraph=True, dynamic=False, backend=backend))
    except TorchDynamoException as error:
        raise NotApplicable(f"the model does not compile by itself: {type(error).__name__}") from seen
