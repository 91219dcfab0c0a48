"""From a training checkpoint to the weights that ship."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file

from bigain.errors import DataError, first_line
from bigain.training.averages import AVERAGES

__all__ = ["export_checkpoint"]


def export_checkpoint(checkpoint: Path, output: Path, prefix: str, average: str | None = None) -> str:
    """Write the averaged weights of a checkpoint as half-precision safetensors.

    Args:
        checkpoint: A Lightning checkpoint; only tensors are read, nothing is unpickled.
        output: The file to write.
        prefix: The part of the LightningModule to write; it is cut off the names.
        average: Length of the average, for a checkpoint with several (`PowerAverages`).

    Returns:
        One line saying what was written.

    Raises:
        DataError: Not a readable checkpoint, nothing under the prefix, or not the averages that were asked for.
    """
    if not checkpoint.is_file():
        raise DataError(f"No checkpoint at {checkpoint}.")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state, averages = content["state_dict"], content.get(AVERAGES, {})
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise DataError(f"{checkpoint} is no Lightning checkpoint of tensors: {first_line(error)}") from error
    if (average is None) == bool(averages) or (averages and average not in averages):
        has = f"averages of the lengths {', '.join(averages)}" if averages else "one set of weights"
        raise DataError(f"{checkpoint} has {has}; --average chooses one of several averages; got {average}.")
    # Averages have what is trained, the state the rest.
    state = {**state, **averages.get(average, {})}
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not part:
        raise DataError(f"{checkpoint} has nothing named {prefix}*; it has {', '.join(sorted(state)[:3])}, ..")
    half = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in part.items()}
    temporary = output.with_name(f".{output.name}.tmp")
    save_file(half, temporary)
    temporary.replace(output)
    parameters = sum(value.numel() for value in half.values())
    return f"{output}: {len(half)} tensors, {parameters / 1e6:.2f} M values, step {content.get('global_step')}"
