"""Image classifiers of timm, from local weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bigain.backbones.image_classifier import ImageClassifier
from bigain.errors import DataError, SettingError, first_line

__all__ = ["TimmClassifier"]

_WEIGHTS = "model.safetensors"


class TimmClassifier(ImageClassifier):
    """A vision transformer of timm, with the preprocessing of its own configuration.

    Images are resized, cropped and normalised as `timm.data.resolve_data_config` says; label names
    are those of the configuration, or of ImageNet where timm knows that they are.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, as `timm.models.save_for_hf` writes
            it and timm's repositories have it; or a `.safetensors` file.
        name: The architecture, such as `vit_small_patch16_224`: for a file alone, since a folder says it.
        settings: Further arguments of `timm.create_model`, such as `num_classes` or `img_size`.

    Raises:
        DataError: No such weights, or they do not fit the architecture.
        SettingError: A file without a name, or a folder with one; or the model classifies nothing.
    """

    def __init__(self, weights: Path | str, name: str | None = None, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network = _load(Path(weights).expanduser(), name, settings or {})
        self.label_count = int(getattr(self.network, "num_classes", 0))
        if self.label_count < 1:
            raise SettingError(f"{weights} holds a model without a classification head (num_classes=0).")
        self.label_names = _names(self.network)
        self._config = _data_config(self.network)
        from timm.data import create_transform

        self.preparation = create_transform(**self._config, is_training=False)

    def logits(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found.float()

    def identity(self) -> dict[str, Any]:
        config = {name: list(value) if isinstance(value, tuple) else value for name, value in self._config.items()}
        return {"preparation": config}


def _load(weights: Path, name: str | None, settings: dict[str, Any]) -> nn.Module:
    import timm

    where = {"model_name": f"local-dir:{weights}", "pretrained": True}
    if weights.is_dir():
        for needed in ("config.json", _WEIGHTS):
            if not (weights / needed).is_file():
                raise DataError(
                    f"No timm model in {weights}: {needed} is missing, which timm.models.save_for_hf writes with "
                    "safe_serialization=True."
                )
        if name is not None:
            raise SettingError(f"{weights} says in its config.json which architecture it has: leave name={name} out.")
    else:
        if weights.suffix != ".safetensors" or not weights.is_file():
            raise DataError(f"No weights at {weights}: give a folder with {_WEIGHTS}, or a .safetensors file.")
        if name is None or name not in timm.list_models():
            raise SettingError(
                f"{weights} does not say which architecture it has: give name, one of timm.list_models(); got {name!r}."
            )
        where = {"model_name": name, "checkpoint_path": str(weights)}
    try:
        network: nn.Module = timm.create_model(**{**settings, **where})
    except Exception as error:  # timm, safetensors and torch raise errors of their own
        raise DataError(f"The model in {weights} cannot be loaded: {first_line(error)}") from error
    return network.eval()


def _data_config(network: Any) -> dict[str, Any]:
    """Return the model's preprocessing, at the size that it was built for."""
    from timm.data import resolve_data_config

    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    args = {} if size is None else {"input_size": (3, *size)}
    config: dict[str, Any] = resolve_data_config(args, model=network)
    return config


def _names(network: Any) -> tuple[str, ...] | None:
    """Return the labels' names, with descriptions or WordNet identifiers as synonyms."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = network.pretrained_cfg or {}
    if names := config.get("label_names"):
        described = config.get("label_descriptions") or {}
        if isinstance(names, Mapping):  # by number, in a file as text; others may be missing
            names = [names.get(label, names.get(str(label), str(label))) for label in range(network.num_classes)]
        return tuple(f"{name}, {described[name]}" if name in described else name for name in names)
    # Named by the number of labels alone: any other data set of a thousand classes would be misnamed.
    if "in1k" not in str(config.get("tag")) or not (subset := infer_imagenet_subset(network)):
        return None
    info = ImageNetInfo(subset)
    return tuple(f"{info.label_name_to_description(name)}, {name}" for name in info.label_names())
