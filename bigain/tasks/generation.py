"""Generate images with a diffusion model under a token reducer."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bigain.adapters.placement import Placement
from bigain.assets import asset
from bigain.data.dataset import load_images
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.sampler import DDIMSampler
from bigain.errors import SettingError
from bigain.metrics.base import FeatureNetwork
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.frechet import FrechetReference
from bigain.reducers.base import Identity, TokenReducer
from bigain.results.provenance import fingerprint
from bigain.tasks.evaluation import EvaluationTask

__all__ = ["GenerationTask"]

_SHOWN = 100


class GenerationTask(EvaluationTask):
    """Fréchet distance of class-conditional samples.

    Writes `result.json`, `samples.safetensors` (every image, uint8, with label and
    seed) and `grid.png` (the first 100).

    Args:
        backbone: The model.
        reducer: What is attached to it.
        features: Features of the distance; the embedded ones by default, or
            `bigain.metrics.inception.InceptionFeatures` for FID.
        reference: Real images to compare with: a parquet file or class folders.
            Default: the embedded test images.
        steps: DDIM steps.
        guidance: Guidance scale; 1 is none.
        rows: Images drawn at once; changes speed, and figures by rounding at most.
        placement: Which blocks to attach to, and which parts of them. Default: those of
            the published methods.
        seed: Seeds what the reducer draws; images have seeds of their own.
        compile: Compile the network.
        output: Folder of the result.
        resume: Finish an interrupted run.
    """

    kind = "generation"

    def __init__(
        self,
        backbone: Backbone,
        reducer: TokenReducer = Identity(),
        features: FeatureNetwork | None = None,
        reference: Path | None = None,
        steps: int = 50,
        guidance: float = 1.5,
        rows: int = 64,
        placement: Placement = Placement(),
        seed: int = 0,
        compile: bool = False,  # noqa: A002 the name Lightning's users know
        output: Path = Path("results/generation"),
        resume: bool = False,
    ) -> None:
        super().__init__(backbone, reducer, placement, seed, compile, output, resume)
        # In a tuple, it is no part of this module: half precision would round its weights.
        self._features, self.reference = (features,), reference
        self.steps, self.guidance, self.rows = steps, guidance, rows
        self.sampler = DDIMSampler(backbone, steps, guidance, rows, self._at)
        self.real: FrechetReference | None = None
        self._real_images = torch.empty(0)

    def check(self) -> None:
        count = len(self.backbone.classes)
        classes = getattr(self.trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        if classes != count:
            raise SettingError(
                f"The model generates {count} classes, the prompts have {classes}: give --data.classes={count} "
                "with bigain.data.prompts.ClassPrompts."
            )
        if self.real is None:
            self._real_images = reference_images(self.reference, self.backbone)

    def settings(self) -> Mapping[str, Any]:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "images": data.count,
            "first_seed": data.first_seed,
            "reference": str(self.reference or "embedded test images"),
            "reference_images": self.real.source if self.real else fingerprint([self._real_images]),
            "features": features_identity(self._features[0]),
        }

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        fresh = [row for row, item in enumerate(batch["index"].tolist()) if item not in self.store.done]
        if not fresh:
            return
        label, seed = batch["label"][fresh], batch["seed"][fresh]
        self.store.add(batch["index"][fresh], {"label": label, "seed": seed, "image": self.sampler(label, seed)})

    def _at(self, timestep: float) -> AbstractContextManager[None]:
        # All rows are at one timestep, and the host knows it: what switches by timestep can settle.
        return nullcontext() if self.attached is None else self.attached.at(timestep)

    def summarize(self, held: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.real is None:
            network = (self._features[0] or EmbeddedFeatures()).to(self.device, torch.float32)
            self.real = FrechetReference.of(self._real_images, network)
        count = len(held["image"])
        return {
            "generated": count,
            "frechet": self.real.distance(held["image"]) if count > 1 else math.nan,
            "features": self.real.features,
            "reference_images": self.real.images,
            "evaluations_per_image": self.sampler.evaluations,
            "samples": fingerprint([held["image"]]),
        }

    def scores(self, summary: Mapping[str, Any]) -> Mapping[str, float]:
        name = "fid" if summary["features"] == "FID" else "frechet_distance"
        return {name: summary["frechet"], "generated": summary["generated"]}

    def write(self, folder: Path, held: Mapping[str, Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in held.items()}, folder / "samples.safetensors")
        tile_images(held["image"][:_SHOWN]).save(folder / "grid.png")


def reference_images(path: Path | None, backbone: Backbone) -> Tensor:
    """Load the real images of a distance, uint8, `[N, 3, H, W]`; the embedded ones without a path.

    Raises:
        DataError: They cannot be read.
        SettingError: There are fewer than two.
    """
    path = path or asset("cifar10_test/test.parquet")
    images = load_images(path, backbone.image_size, backbone.classes).images
    if len(images) < 2:
        raise SettingError(f"{path}: a distance needs two reference images or more.")
    return images


def features_identity(network: FeatureNetwork | None) -> str:
    """Name features so that equal names mean equal features."""
    return "embedded" if network is None else f"{network.label} {fingerprint(network.state_dict())}"


def tile_images(images: Tensor, columns: int = 10) -> Image.Image:
    """Lay images out in rows.

    Args:
        images: uint8, `[N, 3, H, W]`.
        columns: Images a row.
    """
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = images.new_full((rows * columns, 3, height, width), 255)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, 3).contiguous().cpu().numpy())
