"""Class-conditional DiT on the latents of a VAE."""

from pathlib import Path

from torch import Tensor

from bigain.backbones.folder import Dtype
from bigain.backbones.labels import LabelBackbone, without_label_dropout
from bigain.backbones.pipeline import PipelineBackbone
from bigain.diffusion.condition import Condition

__all__ = ["DiT"]


class DiT(LabelBackbone, PipelineBackbone):
    """DiT-XL/2 of ImageNet at 256 or 512 pixels, or another model of diffusers' `DiTPipeline`.

    The learned variance, the second half of the output channels, is dropped. Images are those
    of the pipeline under schedulers that neither scale the network's input nor start from
    noise of another variance than 1 (DDIM, DPM-Solver++, ..); `DiTPipeline` does not follow
    the others.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the transformer: fp32, fp16 or bf16.
        image_size: Side of the images, in pixels. Default: the size of the transformer's
            training.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE and the patches cannot divide.

    References:
        Scalable Diffusion Models with Transformers (Peebles and Xie, 2023).
    """

    usual_guidance = 4.0
    pipelines = ("DiTPipeline",)
    networks = ("DiTTransformer2DModel",)

    def __init__(self, model: str | Path, dtype: Dtype = "fp32", image_size: int | None = None) -> None:
        super().__init__(model, dtype, image_size)
        without_label_dropout(self.network)
        self.label_count = int(self.network.config.num_embeds_ada_norm)
        names = self._folder.index.get("id2label")
        if isinstance(names, dict) and {*names} == {*map(str, range(self.label_count))}:
            self.class_names = tuple(str(names[str(label)]) for label in range(self.label_count))

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        (found,) = self.network(
            noisy.to(self.network.dtype), timestep=t, class_labels=condition.labels, return_dict=False
        )
        return self.without_variance(found)
