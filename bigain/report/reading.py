"""Read samples and merge maps from a finished comparison folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigain.errors import DataError
from bigain.results.store import read_json

__all__ = ["Map", "Sample", "read_maps", "read_samples"]


@dataclass(frozen=True)
class Sample:
    """A generated image.

    Args:
        label: Its class.
        seed: Its seed.
        image: uint8, `[3, H, W]`.
    """

    label: int
    seed: int
    image: Tensor


@dataclass(frozen=True)
class Map:
    """What a method merged in one input.

    Args:
        image: The clean input, uint8, `[3, H, W]`.
        noisy: The network's input, uint8, `[3, H, W]`.
        place: int64, `[N]`: each token's place in the reduced sequence.
        representatives: int64, `[M]`: the token each place stands for.
        shape: Height and width of the token grid.
        timestep: The timestep of the noise.
        site: Path of the attention module; empty if not known.
    """

    image: Tensor
    noisy: Tensor
    place: Tensor
    representatives: Tensor
    shape: tuple[int, int]
    timestep: int
    site: str


def read_samples(row: Path, count: int) -> list[Sample]:
    """Return the first `count` generated images of a row.

    Raises:
        DataError: There are no images, or a file is damaged.
    """
    found: list[Sample] = []
    files = sorted((row / "generation" / "samples").glob("*.safetensors"))
    if not files:
        raise DataError(f"{row / 'generation' / 'samples'} holds no generated images.")
    for path in files:
        if len(found) < count:
            tensors = _load(path, ("label", "seed", "image"))
            columns = tensors["label"].tolist(), tensors["seed"].tolist(), tensors["image"]
            found += [Sample(*sample) for sample in zip(*columns, strict=True)]
    return found[:count]


def read_maps(row: Path) -> list[Map]:
    """Return the merge maps of a row; empty if it has no file of them.

    Raises:
        DataError: The file is damaged.
    """
    path = row / "merge_map.safetensors"
    if not path.exists():
        return []
    tensors = _load(path, ("image", "noisy", "place", "representatives", "shape", "timestep"))
    about = row / "merge_map.json"
    site = str(read_json(about).get("site", "")) if about.exists() else ""
    height, width = tensors["shape"].tolist()
    columns = (tensors[key] for key in ("image", "noisy", "place", "representatives", "timestep"))
    return [
        Map(image, noisy, place, representatives, (height, width), int(timestep), site)
        for image, noisy, place, representatives, timestep in zip(*columns, strict=True)
    ]


def _load(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [key for key in keys if key not in tensors]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(tensors)) or 'nothing'}.")
    return tensors
