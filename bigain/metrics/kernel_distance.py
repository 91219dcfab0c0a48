"""The kernel distance between generated and real images."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchmetrics.image.kid import KernelInceptionDistance

from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork, GeneratedImages
from bigain.metrics.frechet import GivenFeatures
from bigain.metrics.reference import FeatureMetric
from bigain.results.scores import Score

__all__ = ["KernelDistance"]


class KernelDistance(FeatureMetric):
    """The squared maximum mean discrepancy of features with a cubic kernel, mean over random subsets.

    Unlike the Fréchet distance it has no bias: it may be negative, and does not shrink with the number of images.
    The figure is called KID with Inception's features only.

    Args:
        features: The embedded ones by default, or `bigain.metrics.inception.InceptionFeatures` for KID.
        reference: Real images to compare with: a parquet file, class folders, a folder of images, or a known data set.
            Default: the embedded test images.
        subsets: Random subsets.
        subset_size: Images of each side in a subset.
        seed: Seeds the subsets.

    Raises:
        SettingError: Fewer than one subset, or than two images in it.

    References:
        Demystifying MMD GANs (Binkowski et al., 2018), section 4.
    """

    metric = "kernel_distance"

    def __init__(
        self,
        features: FeatureNetwork | None = None,
        reference: Path | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(features, reference)
        if subsets < 1 or subset_size < 2:
            raise SettingError(
                f"KernelDistance takes one subset or more of two images or more; got subsets={subsets}, "
                f"subset_size={subset_size}."
            )
        self.subsets, self.least, self.seed = subsets, subset_size, seed

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "subsets": self.subsets, "subset_size": self.least, "seed": self.seed}

    def score(self, images: GeneratedImages) -> Score:
        generated, size = self.generated_features(images)
        network = GivenFeatures(self.network.num_features)
        with warnings.catch_warnings():  # that it has all features in memory
            warnings.simplefilter("ignore", UserWarning)
            distance = KernelInceptionDistance(
                feature=network, subsets=self.subsets, subset_size=self.least, sync_on_compute=False
            ).to(self.device)
        # In double precision TF32 plays no part, which would round these small differences away.
        distance.update(self.real.features(self.network, size, self.device).double().to(self.device), real=True)
        distance.update(generated.double().to(self.device), real=False)
        with torch.random.fork_rng(devices=[]):  # the subsets are drawn on the host
            torch.manual_seed(self.seed)
            mean, deviation = distance.compute()
        label = self.network.named("Kernel distance", "KID")
        note = (
            f"{self.counted(len(generated))} Mean of {self.subsets} subsets of {self.least:,} images; their standard "
            f"deviation is {float(deviation):.2g}."
        )
        name = "kid" if label == "KID" else "kernel_distance"
        return Score(name, float(mean), label=label, unit="number", better="lower", note=note)

    def _needs(self) -> str:
        return f"KernelDistance needs {self.least:,} images or more (subset_size)"
