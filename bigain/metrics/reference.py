"""What metrics of generated images share: real images to compare with, and features of both."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor

from bigain.assets import asset
from bigain.data.dataset import ImageDataset
from bigain.data.prompts import ClassPrompts
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork, GeneratedImages, GenerationMetric, features_in_parts
from bigain.metrics.features import EmbeddedFeatures
from bigain.results.cache import TensorCache
from bigain.results.provenance import code_of_class

__all__ = ["FeatureMetric", "RealImages"]

_CHUNK = 100
"""Real images in memory at once."""

_SIZE = 32
"""The size at which real images are opened, in pixels; features see them at the size of the generated ones."""

_MOST_KEPT = 100_000
"""Features of more real images are not kept on disk: Inception's would take a gigabyte."""


class RealImages:
    """The real images of a metric; what is computed of them is kept on disk (`bigain cache`).

    Args:
        path: Where they are; default: the embedded test images.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path or asset("cifar10_test/test.parquet")
        self._images: ImageDataset | None = None

    @property
    def images(self) -> ImageDataset:
        """The images, checked to be readable.

        Raises:
            DataError: There are none, or some cannot be read.
            SettingError: There is one only.
        """
        if self._images is None:
            images = ImageDataset.open_unlabelled(self._path, _SIZE)
            if len(images) < 2:
                raise SettingError(f"{self._path}: a distance needs two reference images or more.")
            images.check_once()
            self._images = images
        return self._images

    def kept(
        self,
        what: str,
        network: FeatureNetwork,
        size: int,
        device: torch.device,
        compute: Callable[[], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return what is kept of these images under a name, or else compute and keep it."""
        code = code_of_class(type(network))
        settings = {"of real images": what, "features": network.name, "decoder": PIL.__version__, **code}
        cache = TensorCache([network], settings)
        key = f"{self.images.fingerprint} {size} {device.type}".encode()
        found = cache.find(key)
        return cache.keep(key, compute()) if found is None else found

    def parts(self, network: FeatureNetwork, size: int, device: torch.device) -> Iterator[Tensor]:
        """Yield the features of all images at a size, float32 `[B, D]` on the host, a part at a time."""
        if len(self.images) <= _MOST_KEPT:
            yield from torch.split(self.features(network, size, device), _CHUNK)
        else:
            yield from features_in_parts(network, self._chunks(size), device)

    def features(self, network: FeatureNetwork, size: int, device: torch.device) -> Tensor:
        """Return the features of all images at a size: float32, `[M, D]`, on the host."""

        def compute() -> dict[str, Tensor]:
            return {"features": torch.cat([*features_in_parts(network, self._chunks(size), device)])}

        if len(self.images) > _MOST_KEPT:
            return compute()["features"]
        return self.kept("features", network, size, device, compute)["features"]

    def _chunks(self, size: int) -> Iterator[Tensor]:
        images = self.images.resized(size)
        for first in range(0, len(images), _CHUNK):
            yield images.batch(range(first, min(first + _CHUNK, len(images))))["image"]


class FeatureMetric(GenerationMetric):
    """A figure of the features of generated and of real images.

    Args:
        features: The embedded ones by default, or `bigain.metrics.inception.InceptionFeatures`.
        reference: Real images to compare with: a parquet file, class folders, a folder of images, or a known data set.
            Default: the embedded test images.

    Attributes:
        metric: Its name in results' settings.
        least: The smallest number of images, generated and real, that it can score.
    """

    metric: str
    least: int = 2

    def __init__(self, features: FeatureNetwork | None = None, reference: Path | None = None) -> None:
        self.features, self.reference = features, reference
        self.real = RealImages(reference)
        self.device = torch.device("cpu")
        self._network = features

    def identity(self) -> Mapping[str, Any]:
        given, images = self.features, self.real.images
        if len(images) < self.least:
            raise SettingError(f"{self._needs()} in the reference; {images.source} has {len(images):,}.")
        return {
            "metric": self.metric,
            "features": "embedded" if given is None else f"{given.label} {given.fingerprint}",
            "reference": str(self.reference or "embedded test images"),
            "reference_images": images.fingerprint,
        }

    def check(self, prompts: ClassPrompts) -> None:
        self.check_count(prompts.count)

    def check_count(self, count: int) -> None:
        """Refuse too few generated images."""
        if count < self.least:
            raise SettingError(f"{self._needs()}, generated; got {count:,}.")

    def _needs(self) -> str:
        return f"{type(self).__name__} needs {self.least:,} images or more"

    def to(self, device: torch.device | str) -> "FeatureMetric":
        self.device = torch.device(device)
        return self

    @property
    def network(self) -> FeatureNetwork:
        """The feature network."""
        self._network = self._network or EmbeddedFeatures()
        return self._network

    def generated_features(self, images: GeneratedImages) -> tuple[Tensor, int]:
        """Return the features of generated images, `[N, D]` on the host, and the images' size in pixels.

        Raises:
            SettingError: There are too few.
        """
        found = images.features(self.network, self.device)
        self.check_count(len(found))
        return found, next(iter(images)).shape[-1]

    def counted(self, generated: int) -> str:
        """Say how many images a figure rests on."""
        return f"{generated:,} generated images against {len(self.real.images):,} real ones."
