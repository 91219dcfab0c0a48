"""Are a model's arguments made and read as the model takes them?"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigain.testing.adapters.bench import Bench
from bigain.testing.cases import checked_device
from bigain.testing.comparing import expect
from bigain.testing.failures import NotApplicable

__all__ = ["check_inputs_are_as_asked", "check_inputs_run", "check_moment_is_read", "check_other_shapes_run"]


def check_inputs_run(bench: Bench) -> None:
    """Costs and latencies are measured on what `inputs` makes: it has to run, with one row and with several."""
    for rows in (1, 3):
        outputs = bench.run(bench.inputs(rows))
        expect(bool(outputs), "the model returns no floating-point tensor")
        expect(outputs[0].shape[0] == rows, f"for {rows} rows the output has shape {list(outputs[0].shape)}")
        expect(all(bool(item.isfinite().all()) for item in outputs), f"for {rows} rows the output is not finite")


def check_inputs_are_as_asked(bench: Bench) -> None:
    """Operations are counted on the meta device, and time is measured in the type that is asked for."""
    for device in (checked_device(), torch.device("meta")):
        for dtype in (torch.float32, torch.bfloat16):
            made = bench.adapter.inputs(bench.model, 2, bench.shape, device, dtype)
            for name, value in _tensors("", made).items():
                where = value.device.type == device.type
                expect(where, f"{name} is on {value.device}, asked for {device}")
                expect(
                    not value.is_floating_point() or value.dtype == dtype, f"{name} is {value.dtype}, asked for {dtype}"
                )


def _tensors(name: str, value: Any) -> dict[str, Tensor]:
    """List the tensors among nested arguments, by name."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, item in value.items():
        found |= _tensors(f"{name}.{key}".lstrip("."), item)
    return found


def check_other_shapes_run(bench: Bench) -> None:
    """Images are seldom square or of the configured size: grids have to follow the input."""
    shape = next(iter(bench.other_shapes()), None)
    if shape is None:
        raise NotApplicable(f"{type(bench.model).__name__} takes no grid but {bench.shape}, as far as was tried")
    expect(len(shape) == bench.axes, f"other_shape {shape} has another number of axes than {bench.shape}")
    bench.run(bench.inputs(3, shape=shape))


def check_moment_is_read(bench: Bench) -> None:
    """Plans follow the size and the timestep of the pass, whether arguments come by position or by keyword."""
    for shape in (bench.shape, *bench.other_shapes()):
        inputs = dict(bench.inputs(3, shape=shape))
        for args, kwargs in (((), inputs), _positional(bench.model, inputs)):
            moment = bench.adapter.moment(bench.model, args, kwargs)
            how = f"with {len(args)} arguments by position,"
            # Arguments need not say the shape: the shape attached for then holds.
            found = shape if moment.shape is None else tuple(moment.shape)
            expect(found == shape, f"{how} moment() reads the shape {found}, expected {shape}")
            if moment.timestep is None:
                continue
            given = torch.as_tensor(moment.timestep)
            expect(given.shape in ((), (3,)), f"{how} the timestep of 3 rows has shape {list(given.shape)}")
            low, high = float(given.min()), float(given.max())
            expect(low >= 0 and high <= 1000, f"{how} timesteps are {low:g} to {high:g}, expected within 0 to 1000")
            expect(high > 1, f"{how} timesteps are {low:g} to {high:g}: on a scale to 1, where 1000 is pure noise")
    for site in bench.sites:
        axes = bench.grid(site).axes
        expect(axes == bench.axes, f"the grid of {site.name} has {axes} axes, the configured shape {bench.axes}")


def _positional(model: nn.Module, inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split arguments into the leading ones, by position, and the rest by keyword."""
    rest, args = dict(inputs), []
    for name in list(inspect.signature(type(model).forward).parameters)[1:]:
        if name not in rest:
            break
        args.append(rest.pop(name))
    return tuple(args), rest
