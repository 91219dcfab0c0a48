"""Training steps with a reducer attached."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigain.reducers.base import TokenReducer
from bigain.reducers.cached import Cached
from bigain.reducers.tome import ToMe
from bigain.testing.adapters.bench import Bench, Inputs, distance, hooked, tensors_of
from bigain.testing.adapters.reductions import cell_for, merging, sharing, working
from bigain.testing.comparing import expect
from bigain.testing.failures import NotApplicable

__all__ = ["check_gradient_checkpointing", "check_gradients_flow"]

_SWITCHES = ("enable_gradient_checkpointing", "gradient_checkpointing_enable", "set_grad_checkpointing")
"""Methods that switch checkpointing on: in diffusers, transformers and timm."""


def check_gradients_flow(bench: Bench) -> None:
    """A weight that trains without a reducer has to train with it."""
    inputs = bench.inputs()
    plain = _gradients(bench, [inputs])
    for name, reducer in {**working(bench), "cached": sharing(bench)}.items():
        with bench.attach(reducer):
            found = _gradients(bench, [inputs])
        lost = [key for key, value in plain.items() if value.any() and not (key in found and bool(found[key].any()))]
        expect(not lost, f"{name} leaves without a gradient: {', '.join(lost[:6])}")
        wild = [key for key, value in found.items() if not value.isfinite().all()]
        expect(not wild, f"{name} gives gradients that are not finite: {', '.join(wild[:6])}")


def check_gradient_checkpointing(bench: Bench) -> None:
    """Blocks that backward recomputes must merge the same tokens again, or gradients are of another model."""
    one, two = [bench.inputs()], [bench.inputs(), bench.inputs(2, seed=2)]
    reducers: list[tuple[str, TokenReducer]] = [
        ("merge", merging(bench)),
        ("random", ToMe(0.5, cell=cell_for(bench.axes))),
        ("cached", Cached(ToMe(0.5, cell=cell_for(bench.axes)), per="forward")),
    ]
    expected = []
    for _, reducer in reducers:
        with bench.attach(reducer):
            expected.append((_gradients(bench, one), _gradients(bench, two)))
    _switch_on(bench, one[0])
    for (name, reducer), (single, double) in zip(reducers, expected, strict=True):
        with bench.attach(reducer):
            _expect_same(bench, _gradients(bench, one), single, f"{name}, with checkpointing against without")
            what = f"{name}, two passes before one backward, with checkpointing against without"
            _expect_same(bench, _gradients(bench, two), double, what)


def _switch_on(bench: Bench, inputs: Inputs) -> None:
    """Turn checkpointing on, and check that blocks do run again.

    Raises:
        NotApplicable: The model has no checkpointing that works.
    """
    known = [name for name in _SWITCHES if hasattr(bench.model, name)]
    if not known:
        raise NotApplicable(f"{type(bench.model).__name__} has no gradient checkpointing")
    try:
        getattr(bench.model, known[0])()
    except Exception as error:  # a class may support it and a model of it not
        raise NotApplicable(f"{type(bench.model).__name__}: {error}") from error
    runs: list[nn.Module] = []
    undo = [site.block.register_forward_pre_hook(lambda block, _: runs.append(block)).remove for site in bench.sites]
    with hooked(undo):
        try:
            _gradients(bench, [inputs])
        except Exception as error:  # whatever goes wrong, no reducer is attached
            raise NotApplicable(f"{type(bench.model).__name__} fails with gradient checkpointing: {error}") from error
    if len(runs) <= len(bench.sites):
        raise NotApplicable(f"{type(bench.model).__name__} runs no block again during backward")


def _gradients(bench: Bench, passes: Sequence[Inputs]) -> dict[str, Tensor]:
    """Run passes in training mode without dropout, and one backward pass for all of them."""
    bench.model.train()
    for module in bench.model.modules():
        if "Drop" in type(module).__name__:
            module.eval()
    bench.model.zero_grad(set_to_none=True)
    loss = torch.stack([_loss(bench, number, inputs) for number, inputs in enumerate(passes)]).sum()
    torch.autograd.backward(loss)
    bench.model.eval()
    named = bench.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def _loss(bench: Bench, number: int, inputs: Inputs) -> Tensor:
    """Weight the output with noise: behind a norm, its mean square would be constant."""
    torch.manual_seed(number)  # labels dropped at random are the same ones each time
    outputs = tensors_of(bench.model(**inputs))
    generator = torch.Generator().manual_seed(number)
    weights = [torch.randn(item.shape, generator=generator).to(item) for item in outputs]
    return torch.stack([(item * weight).mean() for item, weight in zip(outputs, weights, strict=True)]).sum()


def _expect_same(bench: Bench, found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    expect(set(found) == set(expected), f"{what}: gradients of other weights")
    bound = 1e-6 if bench.dtype == torch.float64 else 1e-3
    off = {name: distance(found[name], value) for name, value in expected.items() if value.any()}
    worst = max(off, key=lambda name: off[name])
    expect(off[worst] <= bound, f"{what}: the gradient of {worst} is off by {off[worst]:.2g} of its largest value")
