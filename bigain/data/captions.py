"""Captions of photographs as prompts."""

import json
from pathlib import Path

from bigain.data.decode import reason_of
from bigain.data.prompts import ClassPrompts
from bigain.data.sources.layout import require
from bigain.errors import DataError

__all__ = ["CaptionPrompts"]

_KIND = "COCO 2017"
_TABLE = "captions_val2017.json"
_REMEDY = "captions are in annotations_trainval2017.zip, at https://cocodataset.org/#download"


class CaptionPrompts(ClassPrompts):
    """Captions of COCO in turn, one of each photograph, each image with a seed of its own.

    Of a photograph's captions the one with the smallest number is taken, and the photographs in the order of theirs.
    Image i has caption `i % captions` and seed `first_seed + i`, whatever the chunk size.

    Args:
        captions: `captions_val2017.json`, or the folder of COCO in whose `annotations` it is.
        count: Images to generate. Default: one for each photograph. All prompts are embedded before the first image, a
            part at a time.
        first_seed: Seed of the first image.
        chunk: Images in a chunk, the unit of work and of resuming.

    Raises:
        DataError: No captions, or a damaged file.
        SettingError: Impossible numbers.
    """

    def __init__(self, captions: Path, count: int | None = None, first_seed: int = 0, chunk: int = 64) -> None:
        texts = _read_captions(captions / "annotations" / _TABLE if captions.is_dir() else captions)
        self.captions = captions
        count = len(texts) if count is None else count
        super().__init__(count, tuple(texts[:count]), "{class}", first_seed, chunk)


def _read_captions(table: Path) -> list[str]:
    """Return the first caption of each photograph."""
    require(_KIND, table, _REMEDY)
    first: dict[int, tuple[int, str]] = {}
    try:
        with table.open(encoding="utf-8") as file:
            for item in json.load(file)["annotations"]:
                image, found = int(item["image_id"]), (int(item["id"]), str(item["caption"]).strip())
                first[image] = min(found, first.get(image, found))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{_KIND}: {table} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{_KIND}: {table} has no captions: {type(error).__name__} {error}; {_REMEDY}.") from error
    if not first:
        raise DataError(f"{_KIND}: {table} has no captions; {_REMEDY}.")
    return [caption for _, (_, caption) in sorted(first.items())]
