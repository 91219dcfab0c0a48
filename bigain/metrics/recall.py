"""Which share of the real images could have been generated."""

from torch import Tensor

from bigain.functional.manifold import in_manifold
from bigain.metrics.precision import Precision

__all__ = ["Recall"]


class Recall(Precision):
    """The share of real images within the manifold of the generated ones; settings are those of `Precision`.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019), equation 2.
    """

    metric = "recall"
    label = "Recall"
    has_interval = False  # the manifold is that of the sample
    meaning = "real images that lie among the generated ones"

    def inside(self, generated: Tensor, real: Tensor) -> Tensor:
        return in_manifold(real, generated, self.neighbors)
