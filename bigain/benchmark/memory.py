"""Memory that does not suffice: how each device says so, and what a user can lower."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bigain.backbones.folder import Dtype
from bigain.backbones.open_model import is_pixel_model
from bigain.errors import SettingError

__all__ = ["is_out_of_memory", "saying_what_to_lower"]

_WITHOUT_A_CLASS = (
    *("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),  # of a driver and a library beside torch's allocator
    *("could not create a primitive", "could not execute a primitive"),  # oneDNN, which says no more
)
"""Words of errors that have no class of their own."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or one that it was raised from, is memory that did not suffice, on a GPU or a CPU."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, Exception) and any(words in str(error) for words in _WITHOUT_A_CLASS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def saying_what_to_lower(model: str, device: torch.device, dtype: Dtype | None, *others: str) -> Iterator[None]:
    """Turn memory that does not suffice within a `with` block into a sentence.

    Args:
        model: The model, as the user gave it.
        device: Where it works.
        dtype: Type of its weights, as the user gave it.
        others: What can be lowered beside size and type.

    Raises:
        SettingError: Memory does not suffice; says what to lower.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lower = list(others)
        if not is_pixel_model(model):
            lower = ["a smaller --image_size", *lower]
            single = dtype == "fp32" or (dtype is None and device.type == "cpu")
            lower += ["--dtype=bf16 or fp16"] if single else []
        advice = f"take {' or '.join(lower)}" if lower else "nothing can be lowered, so make room there"
        raise SettingError(f"{model} does not fit into the memory of {device}: {advice}.") from error
