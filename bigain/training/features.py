"""Train the small classifier whose features the Fréchet distance uses."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassAccuracy

from bigain.metrics.features import ResidualClassifier
from bigain.training.augmentation import flip_and_shift

__all__ = ["FeatureTraining"]


class FeatureTraining(LightningModule):
    """Supervised training with flips, shifts and label smoothing.

    Args:
        network: The classifier.
        lr: Peak learning rate of SGD with Nesterov momentum, one cycle.
        weight_decay: Weight decay.
        label_smoothing: Share of the target spread over all classes.
        shift: Largest random shift in pixels.
    """

    def __init__(
        self,
        network: ResidualClassifier,
        lr: float = 0.2,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.1,
        shift: int = 4,
    ) -> None:
        super().__init__()
        self.network = network
        self.lr, self.weight_decay = lr, weight_decay
        self.label_smoothing, self.shift = label_smoothing, shift
        self.accuracy = MulticlassAccuracy(network.head.out_features, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scores = self.network(flip_and_shift(batch["image"], True, self.shift))
        loss = F.cross_entropy(scores, batch["label"], label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.network(batch["image"]), batch["label"])
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self.lr, total_steps=total, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
