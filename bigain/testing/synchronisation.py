"""Does anything synchronise with the host?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigain.reducers.base import TokenReducer
from bigain.testing.cases import Case
from bigain.testing.comparing import Outcome, Subject, expect, outcome

__all__ = ["check_no_host_synchronisation", "check_runs_on_meta_device"]

# Operators that read values on the host, or whose result's shape depends on values.
_READS = frozenset(
    [
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "_linalg_check_errors"),
        *("nonzero", "masked_select", "bincount", "histogram"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    ]
)
# Calls that copy values to the host; for a tensor on the CPU no operator shows it.
_TAKES = frozenset({"tolist", "numpy", "cpu", "__array__"})
# Calls that make a tensor of Python numbers: for a GPU, a copy that the host waits for.
_MAKES = frozenset({"tensor", "as_tensor", "asarray", "new_tensor"})


def check_runs_on_meta_device(subject: Subject, case: Case) -> None:
    """On the meta device nothing can wait for values, and costs are counted there without a GPU."""
    real = _everything(subject, case, case.tokens(), case.timesteps())
    tokens, timestep = case.tokens().to("meta"), case.timesteps().to("meta")
    with _HostTensors():  # type: ignore[no-untyped-call]
        found = _everything(subject, case, tokens, timestep)
    for name, value in found.items():
        expect(value.device.type == "meta", f"{name} is on {value.device} for tokens on the meta device")
        shapes = list(value.shape), list(real[name].shape)
        expect(shapes[0] == shapes[1], f"{name} has shape {shapes[0]} on the meta device, {shapes[1]} elsewhere")


def check_no_host_synchronisation(subject: Subject, case: Case) -> None:
    """A host that waits for the GPU at every attention block costs more time than reducing tokens saves."""
    tokens, timestep = case.tokens().cpu(), case.timesteps().cpu()
    with _HostCalls(), _HostReads():  # type: ignore[no-untyped-call]
        _everything(subject, case, tokens, timestep)
    if torch.cuda.is_available():
        tokens, timestep = tokens.cuda(), timestep.cuda()
        _everything(subject, case, tokens, timestep)  # the first call of a kernel may wait for its own setup
        with _cuda_refuses_to_wait():
            _everything(subject, case, tokens, timestep)


def _everything(subject: Subject, case: Case, tokens: Tensor, timestep: Tensor) -> Outcome:
    found = dict(outcome(subject, tokens, case.grid, case.context(timestep)))
    if isinstance(subject, TokenReducer):
        found["repeated"] = subject.plan(tokens, case.grid, case.context(timestep)).repeat(2).sizes
    return found


class _HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operators that read values on the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = _reads_values(func, args, kwargs)
        expect(not reads, f"{func} was called: it reads values on the host, and a GPU would have to be waited for")
        made = _operator(func) == "lift_fresh" and args[0].ndim > 0
        expect(not made, f"{func} was called: a tensor made of Python numbers is copied from the host to a GPU")
        return func(*args, **kwargs)


def _reads_values(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = _operator(func)
    if name in ("index", "index_put", "index_put_"):
        masks = [item for item in args[1] if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)]
        # Writing one value through one mask needs no indices.
        fills = name != "index" and len(args[1]) == 1 and args[2].numel() == 1
        return bool(masks) and not fills
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _READS


class _HostCalls(TorchFunctionMode):
    """Refuses calls that move values between host and device without an operator that shows it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        expect(name not in _TAKES, f"{name}() was called: it takes values to the host, and a GPU would be waited for")
        data = kwargs.get("data") if "data" in kwargs else (*args, None, None)[name == "new_tensor"]
        made = name in _MAKES and not isinstance(data, Tensor)
        expect(not made, f"{name}() was called: a tensor made of Python numbers is copied from the host to a GPU")
        return func(*args, **kwargs)


class _HostTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses tensors on the host among those on the device: copying them to a GPU would wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        copies = _operator(func) in ("_to_copy", "copy_")
        host = [item for item in given if item.device.type != "meta" and (item.ndim or copies)]
        expect(not host, f"{func} was given a tensor on the CPU: make it on the device of the tokens")
        return func(*args, **(kwargs or {}))


def _operator(func: Any) -> str:
    """Return `index` for `aten.index.Tensor`."""
    return str(func).split(".")[1]


@contextmanager
def _cuda_refuses_to_wait() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
