"""Score stored errors anew: with other stages, weights or fewer noises, without running the model."""

from dataclasses import replace

import torch
from torch import Tensor

from bigain.diffusion.noise_set import Stages
from bigain.diffusion.process import Process
from bigain.diffusion.weights import timestep_weights, weighted_mean
from bigain.errors import DataError
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions

__all__ = ["rescored"]


def rescored(predictions: Predictions, stages: Stages, process: Process) -> Predictions:
    """Return what other stages would have predicted with the same noises, from the stored errors.

    Everything can be scored from a run without pruning, such as `trials=[20] keeps=[1]`.

    Args:
        predictions: Predictions of a diffusion classifier.
        stages: The stages to score; their timesteps are among those stored, each with as many noises.
        process: The model's process.

    Raises:
        DataError: A timestep is not stored, or an error that these stages need was not evaluated,
            since the run pruned its class; says where.
    """
    errors, weights = predictions.errors, timestep_weights(stages, process)
    places, count = _places(stages, process, errors), len(predictions.classes)
    parts, predicted = [], []
    order = errors.image.argsort(stable=True)
    ends = errors.image.long().bincount(minlength=len(predictions)).cumsum(0).tolist()
    for image, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        rows = order[start:end]
        dense = torch.full((count, len(errors.timesteps)), torch.nan)
        dense[errors.label[rows].long(), errors.step[rows].long()] = errors.error[rows]
        found, best = _pruned(dense[:, places], stages, weights, predictions.names[image])
        parts.append(Errors.of(found[None], torch.tensor([image]), errors.timesteps[places], weights))
        predicted.append(best)
    if not parts:
        return predictions
    return replace(predictions, predicted=torch.tensor(predicted), errors=Errors.concat(parts))


def _places(stages: Stages, process: Process, errors: Errors) -> Tensor:
    """Find each pair of timestep and noise among the stored ones: int64 `[M]`."""
    stored, places, used = errors.timesteps.tolist(), list[int](), dict[int, int]()
    for timestep in stages.timesteps(process.steps):
        matching = [index for index, one in enumerate(stored) if one == timestep]
        number = used.get(timestep, 0)
        if number >= len(matching):
            raise DataError(
                f"These stages need {stages.noises} noise{'s' * (stages.noises > 1)} at timestep {timestep}; stored "
                f"are {len(matching)} there, and the timesteps {', '.join(map(str, dict.fromkeys(stored)))}."
            )
        places.append(matching[number])
        used[timestep] = number + 1
    return torch.tensor(places)


def _pruned(dense: Tensor, stages: Stages, weights: Tensor | None, name: str) -> tuple[Tensor, int]:
    """Prune one image's classes; return the errors that are used, `[K, M]`, and the best class."""
    alive, seen, used = torch.arange(len(dense)), list[int](), torch.full_like(dense, torch.nan)
    for new, keep in zip(stages.members(), stages.keeps, strict=True):
        seen.extend(new)
        part = dense[alive[:, None], torch.tensor(seen)]
        if part.isnan().any():
            raise DataError(
                f"{name}: a class that these stages keep was pruned when it was classified, so that its error is not "
                "stored. Keep no more classes than that run, with its weights, or score a run without pruning."
            )
        used[alive[:, None], torch.tensor(seen)] = part
        own = None if weights is None else weights[seen].float()
        alive = alive[weighted_mean(part, own).argsort(stable=True)[:keep]]
    return used, int(alive[0])
