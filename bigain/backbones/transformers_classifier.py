"""Image classifiers of transformers, from a local folder."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from bigain.backbones.image_classifier import ImageClassifier, named
from bigain.errors import DataError, first_line
from bigain.results.quiet import no_progress_bars

__all__ = ["TransformersClassifier"]

_ACCEPTED = (
    "ViTForImageClassification",
    "CLIPForImageClassification",
    "SiglipForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
)


class TransformersClassifier(ImageClassifier):
    """A vision transformer of transformers (ViT, CLIP, SigLIP, DINOv2), with its own image processor.

    Label names are the configuration's `id2label`.

    Args:
        folder: What `save_pretrained` of the model and of its image processor wrote: `config.json`,
            `model.safetensors` (or its shards) and `preprocessor_config.json`.

    Raises:
        DataError: No such folder, a file is missing, or the model is of another class or cannot be loaded.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        place = Path(folder).expanduser()
        self.network = _load(place, _class_of(place))
        config: Any = self.network.config
        self.label_count = int(config.num_labels)
        self.label_names = named([str(config.id2label[label]) for label in range(self.label_count)])
        self._processor = _processor(place)
        self.preparation = _Preparation(self._processor)

    def logits(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images).logits
        return found.float()

    def identity(self) -> dict[str, Any]:
        return {"preparation": json.loads(json.dumps(self._processor.to_dict(), default=str))}


class _Preparation:
    """An image processor that is given one image, and returns it alone."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        prepared: Tensor = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return prepared


def _class_of(folder: Path) -> str:
    """Read which class a folder's model is of."""
    for needed in ("config.json", "preprocessor_config.json"):
        if not (folder / needed).is_file():
            raise DataError(
                f"No image classifier of transformers in {folder}: {needed} is missing, which save_pretrained of the "
                f"{'model' if needed == 'config.json' else 'image processor'} writes."
            )
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder} has no weights as safetensors; others are not read.")
    try:
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from error
    found = next((name for name in architectures if name in _ACCEPTED), None)
    if found is None:
        raise DataError(
            f"{folder} holds a {' or '.join(map(str, architectures)) or 'model of no class'}; accepted: "
            f"{', '.join(_ACCEPTED)}."
        )
    return str(found)


def _load(folder: Path, name: str) -> nn.Module:
    import torch
    import transformers

    settings = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        with no_progress_bars():
            network, about = getattr(transformers, name).from_pretrained(folder, **settings)
    except Exception as error:  # transformers, safetensors and torch raise errors of their own
        raise DataError(f"The model in {folder} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(about["missing_keys"]):
        # transformers would go on with random values.
        raise DataError(f"The model in {folder} lacks {len(missing)} weights, such as {missing[0]}.")
    loaded: nn.Module = network.eval()
    return loaded


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an unknown processor, or settings that it does not take
        raise DataError(f"The image processor in {folder} cannot be loaded: {first_line(error)}") from error
