"""Operations of a model that an adapter knows, without and with a reducer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from bigain.adapters.base import Adapter
from bigain.errors import BigainError, SettingError
from bigain.profiling.operations import META, Operations, count_pass, main_dtype, operations_of

__all__ = ["count_operations", "network_pass"]


def network_pass(network: nn.Module, adapter: Adapter, shape: tuple[int, ...]) -> Callable[[int], Any]:
    """Return a function of a number of rows that runs the network on made-up inputs."""
    dtype = main_dtype(network)
    return lambda rows: network(**adapter.inputs(network, rows, shape, META, dtype))


def count_operations(
    network: nn.Module,
    adapter: Adapter,
    shape: tuple[int, ...],
    paths: tuple[str, ...],
    attached: Callable[[], AbstractContextManager[Any]],
) -> Operations:
    """Count a forward pass of one row without and with a reducer.

    Args:
        network: The network on the meta device, with nothing attached.
        adapter: The adapter that takes it.
        shape: Tokens along each axis of its input grid.
        paths: The modules that are reduced.
        attached: Makes a context in which the reducer is attached to it.

    Raises:
        SettingError: The network or the reducer cannot run without values, or on made-up inputs.
    """
    evaluate, failure = network_pass(network, adapter, shape), "Operations cannot be counted"
    try:
        before = count_pass(evaluate, 1, failure)
        with attached():
            after = count_pass(evaluate, 1, failure)
    except BigainError:
        raise
    except Exception as error:  # whatever a library or a plugin raises
        reason = next(iter(str(error).splitlines()), "")
        raise SettingError(f"{failure}: {type(error).__name__}: {reason}") from error
    reducible = operations_of(before, network, paths)
    return Operations(float(before.get_total_flops()), float(after.get_total_flops()), reducible)
