"""Measure what recipes/train/probe.py trained: accuracy, and what merging and leaving out attention cost."""

import argparse
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

import bigain
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.prompts import PROMPT, fill_prompt
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages

LOG = logging.getLogger("probe")
CHUNK = 100
"""Images that are classified at once."""


class NoAttention:
    """An attention processor that attends to nothing."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


def conditions(backbone: Backbone) -> Condition:
    """Embed the ten classes and, last, the null condition."""
    known = range(10) if backbone.conditioned_on == "labels" else fill_prompt(PROMPT, CIFAR10_CLASSES)
    classes = backbone.embed(list(known))
    return Condition.cat([classes, backbone.null(classes.take([0]))])


def measure(backbone: Backbone, given: argparse.Namespace, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Classify without a reducer, with L-GTM, and a U-Net without self-attention.

    Args:
        backbone: The trained model.
        given: Settings `images`, `reduced_images`, `rows` and `trials`.
        images: uint8, `[N, 3, H, W]`, not trained on.
        labels: int64, `[N]`.

    Returns:
        Accuracies in percent; differences of the same images, in points, with their 95 % intervals.
    """
    network = backbone.network.eval()
    network.to(torch.bfloat16 if images.is_cuda else torch.float32)
    probed = Probed(backbone, given, images, labels)
    line = probed.without_reducer()
    blocks = [module for module in network.modules() if type(module).__name__ == "BasicTransformerBlock"]
    sites, first = len(blocks), max(1, len(blocks) * 3 // 7)
    for name, layers in ((f"lgtm50_first{first}", first), (f"lgtm50_all{sites}", sites)):
        with bigain.attach(network, "lgtm", ratio=0.5, layers=layers):
            line |= probed.paired(name)
    if backbone.conditioned_on == "prompts":
        for block in blocks:
            block.attn1.set_processor(NoAttention())
        line |= probed.paired("no_self_attention")
    return line


class Probed:
    """A model, its classifier, and the images that it classifies; the arguments are those of `measure`."""

    def __init__(self, backbone: Backbone, given: argparse.Namespace, images: Tensor, labels: Tensor) -> None:
        self.backbone, self.images, self.labels = backbone, images, labels
        self.count, self.few = min(given.images, len(images)), min(given.reduced_images, len(images))
        stages = Stages((given.trials,), (1,))
        noise = NoiseSet.draw(0, stages.timesteps(backbone.process.steps), backbone.latent_shape).to(images.device)
        classes = conditions(backbone).take(list(range(10)))
        self.classifier = DiffusionClassifier(
            backbone.predict_noise, backbone.process, noise, stages, classes, rows=given.rows
        )
        self.base = torch.empty(0)

    def without_reducer(self) -> dict[str, Any]:
        """Find the accuracy, over all timesteps and at each alone."""
        began = time.monotonic()
        errors = self.errors(self.count)
        self.base = self.right(errors)
        by_timestep = (errors.argmin(1) == self.labels[: self.count, None]).float().mean(0)
        top1 = round(100 * float(self.base.mean()), 1)
        LOG.info("evaluated without a reducer: %g %%", top1)
        timesteps = [round(100 * value) for value in by_timestep.tolist()]
        return {"top1": top1, "by_timestep": timesteps, "eval_s": round(time.monotonic() - began, 1)}

    def paired(self, name: str) -> dict[str, Any]:
        """Find by how much the network as it is now differs from the one without a reducer."""
        began = time.monotonic()
        apart = self.right(self.errors(self.few)) - self.base[: self.few]
        found = f"{100 * float(apart.mean()):.1f} ± {196 * float(apart.std()) / self.few**0.5:.1f}"
        LOG.info("evaluated %s: %s", name, found)
        return {name: found, f"{name}_s": round(time.monotonic() - began, 1)}

    @torch.no_grad()
    def errors(self, count: int) -> Tensor:
        """Classify the first images: errors, `[count, 10, trials]`."""
        chunks = [self.images[i : min(i + CHUNK, count)] for i in range(0, count, CHUNK)]
        return torch.cat([self.classifier(self.backbone.encode_to_train(chunk)).errors for chunk in chunks])

    def right(self, errors: Tensor) -> Tensor:
        """Say of each image whether its class errs least: float32, `[count]`."""
        return (errors.mean(-1).argmin(-1) == self.labels[: len(errors)]).float()
