"""How well images show what their prompts say."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.data.decode import reason_of
from bigain.data.prompts import ClassPrompts
from bigain.errors import DataError, SettingError
from bigain.metrics.base import GeneratedImages, GenerationMetric
from bigain.results.provenance import fingerprint
from bigain.results.quiet import no_progress_bars
from bigain.results.scores import Score

__all__ = ["ClipScore"]

_PART = 64
"""Images or prompts that CLIP sees at once."""

_QUANTILE = 1.96


class ClipScore(GenerationMetric):
    """The cosine similarity of CLIP's features of an image and of its prompt, times 100, mean over images.

    A negative similarity counts as 0. An image of a class has the prompt of its class (`data.prompt`).

    Args:
        model: A folder that `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` wrote, with safetensors.
            Nothing is downloaded.

    References:
        CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021), with the factor
        100 of torchmetrics and most papers in place of 2.5.
    """

    def __init__(self, model: Path) -> None:
        self.model = Path(model)
        self._loaded: tuple[Any, Any] | None = None
        self._device = torch.device("cpu")

    def identity(self) -> Mapping[str, Any]:
        model, _ = self._load()
        return {"metric": "clip_score", "weights": fingerprint(model.state_dict())}

    def check(self, prompts: ClassPrompts) -> None:
        model, processor = self._load()
        most = int(model.config.text_config.max_position_embeddings)
        for prompt in prompts.class_prompts:
            if (count := len(processor.tokenizer(prompt).input_ids)) > most:
                raise SettingError(
                    f"The prompt {prompt[:40]!r}.. has {count} tokens; CLIP in {self.model} reads {most}. Shorten it, "
                    "or leave ClipScore out."
                )

    def to(self, device: torch.device | str) -> "ClipScore":
        self._device = torch.device(device)
        return self

    def score(self, images: GeneratedImages) -> Score:
        if not images.prompts:
            raise SettingError("ClipScore needs the images' prompts.")
        model, _ = self._load()
        model.to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(images.prompts))}
            texts = torch.cat([*self._texts(list(distinct))])
            found = torch.cat([*self._similarities(images, texts, [distinct[prompt] for prompt in images.prompts])])
        model.to("cpu")
        mean, count = float(found.mean()), len(found)
        half = _QUANTILE * float(found.std()) / math.sqrt(count) if count > 1 else None
        note = f"CLIP's similarity of {count:,} images and their prompts, times 100."
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return Score("clip_score", mean, low, high, "CLIP score", "number", "higher", note)

    def _texts(self, prompts: Sequence[str]) -> Iterator[Tensor]:
        model, processor = self._load()
        for first in range(0, len(prompts), _PART):
            part = list(prompts[first : first + _PART])
            given = processor.tokenizer(part, padding=True, return_tensors="pt").to(self._device)
            yield F.normalize(_features(model.get_text_features(**given)), dim=-1).cpu()

    def _similarities(self, images: GeneratedImages, texts: Tensor, rows: Sequence[int]) -> Iterator[Tensor]:
        """Yield the score of each image, in order; `rows` is which text belongs to it."""
        model, processor = self._load()
        first = 0
        for chunk in images:
            for part in torch.split(chunk, _PART):
                given = processor.image_processor(list(part.cpu()), return_tensors="pt").to(self._device)
                seen = F.normalize(_features(model.get_image_features(**given)), dim=-1).cpu()
                yield (100 * (seen * texts[list(rows[first : first + len(part)])]).sum(-1)).clamp(min=0)
                first += len(part)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            if not (self.model / "config.json").is_file():
                raise DataError(f"No CLIP at {self.model}: give a folder that transformers' save_pretrained wrote.")
            try:
                from transformers import CLIPModel, CLIPProcessor

                settings = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
                with no_progress_bars():
                    model, about = CLIPModel.from_pretrained(self.model, use_safetensors=True, **settings)
                processor = CLIPProcessor.from_pretrained(self.model, local_files_only=True)
            except Exception as error:  # transformers, tokenizers and safetensors raise errors of their own
                raise DataError(f"CLIP in {self.model} cannot be loaded: {reason_of(error)}") from error
            if missing := sorted(about["missing_keys"]):
                raise DataError(f"CLIP in {self.model} lacks {len(missing)} weights, such as {missing[0]}.")
            self._loaded = model.eval(), processor
        return self._loaded


def _features(found: Any) -> Tensor:
    """Return projected features `[B, D]`; since version 5 of transformers they are in an output of several fields."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features.float()
