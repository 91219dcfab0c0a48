"""Train a conditional diffusion model."""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError
from bigain.training.augmentation import flip_and_shift
from bigain.training.optimizers import MuonWithAdamW
from bigain.training.timesteps import Timesteps, Uniform

__all__ = ["DiffusionTraining"]


class DiffusionTraining(LightningModule):
    """The error of the predicted noise, with conditions dropped for guidance.

    An unweighted squared error at uniform timesteps is what the diffusion classifier
    measures later; another density of timesteps weights it.

    Each batch has a generator of its own, seeded by the run's seed, the batch and the process, so that
    a run that was interrupted goes on as if it had not been. Text encoders and VAE are not trained.

    Args:
        backbone: A model conditioned on labels or prompts, usually of random weights. Prompts are
            those of the data's classes.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of the matrices.
        warmup_steps: Steps over which the rate rises from 0.
        decay_share: Share of the run over which it falls linearly to 0 at the end.
        schedule_steps: Length of the schedule, where the run stops before its end;
            by default the length of the run.
        label_dropout: Share of rows trained with the null condition, for guidance.
        compile: Compile the network (`torch.compile`).
        flip: Mirror images at random.
        shift: Largest random shift of images, in pixels.
        timesteps: How timesteps are drawn. Default: uniformly.

    Raises:
        SettingError: The backbone has no null condition, or takes prompts and the data has none.

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
        flip: bool = True,
        shift: int = 0,
        timesteps: Timesteps = Uniform(),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_steps, self.decay_share = warmup_steps, decay_share
        self.schedule_steps = schedule_steps
        self.label_dropout, self.compiled = label_dropout, compile
        self.flip, self.shift, self.timesteps = flip, shift, timesteps
        self._null = _null_condition(backbone)
        self._known: Condition | None = None

    def on_fit_start(self) -> None:
        self.backbone.network.train()  # a pipeline's folder loads for evaluation
        if self.compiled:
            self.backbone.network.compile(dynamic=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = self._generator(batch_idx)
        rows, device = len(batch["label"]), self.device
        images = flip_and_shift(batch["image"], self.flip, self.shift, generator)
        clean = self.backbone.encode_to_train(images)
        dropped = torch.rand(rows, generator=generator, device=device) < self.label_dropout
        timesteps = self.timesteps.draw(rows, self.backbone.process.steps, generator)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        # The last known condition is the null one.
        loss = self._loss(clean, noise, timesteps, torch.where(dropped, -1, batch["label"]))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _generator(self, batch_idx: int) -> torch.Generator:
        # Of steps, epochs and batches, a checkpoint counts only steps alike wherever in Lightning's loop it was saved.
        part = batch_idx % self._trainer.accumulate_grad_batches if self._trainer else 0
        seed = hash((torch.initial_seed(), self.global_step, part, self.global_rank))
        return torch.Generator(self.device).manual_seed(seed % 2**63)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        clean = self.backbone.encode_to_train(batch["image"])
        # The same noise and timesteps at every validation, so that losses compare.
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        steps = torch.arange(len(clean), device=self.device) * 389 % self.backbone.process.steps
        self.log("val_loss", self._loss(clean, noise, steps, batch["label"]), prog_bar=True, sync_dist=True)

    def _loss(self, clean: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        noisy = self.backbone.process.add_noise(clean, noise, timesteps)
        predicted = self.backbone.predict_noise(noisy, timesteps, self._conditions(labels))
        return (predicted - noise).square().mean()

    def _conditions(self, labels: Tensor) -> Condition:
        """Gather the conditions of labels `[B]`, where -1 is the null condition, without a host synchronisation."""
        if self._known is None:
            self._known = Condition.cat([self.backbone.embed(self._every_class()), self._null]).to(self.device)
        known = self._known
        return Condition(**{name: value[labels] for name, value in known.tensors.items()}, added=known.added)

    def _every_class(self) -> Sequence[int] | Sequence[str]:
        if self.backbone.conditioned_on == "labels":
            return range(self.backbone.label_count or 0)
        data = getattr(self._trainer, "datamodule", None)
        if data is None or not hasattr(data, "class_prompts"):
            raise SettingError(
                f"{type(self.backbone).__name__} is conditioned on prompts: train it on a data module that has them, "
                "bigain.data.module.ImageData."
            )
        prompts: tuple[str, ...] = data.class_prompts
        return prompts

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = MuonWithAdamW(self.named_parameters(), self.lr, self.weight_decay)
        total = self.schedule_steps or self.trainer.estimated_stepping_batches
        schedule = LambdaLR(optimizer, lambda step: _trapezoid(step, total, self.warmup_steps, self.decay_share))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _null_condition(backbone: Backbone) -> Condition:
    null = backbone.null(backbone.embed([0] if backbone.conditioned_on == "labels" else [""]))
    if null is None:
        raise SettingError(
            f"{type(backbone).__name__} has no null condition; DiffusionTraining takes a model that has one."
        )
    return null


def _trapezoid(step: int, total: float, warmup: int, decay_share: float) -> float:
    """Rise over `warmup` steps, stay, fall linearly to 0 over the last `decay_share`."""
    if not math.isfinite(total) or total < 1:
        return 1.0
    rise = (step + 1) / max(1, warmup)
    fall = (total - step) / max(1.0, decay_share * total)
    return max(0.0, min(1.0, rise, fall))
