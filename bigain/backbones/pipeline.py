"""What backbones of diffusers' pipelines share: latents of a VAE, prompts that are embedded once."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from bigain.backbones.folder import DTYPES, Dtype, PipelineFolder
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import NumericalError, SettingError
from bigain.results.cache import TensorCache

__all__ = ["Offloaded", "PipelineBackbone", "PromptBackbone"]


class Offloaded:
    """A network that works seldom: it is on the device while it works, and on the host otherwise.

    It is no submodule of a backbone, so that Lightning neither moves it nor changes its type.
    """

    def __init__(self, network: Any) -> None:
        self.network: Any = network.requires_grad_(requires_grad=False)

    def __deepcopy__(self, memo: object) -> "Offloaded":
        """Share it: a copied backbone, as operations are counted on, needs no second T5."""
        return self

    @property
    def is_meta(self) -> bool:
        """Whether it has shapes and no values."""
        return bool(next(self.network.parameters()).is_meta)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Any]:
        """Yield the network on a device; where it is, if that is the meta device, which has no values."""
        if device.type == "meta":
            yield self.network
            return
        try:
            yield self.network.to(device)
        finally:
            if device.type != "cpu":
                self.network.to("cpu")


class PipelineBackbone(Backbone):
    """A network of a diffusers pipeline that works on the latents of a VAE.

    Latents are `(mean - shift) x scale`, and are kept on disk (`bigain cache`).

    Attributes:
        pipelines: Classes of the pipelines whose folders it loads.
        network_name: Name of the component that reducers are attached to.
        networks: Class names that are accepted for it.
        vaes: Class names that are accepted for the VAE.
        half_precision: The half precision that its checkpoints are published for.

    Args:
        model: A folder that the pipeline's `save_pretrained` wrote, or
            `hub:owner/name[@revision]`.
        dtype: Type of the network and the text encoders. The VAE stays in float32 where its
            configuration says that half precision overflows (`force_upcast`).
        image_size: Side of the images, in pixels. Default: the size of the network's training.

    Raises:
        DataError: No such model, one of another kind, or one that cannot be loaded.
        SettingError: An image size that the VAE or the network cannot divide.
    """

    pipelines: ClassVar[tuple[str, ...]]
    networks: ClassVar[tuple[str, ...]]
    network_name: ClassVar[str] = "transformer"
    vaes: ClassVar[tuple[str, ...]] = ("AutoencoderKL",)
    half_precision: ClassVar[Dtype] = "fp16"
    network: Any

    def __init__(self, model: str | Path, dtype: Dtype = "fp32", image_size: int | None = None) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise SettingError(f"dtype is one of {', '.join(DTYPES)}; got {dtype!r}.")
        self._folder = PipelineFolder.open(model, self.pipelines)
        self._dtype = DTYPES[dtype]
        self.scheduler = self._folder.scheduler
        _ = self.process  # raises if the configuration is impossible
        self.network = self._folder.module(self.network_name, self.networks, self._dtype)
        self._vae = Offloaded(self._load_vae())
        config = self._vae.network.config
        self._factor = 2 ** (len(config.block_out_channels) - 1)
        self.image_size = self._checked_size(image_size)
        side = self.image_size // self._factor
        self.latent_shape = (int(config.latent_channels), side, side)
        self._latents = TensorCache([self._vae.network], {"scale": self._scale, "shift": self._shift})

    def _load_vae(self) -> Any:
        settings = self._folder.settings("vae")
        # Without the setting the class's default counts, which is that it overflows.
        overflows = self._dtype == torch.float16 and settings.get("force_upcast", True)
        return self._folder.module("vae", self.vaes, torch.float32 if overflows else self._dtype)

    def _checked_size(self, size: int | None) -> int:
        found, patch = self._default_side * self._factor if size is None else size, self._patch
        if found < 1 or found % (self._factor * patch):
            raise SettingError(
                f"image_size is a multiple of {self._factor * patch} ({self._factor} pixels a latent"
                f"{f', {patch} latents a patch' if patch > 1 else ''}); got {found}."
            )
        return found

    @property
    def _patch(self) -> int:
        """Latents along an axis that the network takes as one token."""
        return int(getattr(self.network.config, "patch_size", None) or 1)

    @property
    def _default_side(self) -> int:
        """Latents along an axis of the images that the network was trained on."""
        return int(self.network.config.sample_size)

    @property
    def _scale(self) -> float:
        return float(self._vae.network.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self._vae.network.config, "shift_factor", None) or 0.0)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "vae": self._latents.identity}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return cast("torch.device", next(self.network.parameters()).device)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images one at a time, so that latents do not depend on the batch."""
        given = [image.contiguous() for image in images.cpu()]
        keys = [f"{tuple(image.shape)} {self.device.type}".encode() + image.numpy().tobytes() for image in given]
        found = [self._latents.find(key) for key in keys]
        if None in found:
            with _exactly(self.device), self._vae.on(self.device) as vae:
                for index, (key, image) in enumerate(zip(keys, given, strict=True)):
                    if found[index] is None:
                        found[index] = self._latents.keep(
                            key, {"latents": self._encoded(vae, image[None].to(self.device))[0]}
                        )
        return torch.stack([one["latents"] for one in found if one is not None]).to(images.device)

    def encode_to_train(self, images: Tensor) -> Tensor:
        # The VAE stays on the device from the first batch on. No inference mode: gradients flow through what follows.
        vae = self._vae.network.to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self._encoded(vae, images)

    def _encoded(self, vae: Any, images: Tensor) -> Tensor:
        pixels = (images.float() / 127.5 - 1).to(vae.dtype)
        mean: Tensor = vae.encode(pixels).latent_dist.mean.float()
        return (mean - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents one at a time, with as little memory as that needs."""
        with _exactly(latents.device), self._vae.on(latents.device) as vae:
            rows = (latents / self._scale + self._shift).to(vae.dtype)
            images = torch.cat([vae.decode(row[None], return_dict=False)[0].float() for row in rows])
        if not images.isfinite().all():
            raise NumericalError(f"The VAE returned NaN or infinity in {rows.dtype}. Try dtype fp32 or bf16.")
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def without_variance(self, found: Tensor) -> Tensor:
        """Drop a learned variance: `[B, C, h, w]` in float32 of a network's output, `[B, C or 2C, h, w]`."""
        channels = self.latent_shape[0]
        return (found[:, :channels] if found.shape[1] == 2 * channels else found).float()


class PromptBackbone(PipelineBackbone):
    """A network of a diffusers pipeline that is conditioned on prompts.

    A prompt is embedded by itself, once, and kept on disk (`bigain cache`).

    Attributes:
        encoders: Names of the pipeline's text encoders and the class names that are accepted for each.
        optional: Those that a pipeline may lack.
    """

    conditioned_on = "prompts"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]]
    optional: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: str | Path, dtype: Dtype = "fp32", image_size: int | None = None) -> None:
        super().__init__(model, dtype, image_size)
        present = {name: accepted for name, accepted in self.encoders.items() if self._needs(name)}
        self._encoders = {
            name: Offloaded(self._folder.module(name, kinds, self._dtype)) for name, kinds in present.items()
        }
        self._tokenizers = {name: self._folder.tokenizer(_words_of(name)) for name in present}
        # Models of different lengths may share an encoder, as PixArt-alpha and -Sigma do.
        settings = {"class": type(self).__name__, **{name: self.longest_prompt(name) for name in present}}
        settings |= {f"words of {name}": self._folder.digest(_words_of(name)) for name in present}
        self._texts = TensorCache([one.network for one in self._encoders.values()], settings)

    def _needs(self, name: str) -> bool:
        return name not in self.optional or self._folder.has(name)

    def embed(self, conditions: Sequence[int] | Sequence[str] | Tensor) -> Condition:
        prompts = [prompt for prompt in conditions if isinstance(prompt, str)]
        if isinstance(conditions, str) or not prompts or len(prompts) < len(conditions):
            raise SettingError(
                f"{type(self).__name__} is conditioned on prompts, one or more; got {list(conditions)[:3]}."
            )
        for prompt in prompts:
            self.check_prompt(prompt)
        if any(one.is_meta for one in self._encoders.values()):  # operations are counted, and nothing is kept
            ready = {name: one.network for name, one in self._encoders.items()}
            rows = [Condition(**self.encode_prompt(prompt, ready), added=self.added()) for prompt in prompts]
            return Condition.cat(rows)
        device = self.text_device or self.device
        keys = [f"{device.type} {prompt}".encode() for prompt in prompts]
        found = [self._texts.find(key) for key in keys]
        if None in found:
            with _exactly(device), ExitStack() as stack:
                ready = {name: stack.enter_context(one.on(device)) for name, one in self._encoders.items()}
                for index, (key, prompt) in enumerate(zip(keys, prompts, strict=True)):
                    if found[index] is None:
                        found[index] = self._texts.keep(key, self.encode_prompt(prompt, ready))
        added = self.added()
        return Condition.cat([Condition(**one, added=added) for one in found if one is not None])

    def null(self, condition: Condition) -> Condition | None:
        """Return the empty prompt's condition for each row."""
        return self.embed([""]).take([0] * len(condition))

    @abstractmethod
    def encode_prompt(self, prompt: str, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the text encoders on one prompt; return the tensors of a condition of one row."""

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that is too long.

        Raises:
            SettingError: A text encoder does not see all of it, and no other one sees the rest.
        """
        for name, tokenizer in self._tokenizers.items():
            most = self.longest_prompt(name)
            # Quietly: transformers would warn of what is refused here.
            if most is not None and (count := len(tokenizer(prompt, verbose=False).input_ids)) > most:
                raise SettingError(
                    f"The prompt {prompt[:40]!r}.. has {count} tokens; the {name} of this model sees {most}. Shorten "
                    "it."
                )

    def longest_prompt(self, name: str) -> int | None:
        """Return how many tokens a text encoder sees; `None` where it may see less than another one."""
        most = getattr(self._encoders[name].network.config, "max_position_embeddings", None)
        return min(int(self._tokenizers[name].model_max_length), int(most or 1e9))

    def token_ids(self, prompt: str, name: str, length: int, encoder: Any) -> Tensor:
        """Return a prompt's tokens for a text encoder, filled up or cut to `length`, on its device: `[1, length]`."""
        found = self._tokenizers[name](
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = found.input_ids.to(encoder.device)
        return ids

    def added(self) -> Mapping[str, Tensor]:
        """Return what is the same for every prompt, each `[1, ...]`."""
        return {}


def _words_of(encoder: str) -> str:
    """Return the name of a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Compute in the types that tensors have: Lightning's mixed precision would change them, and results are kept."""
    with torch.inference_mode(), torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
        yield
