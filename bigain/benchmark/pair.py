"""Two stored classifications of the same images, compared image by image: what `bigain pair` does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bigain.errors import DataError, SettingError
from bigain.metrics.mcnemar import mcnemar
from bigain.metrics.top1 import Top1
from bigain.results.files import read_result
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["Pair", "compare_pair"]

_SHARED = {
    "data": "images",
    "noise_seed": "noise seed",
    "trials": "stages (trials)",
    "keeps": "stages (keeps)",
    "noises": "noises a timestep",
}
"""Settings that a pair shares, and what they are called."""

_SPEED = ("rows", "chunk", "compile")
"""Settings that change figures by rounding at most."""


@dataclass(frozen=True)
class Pair:
    """Two methods on the same images.

    Args:
        images: How many images.
        scores: Top-1 of the first and of the second.
        difference: Top-1 of the first minus that of the second, with the interval for pairs.
        first_alone: Images that only the first gets right.
        second_alone: Images that only the second gets right.
        changed: Images that they predict differently, rightly or wrongly.
        p: McNemar's exact p.
        differences: Settings in which the two runs differ: the first's and the second's value.
    """

    images: int
    scores: tuple[Score, Score]
    difference: Score
    first_alone: int
    second_alone: int
    changed: int
    p: float
    differences: Mapping[str, tuple[Any, Any]]


def compare_pair(first: Path, second: Path) -> Pair:
    """Compare two stored classifications.

    With several labels an image, a prediction is right if it is one of them.

    Args:
        first: A result folder of a classification, or a row of a comparison (`OUTPUT/rows/NAME`).
        second: Another.

    Raises:
        DataError: No such result, or one that is damaged or no classification.
        SettingError: The two do not share images, classes, stages and noise.
    """
    places = [_place(path) for path in (first, second)]
    settings = [_settings(place) for place in places]
    found = [Predictions.load(place) for place in places]
    _check_shared(places, settings, found)
    one, other = found
    won, lost = (int(count.sum()) for count in (one.right & ~other.right, other.right & ~one.right))
    keys = [key for key in {**settings[0], **settings[1]} if key not in _SPEED]
    values = {key: (settings[0].get(key), settings[1].get(key)) for key in keys}
    return Pair(
        len(one),
        (Top1().score(one), Top1().score(other)),
        Top1().compare(one, other),
        won,
        lost,
        int((one.predicted != other.predicted).sum()),
        mcnemar(won, lost),
        {key: both for key, both in values.items() if both[0] != both[1]},
    )


def _place(path: Path) -> Path:
    """Return the folder of the classification, which a comparison's row has as one of its own."""
    inner = path / "classification"
    return inner if inner.is_dir() else path


def _settings(place: Path) -> Mapping[str, Any]:
    """Return a classification's settings.

    Raises:
        DataError: It is no result of a classification.
    """
    content = read_result(place)
    settings = content.get("settings")
    if not isinstance(settings, Mapping) or not (place / "errors.safetensors").is_file():
        kind = settings.get("kind") if isinstance(settings, Mapping) else None
        raise DataError(
            f"{place} is {f'a result of {kind}' if kind else 'no result'}; a pair is of two classifications, folders "
            "that bigain test wrote, or rows of a comparison (OUTPUT/rows/NAME)."
        )
    return settings


def _check_shared(places: list[Path], settings: list[Mapping[str, Any]], found: list[Predictions]) -> None:
    where = f"{places[0]} and {places[1]} are no pair"
    one, other = found
    if one.classes != other.classes:
        raise SettingError(f"{where}: they have {_listed(one.classes)}, and {_listed(other.classes)}, as classes.")
    if one.names != other.names or one.labels != other.labels:
        raise SettingError(
            f"{where}: one has {len(one)} images, the other {len(other)}, and these, their order or their labels "
            "differ."
        )
    for key, name in _SHARED.items():
        first, second = (own.get(key) for own in settings)
        if first != second:
            raise SettingError(f"{where}: their {name} differ, {_shown(first)} and {_shown(second)}.")
    if not torch.equal(one.errors.timesteps, other.errors.timesteps):
        raise SettingError(f"{where}: their timesteps differ.")


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _listed(names: tuple[str, ...], most: int = 5) -> str:
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"
