"""Published weights: their repository, licence and checksum."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml  # type: ignore[import-untyped] # it has no stubs

from bigain.errors import DataError

__all__ = ["Card", "card", "check_weights"]


@dataclass(frozen=True)
class Card:
    """One entry of `cards.yaml`.

    Args:
        name: The name users write.
        title: What the model is.
        repository: Where it is published.
        licence: Its licence.
        sha256: Checksum of its weights; empty where the source states none.
    """

    name: str
    title: str
    repository: str
    licence: str
    sha256: str = ""


@cache
def card(name: str) -> Card:
    """Look up a card.

    Raises:
        DataError: There is none of this name.
    """
    entries = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))
    known = {entry["name"]: Card(**entry) for entry in entries}
    if name not in known:
        raise DataError(f"There is no card of a model named {name!r}; there are {', '.join(known)}.")
    return known[name]


def check_weights(about: Card, file: Path) -> None:
    """Refuse a file that is not what its card describes.

    Raises:
        DataError: The file has another checksum.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if about.sha256 and found != about.sha256:
        raise DataError(
            f"{file} is not what the card of {about.name!r} describes: its sha256 is {found[:16]}.., the card has "
            f"{about.sha256[:16]}... Get it again from {about.repository}."
        )
