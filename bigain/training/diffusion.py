"""Train a class-conditional diffusion model."""

import math

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError
from bigain.training.optimizers import MuonWithAdamW

__all__ = ["DiffusionTraining"]


class DiffusionTraining(LightningModule):
    """The error of the predicted noise, with uniform timesteps and label dropout.

    Uniform timesteps and an unweighted squared error are what the diffusion
    classifier measures later, so training minimises exactly that.

    Args:
        backbone: A model conditioned on labels, usually with `weights: null`.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of the matrices.
        warmup_steps: Steps over which the rate rises from 0.
        decay_share: Share of the run over which it falls linearly to 0 at the end.
        schedule_steps: Length of the schedule, where the run stops before its end;
            by default the length of the run.
        label_dropout: Share of rows trained without a label, for guidance.
        compile: Compile the network (`torch.compile`).

    Raises:
        SettingError: The backbone is conditioned on prompts, or has no unconditional label.

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 14;
        Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), algorithm 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 300,
        decay_share: float = 0.6,
        schedule_steps: int | None = None,
        label_dropout: float = 0.1,
        compile: bool = True,  # noqa: A002 the name Lightning's users know
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.keep_latents = False
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_steps, self.decay_share = warmup_steps, decay_share
        self.schedule_steps = schedule_steps
        self.label_dropout, self.compiled = label_dropout, compile
        self._null_label = _null_label(backbone)

    def on_fit_start(self) -> None:
        if self.compiled:
            self.backbone.network.compile(dynamic=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch["image"], batch["label"]
        rows = len(labels)
        flip = torch.rand(rows, 1, 1, 1, device=self.device) < 0.5
        clean = self.backbone.encode(torch.where(flip, images.flip(-1), images))
        dropped = torch.rand(rows, device=self.device) < self.label_dropout
        labels = torch.where(dropped, self._null_label, labels)
        timesteps = torch.randint(self.backbone.process.steps, (rows,), device=self.device)
        loss = self._loss(clean, torch.randn_like(clean), timesteps, labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        clean = self.backbone.encode(batch["image"])
        # The same noise and timesteps at every validation, so that losses compare.
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        steps = torch.arange(len(clean), device=self.device) * 389 % self.backbone.process.steps
        self.log("val_loss", self._loss(clean, noise, steps, batch["label"]), prog_bar=True, sync_dist=True)

    def _loss(self, clean: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        noisy = self.backbone.process.add_noise(clean, noise, timesteps)
        predicted = self.backbone.predict_noise(noisy, timesteps, Condition(labels=labels))
        return (predicted - noise).square().mean()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = MuonWithAdamW(self.named_parameters(), self.lr, self.weight_decay)
        total = self.schedule_steps or self.trainer.estimated_stepping_batches
        schedule = LambdaLR(optimizer, lambda step: _trapezoid(step, total, self.warmup_steps, self.decay_share))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _null_label(backbone: Backbone) -> int:
    null = backbone.null(backbone.embed([0])) if backbone.conditioned_on == "labels" else None
    if null is None or null.labels is None:
        raise SettingError(
            f"{type(backbone).__name__} is conditioned on {backbone.conditioned_on}; DiffusionTraining takes a model "
            "that is conditioned on labels and has a null label."
        )
    return int(null.labels[0])


def _trapezoid(step: int, total: float, warmup: int, decay_share: float) -> float:
    """Rise over `warmup` steps, stay, fall linearly to 0 over the last `decay_share`."""
    if not math.isfinite(total) or total < 1:
        return 1.0
    rise = (step + 1) / max(1, warmup)
    fall = (total - step) / max(1.0, decay_share * total)
    return max(0.0, min(1.0, rise, fall))
