"""Find the backbone that fits a model: a pipeline's folder, a repository, or what ships."""

from pathlib import Path
from typing import Any

import torch

from bigain import registry
from bigain.backbones.folder import HUB, Dtype, PipelineFolder
from bigain.backbones.pixel_dit import EMBEDDED, PixelDiT
from bigain.diffusion.backbone import Backbone
from bigain.errors import DataError

__all__ = ["is_pixel_model", "open_model"]


def open_model(model: str, device: torch.device, dtype: Dtype | None = None, image_size: int | None = None) -> Backbone:
    """Load a model on a device, with the registered backbone whose pipeline it is.

    Args:
        model: `embedded`, a folder that a diffusers pipeline's `save_pretrained` wrote,
            `hub:owner/name[@revision]`, or a folder with a DiT on pixels.
        device: Where its network will be.
        dtype: Type of its weights. Default: fp32 on a CPU, on a GPU the half precision that
            the model is published for.
        image_size: Side of the images, in pixels. Default: the size of the model's training.

    Raises:
        DataError: No such model, or one for which no backbone is registered.
    """
    if not model.startswith(HUB):
        model = str(Path(model).expanduser())
    if is_pixel_model(model):
        if dtype not in (None, "fp32") or image_size is not None:
            raise DataError(f"{model} is a model on pixels, in fp32 and of one size: leave dtype and image_size out.")
        return PixelDiT(weights=model).eval().to(device)
    known = _pipelines()
    if not model.startswith(HUB) and not Path(model).is_dir():
        raise DataError(
            f"No model at {model}: give a folder that a diffusers pipeline's save_pretrained wrote, "
            f"{HUB}owner/name[@revision], or {EMBEDDED!r}."
        )
    folder = PipelineFolder.open(model, known)
    found = known[folder.index["_class_name"]]
    chosen = dtype or ("fp32" if device.type == "cpu" else found.half_precision)
    backbone: Backbone = found(folder.path, chosen, **({} if image_size is None else {"image_size": image_size}))
    return backbone.eval().to(device)


def is_pixel_model(model: str) -> bool:
    """Say whether a model works on pixels, in fp32 and at one size: the embedded one, or a folder of its kind."""
    folder = Path(model).expanduser()
    return model == EMBEDDED or ((folder / "config.json").is_file() and not (folder / "model_index.json").is_file())


def _pipelines() -> dict[str, Any]:
    """Map the pipeline classes that registered backbones load to these backbones."""
    usable = [entry for entry in registry.entries("backbones") if not entry.problem]
    classes = [registry.get("backbones", entry.name) for entry in usable]
    return {name: found for found in classes for name in getattr(found, "pipelines", ())}
