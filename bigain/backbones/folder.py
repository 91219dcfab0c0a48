"""A pipeline in diffusers' format: a folder, or a repository of the Hugging Face hub."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bigain.errors import DataError, SettingError, first_line
from bigain.results.files import read_json
from bigain.results.quiet import no_progress_bars

__all__ = ["DTYPES", "HUB", "Dtype", "PipelineFolder"]

Dtype = Literal["fp32", "fp16", "bf16"]

DTYPES: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

HUB = "hub:"
"""Begins the name of a repository, so that a mistyped path never downloads."""

_INDEX = "model_index.json"

_FORMER = {"DiTTransformer2DModel": "Transformer2DModel", "PixArtTransformer2DModel": "Transformer2DModel"}
"""Names under which published checkpoints still have a class: the one that these were once part of."""

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is downloaded of a component: configuration, weights and vocabulary, and no code."""

_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that no backbone loads."""

_OTHERS = ("*.fp16.*", "*.bf16.*", "*.ema.*", "*non_ema*")
"""The same weights once more, and checkpoints of other programs."""


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that a pipeline's `save_pretrained` wrote.

    Nothing in it is run: classes are taken from diffusers and transformers, and only those
    that the caller accepts; weights are safetensors, or are read with `weights_only`.

    Args:
        path: The folder.
        index: The content of its `model_index.json`: library and class of each component.
    """

    path: Path
    index: Mapping[str, Any]

    @classmethod
    def open(cls, model: str | Path, pipelines: Collection[str]) -> "PipelineFolder":
        """Open a folder, or `hub:owner/name[@revision]`, which is downloaded unless it was before.

        Args:
            model: The folder or repository.
            pipelines: Names of the pipeline classes that the caller can use.

        Raises:
            DataError: No such folder or repository, no pipeline, or one of another class.
        """
        path = _downloaded(str(model), pipelines) if str(model).startswith(HUB) else Path(model).expanduser()
        if not (path / _INDEX).is_file():
            raise DataError(
                f"No model at {path}: it has no {_INDEX}. Give a folder that a diffusers pipeline's save_pretrained "
                f"wrote, or {HUB}owner/name[@revision] for a repository of the Hugging Face hub."
            )
        return cls(path, _index_of(path / _INDEX, str(path), pipelines))

    def has(self, name: str) -> bool:
        """Say whether the pipeline has a component of this name."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and None not in entry

    def module(self, name: str, accepted: Collection[str], dtype: torch.dtype) -> Any:
        """Load a network, in evaluation mode.

        Args:
            name: The component's name, which is that of its folder.
            accepted: Class names that the caller can use.
            dtype: Type of its weights.

        Raises:
            DataError: It is missing, of another class, or cannot be loaded.
        """
        found = self._class(name, accepted)
        try:
            if torch.get_default_device().type == "meta":  # as `bigain flops` builds it
                return _without_values(found, self.path / name).to(dtype).eval()
            # diffusers and transformers name the setting differently.
            kind = "dtype" if found.__module__.startswith("transformers.") else "torch_dtype"
            settings = {"local_files_only": True, "output_loading_info": True, kind: dtype}
            with no_progress_bars():
                network, about = found.from_pretrained(self.path / name, **settings)
        except Exception as error:  # either library, safetensors and torch raise errors of their own
            raise DataError(f"{name} in {self.path} cannot be loaded: {first_line(error)}") from error
        if missing := sorted(about["missing_keys"]):
            # Both libraries would go on with random values.
            raise DataError(f"{name} in {self.path} lacks {len(missing)} weights, such as {missing[0]}.")
        return network.eval()

    def settings(self, name: str) -> dict[str, Any]:
        """Read a component's `config.json`; empty where there is none."""
        file = self.path / name / "config.json"
        return read_json(file) if file.is_file() else {}

    def digest(self, name: str) -> str:
        """Fingerprint a component's files; for small ones, such as tokenizers."""
        found = hashlib.sha256()
        for file in sorted(file for file in (self.path / name).glob("*") if file.is_file()):
            found.update(file.name.encode() + file.read_bytes())
        return found.hexdigest()

    def tokenizer(self, name: str) -> Any:
        """Load a tokenizer of transformers.

        Raises:
            DataError: It is missing or cannot be loaded.
        """
        import transformers

        entry = self._entry(name)
        found = getattr(transformers, str(entry[1]), None)
        if not str(entry[1]).endswith(("Tokenizer", "TokenizerFast")) or found is None:
            raise DataError(f"{self.path / _INDEX} names {entry[1]} as {name}, which is no tokenizer of transformers.")
        self._check_sentencepiece(name)
        try:
            return found.from_pretrained(self.path / name, local_files_only=True)
        except Exception as error:  # tokenizers raise errors of their own
            raise DataError(f"{name} in {self.path} cannot be loaded: {first_line(error)}") from error

    @property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration."""
        file = self.path / "scheduler" / "scheduler_config.json"
        if not file.is_file():
            raise DataError(f"{self.path} lacks {file.relative_to(self.path)}, which defines the diffusion process.")
        return read_json(file)

    def _check_sentencepiece(self, name: str) -> None:
        """Name what a vocabulary of sentencepiece needs; transformers would ask for another package."""
        from transformers.utils import is_protobuf_available, is_sentencepiece_available

        file = self.path / name / "spiece.model"
        if not file.is_file() or (file.parent / "tokenizer.json").is_file():
            return
        if not (is_sentencepiece_available() and is_protobuf_available()):
            raise DataError(f"{file} needs sentencepiece and protobuf to be read: pip install 'bigain[sentencepiece]'.")

    def _entry(self, name: str) -> list[Any]:
        if not self.has(name):
            raise DataError(f"{self.path / _INDEX} names no {name}, which this model needs.")
        return list(self.index[name])

    def _class(self, name: str, accepted: Collection[str]) -> Any:
        library, found = self._entry(name)
        known = {**{_FORMER.get(one, one): one for one in accepted}, **{one: one for one in accepted}}
        if found not in known:
            raise DataError(f"{self.path / _INDEX} names {found} as {name}; accepted: {', '.join(sorted(accepted))}.")
        import diffusers
        import transformers

        home = transformers if library == "transformers" else diffusers
        if not hasattr(home, known[found]):
            raise DataError(f"{self.path / _INDEX} names {found} of {library}, which has no such class.")
        return getattr(home, known[found])


def _without_values(network: Any, folder: Path) -> Any:
    """Build a network of its configuration alone, on torch's default device."""
    if network.__module__.startswith("transformers."):
        return network(network.config_class.from_pretrained(folder))
    return network.from_config(network.load_config(folder))


def _index_of(file: Path, where: str, pipelines: Collection[str]) -> dict[str, Any]:
    index = read_json(file)
    found = index.get("_class_name")
    if found not in pipelines:
        raise DataError(f"{where} holds a {found}; accepted here: {', '.join(sorted(pipelines))}.")
    return index


def _downloaded(name: str, pipelines: Collection[str]) -> Path:
    """Download what a pipeline needs, after a look at what it is; nothing that was downloaded before."""
    owner_and_name, _, revision = name.removeprefix(HUB).partition("@")
    if owner_and_name.count("/") != 1:
        raise SettingError(f"A repository is {HUB}owner/name or {HUB}owner/name@revision; got {name!r}.")
    from huggingface_hub import snapshot_download

    def fetched(patterns: list[str]) -> Path:
        settings: dict[str, Any] = {"revision": revision or None, "ignore_patterns": list(_OTHERS)}
        return Path(snapshot_download(owner_and_name, allow_patterns=patterns, **settings))

    try:
        path = fetched([_INDEX])
        if not (path / _INDEX).is_file():
            raise DataError(f"{name} is no pipeline of diffusers: it has no {_INDEX}.")
        index = _index_of(path / _INDEX, name, pipelines)
        parts = [part for part, entry in index.items() if isinstance(entry, list) and part not in _UNUSED]
        fetched([_INDEX, *(f"{part}/{ending}" for part in parts for ending in _FILES)])
        if older := [f"{folder.name}/*.bin" for folder in _without_weights(path)]:
            fetched(older)
    except DataError:
        raise
    except Exception as error:  # the hub's errors, and those of the network
        raise DataError(f"{name} cannot be downloaded: {first_line(error)}") from error
    return path


def _without_weights(path: Path) -> list[Path]:
    """List components that have a network's configuration and no safetensors."""
    return [file.parent for file in path.glob("*/config.json") if not [*file.parent.glob("*.safetensors")]]
