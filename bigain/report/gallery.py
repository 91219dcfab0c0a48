"""The pictures of the page: test images with predictions, and generated images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigain.data.dataset import ImageDataset
from bigain.errors import DataError
from bigain.report.pictures import data_uri
from bigain.report.reading import Sample
from bigain.results.predictions import Predictions
from bigain.results.wording import count

__all__ = ["Card", "Column", "Gallery", "generated_columns", "test_gallery"]

_SHOWN = 48


@dataclass(frozen=True)
class Card:
    """A test image.

    Args:
        picture: Data URI.
        name: The image's name.
        truth: Its class, or its classes.
        answers: Method, predicted class, and whether it is right.
    """

    picture: str
    name: str
    truth: str
    answers: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Gallery:
    """Test images, and a sentence on how they were chosen."""

    cards: tuple[Card, ...]
    about: str


@dataclass(frozen=True)
class Column:
    """Images of one class and seed, one per method; `None` where a method has none."""

    label: str
    seed: int
    pictures: tuple[str | None, ...]


def test_gallery(images: ImageDataset, predictions: Mapping[str, Predictions]) -> Gallery:
    """Choose the test images to show.

    Args:
        images: The test set.
        predictions: The predictions of each method.

    Raises:
        DataError: The predictions are for other images.
    """
    for found in predictions.values():
        if found.names != images.names:
            raise DataError(
                f"The comparison classified {count(len(found))} images, and {images.source} is another choice of "
                f"{count(len(images))}: the page needs the test set that was classified."
            )
    chosen, about = _choose(predictions)
    return Gallery(tuple(_card(images, row, predictions) for row in chosen), about)


def generated_columns(samples: Mapping[str, Sequence[Sample]], classes: Sequence[str]) -> tuple[Column, ...]:
    """Line up the methods' images of the same class and seed."""
    found = {name: {(item.label, item.seed): item for item in items} for name, items in samples.items()}
    keys = list(dict.fromkeys(key for items in found.values() for key in items))
    columns = []
    for label, seed in keys:
        items = [own.get((label, seed)) for own in found.values()]
        pictures = tuple(data_uri(item.image) if item else None for item in items)
        columns.append(Column(_class_name(classes, label), seed, pictures))
    return tuple(columns)


def _choose(predictions: Mapping[str, Predictions]) -> tuple[list[int], str]:
    answers = list(zip(*(found.predicted.tolist() for found in predictions.values()), strict=True))
    if len(answers) <= _SHOWN:
        return list(range(len(answers))), f"Every test image ({count(len(answers))}), in the order of the test set."
    disputed = [row for row, given in enumerate(answers) if len(set(given)) > 1]
    agreed = sorted(set(range(len(answers))) - set(disputed))
    about = f"{_SHOWN} of {count(len(answers))} test images. "
    if not disputed:
        about += "The methods agree on every one, so these are the first of the test set."
    elif len(disputed) >= _SHOWN:
        about += (
            f"The methods disagree on {count(len(disputed))} of them; these are the first of those, so this is no "
            "sample of how often each is right."
        )
    else:
        about += (
            f"The {count(len(disputed))} on which the methods disagree come first, so this is no sample of how often "
            "each is right; then the others in the order of the test set."
        )
    return (disputed + agreed)[:_SHOWN], about


def _card(images: ImageDataset, row: int, predictions: Mapping[str, Predictions]) -> Card:
    truth = images.labels[row]
    answers = []
    for name, found in predictions.items():
        answer = int(found.predicted[row])
        answers.append((name, _class_name(images.classes, answer), answer in truth))
    names = " | ".join(_class_name(images.classes, label) for label in truth)
    return Card(data_uri(images[row]["image"]), images.names[row], names, tuple(answers))


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
