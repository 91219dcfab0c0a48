"""What a finished comparison folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigain.errors import DataError
from bigain.results.store import read_json

__all__ = ["Map", "Sample", "read_maps", "read_predictions", "read_samples"]


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
        noisy: What the network saw, uint8, `[3, H, W]`.
        place: int64, `[N]`: each token's place in the reduced sequence.
        representatives: int64, `[M]`: the token each place stands for.
        shape: Height and width of the token grid.
        timestep: The timestep of the noise.
        site: Path of the attention module, or nothing.
    """

    image: Tensor
    noisy: Tensor
    place: Tensor
    representatives: Tensor
    shape: tuple[int, int]
    timestep: int
    site: str


def read_predictions(method: Path) -> dict[int, int]:
    """Return the predicted class of each image, by the image's row.

    Raises:
        DataError: The file is missing or damaged.
    """
    held = _load(method / "classification" / "errors.safetensors", ("index", "prediction"))
    return dict(zip(held["index"].tolist(), held["prediction"].tolist(), strict=True))


def read_samples(method: Path, count: int) -> list[Sample]:
    """Return the first `count` generated images.

    Raises:
        DataError: The file is missing or damaged.
    """
    held = _load(method / "generation" / "samples.safetensors", ("label", "seed", "image"))
    rows = zip(held["label"].tolist(), held["seed"].tolist(), held["image"], strict=True)
    return [Sample(label, seed, image) for (label, seed, image), _ in zip(rows, range(count), strict=False)]


def read_maps(method: Path) -> list[Map]:
    """Return the merge maps of a method; none if it has no file of them.

    Raises:
        DataError: The file is damaged.
    """
    path = method / "merge_map.safetensors"
    if not path.exists():
        return []
    held = _load(path, ("image", "noisy", "place", "representatives", "shape", "timestep"))
    about = method / "merge_map.json"
    site = str(read_json(about).get("site", "")) if about.exists() else ""
    height, width = held["shape"].tolist()
    return [
        Map(image, noisy, place, representatives, (height, width), int(timestep), site)
        for image, noisy, place, representatives, timestep in zip(
            held["image"], held["noisy"], held["place"], held["representatives"], held["timestep"], strict=True
        )
    ]


def _load(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [key for key in keys if key not in held]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(held)) or 'nothing'}.")
    return held
