"""Train one candidate of recipes/train/probe.py for some seconds, and have it measured."""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cifar10_sd_start import small_pipeline
from probe_candidates import CANDIDATES, Candidate
from probe_measure import conditions, measure
from safetensors.torch import save_file
from torch import Tensor, nn

from bigain.backbones.pixel_dit import PixelDiT
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.training.augmentation import flip_and_shift
from bigain.training.averages import PowerAverage
from bigain.training.optimizers import MuonWithAdamW
from bigain.training.timesteps import LogitNormal, Uniform

LOG = logging.getLogger("probe")
COMPILED = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers that `--compile blocks` compiles."""


def probe(given: argparse.Namespace, name: str) -> str:
    """Train a candidate, save its weights and measure it; returns the line of JSON."""
    began = time.monotonic()
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available() and not given.tiny
    device = torch.device("cuda" if on_gpu else "cpu")
    candidate = CANDIDATES[name].tiny() if given.tiny else CANDIDATES[name]
    backbone = build(candidate).to(device)
    images, labels = (value.to(device) for value in torch.load(given.cache, weights_only=True).values())
    held = 1000 if len(images) > 2000 else 100
    millions = sum(parameter.numel() for parameter in backbone.network.parameters()) / 1e6
    LOG.info("%s built: %.2f M values, %d images on %s", name, millions, len(images), device)
    line = {"name": name, "M": round(millions, 2)}
    if given.score:
        line |= load_average(backbone, given.score, given.length)
    else:
        line |= train(backbone, candidate, given, images[:-held], labels[:-held])
        save(backbone, given.out / f"{name}.safetensors")
    line |= measure(backbone, given, images[-held:], labels[-held:])
    line |= {"whole_s": round(time.monotonic() - began), "gpu": torch.cuda.get_device_name() if on_gpu else "cpu"}
    return json.dumps(line)


def build(candidate: Candidate) -> Backbone:
    """Make the model, untrained."""
    if candidate.kind == "dit":
        return PixelDiT(weights=None, **candidate.shape)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "start"
        small_pipeline(folder, **candidate.shape).save_pretrained(folder)
        return StableDiffusion(folder)


class Loss:
    """The error of the predicted noise on a batch drawn at random.

    Args:
        backbone: The model.
        candidate: How it is trained.
        rows: Images of a batch.
        images: uint8, `[N, 3, H, W]`.
        labels: int64, `[N]`.
    """

    def __init__(self, backbone: Backbone, candidate: Candidate, rows: int, images: Tensor, labels: Tensor) -> None:
        self.backbone, self.rows, self.images, self.labels = backbone, rows, images, labels
        self.shift = candidate.shift
        self.timesteps = LogitNormal(**candidate.timesteps) if candidate.timesteps else Uniform()
        self.known = conditions(backbone).to(images.device)
        self.generator = torch.Generator(images.device).manual_seed(1)

    def __call__(self) -> Tensor:
        device, backbone, generator = self.images.device, self.backbone, self.generator
        index = torch.randint(len(self.images), (self.rows,), generator=generator, device=device)
        clean = backbone.encode_to_train(flip_and_shift(self.images[index], True, self.shift, generator))
        t = self.timesteps.draw(self.rows, backbone.process.steps, generator)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        dropped = torch.rand(self.rows, generator=generator, device=device) < 0.1
        row = torch.where(dropped, -1, self.labels[index])  # the last condition is the null one
        condition = Condition(**{n: v[row] for n, v in self.known.tensors.items()}, added=self.known.added)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = backbone.predict_noise(backbone.process.add_noise(clean, noise, t), t, condition)
        return (found - noise).square().mean()


def train(
    backbone: Backbone, candidate: Candidate, given: argparse.Namespace, images: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Train for `given.seconds` and leave the average in the model; returns the facts of the run."""
    rows = given.batch if candidate.kind == "dit" else given.batch // 2
    network = backbone.network.train()
    compile_parts(network, given.compile)
    optimizer = MuonWithAdamW(network.named_parameters(), candidate.lr, 0.01)
    average = PowerAverage(network.parameters(), given.length)
    loss_of = Loss(backbone, candidate, rows, images, labels)
    began = time.monotonic()
    warm_up(loss_of, optimizer)
    compiling, began = time.monotonic() - began, time.monotonic()
    LOG.info("compiled (%s) within %.1f s", given.compile, compiling)
    curve, step = descend(loss_of, optimizer, average, candidate.lr, given.seconds)
    seconds = time.monotonic() - began
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), average.values, strict=True):
            parameter.copy_(value)
    for module in network.modules():
        module._compiled_call_impl = None  # noqa: SLF001 torch has no verb to undo compile()
    return {
        "compile_s": round(compiling, 1),
        "train_s": round(seconds, 1),
        "steps": step,
        "images_per_s": round(step * rows / seconds, 1),
        "epochs": round(step * rows / len(images), 2),
        "loss": curve[-1] if curve else None,
        "GB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if images.is_cuda else None,
    }


def compile_parts(network: nn.Module, how: str) -> None:
    """Compile the network, or each of its blocks."""
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 blocks of one class share a code object
    if how == "whole":
        network.compile(dynamic=False)
    elif how == "blocks":
        for block in (module for module in network.modules() if type(module).__name__ in COMPILED):
            block.compile(dynamic=False)


def warm_up(loss_of: Loss, optimizer: MuonWithAdamW) -> None:
    """Compile by passes from which nothing is learned."""
    for number in range(3):
        loss_of().backward()
        optimizer.zero_grad(set_to_none=True)
        wait(loss_of.images.device)
        LOG.info("pass %d of 3 to compile", number + 1)


def descend(
    loss_of: Loss, optimizer: MuonWithAdamW, average: PowerAverage, lr: float, seconds: float
) -> tuple[list[float], int]:
    """Train until the time is over, of which the rate's schedule is a function; returns losses and steps."""
    parameters = list(loss_of.backbone.network.parameters())
    device, began, step, running, curve = loss_of.images.device, time.monotonic(), 0, 0.0, list[float]()
    while (share := (time.monotonic() - began) / seconds) < 1:
        rate = lr * min(1.0, share / 0.05 + 0.02, (1 - share) / 0.6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(parameters, step, step - 1)
        running = running + loss.detach()
        if step % 10 == 0:
            wait(device)  # the host must not run ahead of the clock
        if step % 50 == 0:
            curve.append(round(float(running) / 50, 4))
            running = 0.0
            LOG.info("step %d loss %g rate %.2g", step, curve[-1], rate)
    wait(device)
    LOG.info("trained %d steps", step)
    return curve, step


def wait(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def load_average(backbone: Backbone, file: Path, length: float) -> dict[str, Any]:
    """Load what `bigain export` would write of a checkpoint's average."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    state = {**content["state_dict"], **content["averages"][f"{length:g}"]}
    prefix = "backbone.network."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    backbone.network.load_state_dict({name: value.half().float() for name, value in own.items()})
    return {"length": length, "step": content["global_step"]}


def save(backbone: Backbone, file: Path) -> None:
    """Write the weights, values as halves."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = backbone.network.state_dict()
    save_file({k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}, file)
    LOG.info("saved %s", file)
