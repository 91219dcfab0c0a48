"""The pictures of the page: test images with predictions, and generated images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigain.data.dataset import LabelledImages
from bigain.errors import DataError
from bigain.report.pictures import data_uri
from bigain.report.reading import Sample
from bigain.results.wording import MISSING, count

__all__ = ["Card", "Column", "Gallery", "generated_columns", "test_gallery"]

_SHOWN = 48


@dataclass(frozen=True)
class Card:
    """A test image.

    Args:
        picture: Data URI.
        name: The image's name.
        truth: Its class.
        answers: Method, predicted class, and whether it is right (`None` if not classified).
    """

    picture: str
    name: str
    truth: str
    answers: tuple[tuple[str, str, bool | None], ...]


@dataclass(frozen=True)
class Gallery:
    """Test images, and a sentence about which they are."""

    cards: tuple[Card, ...]
    about: str


@dataclass(frozen=True)
class Column:
    """Images of one class and seed, one per method; `None` where a method has none."""

    label: str
    seed: int
    pictures: tuple[str | None, ...]


def test_gallery(images: LabelledImages, predictions: Mapping[str, Mapping[int, int]]) -> Gallery:
    """Choose the test images to show.

    Args:
        images: The test set.
        predictions: Predicted class by image row, for each method.

    Raises:
        DataError: A prediction for an image that the test set does not have.
    """
    rows = sorted({row for found in predictions.values() for row in found})
    if rows and not 0 <= rows[0] <= rows[-1] < len(images):
        raise DataError(
            f"The comparison classified images up to row {rows[-1]}, but {images.source} has {len(images)} images: "
            "the page needs the test set that was classified."
        )
    chosen, about = _choose(rows, predictions)
    return Gallery(tuple(_card(images, row, predictions) for row in chosen), about)


def generated_columns(samples: Mapping[str, Sequence[Sample]], classes: Sequence[str]) -> tuple[Column, ...]:
    """Line up the methods' images of the same class and seed."""
    found = {name: {(item.label, item.seed): item for item in items} for name, items in samples.items()}
    keys = list(dict.fromkeys(key for items in found.values() for key in items))
    columns = []
    for label, seed in keys:
        items = [held.get((label, seed)) for held in found.values()]
        pictures = tuple(data_uri(item.image) if item else None for item in items)
        columns.append(Column(_class_name(classes, label), seed, pictures))
    return tuple(columns)


def _choose(rows: Sequence[int], predictions: Mapping[str, Mapping[int, int]]) -> tuple[list[int], str]:
    if len(rows) <= _SHOWN:
        return list(rows), f"Every test image ({count(len(rows))}), in the order of the test set."
    disputed = [row for row in rows if len({found.get(row) for found in predictions.values()}) > 1]
    agreed = sorted(set(rows) - set(disputed))
    told = f"{_SHOWN} of {count(len(rows))} test images. "
    if not disputed:
        told += "The methods agree on every one, so these are the first of the test set."
    elif len(disputed) >= _SHOWN:
        told += (
            f"The methods disagree on {count(len(disputed))} of them; these are the first of those, so this is no "
            "sample of how often each is right."
        )
    else:
        told += (
            f"The {count(len(disputed))} on which the methods disagree come first, so this is no sample of how often "
            "each is right; then the others in the order of the test set."
        )
    return (disputed + agreed)[:_SHOWN], told


def _card(images: LabelledImages, row: int, predictions: Mapping[str, Mapping[int, int]]) -> Card:
    truth = int(images.labels[row])
    answers: list[tuple[str, str, bool | None]] = []
    for name, found in predictions.items():
        answer = found.get(row)
        if answer is None:
            answers.append((name, MISSING, None))
        else:
            answers.append((name, _class_name(images.classes, answer), answer == truth))
    return Card(data_uri(images.images[row]), images.names[row], _class_name(images.classes, truth), tuple(answers))


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
