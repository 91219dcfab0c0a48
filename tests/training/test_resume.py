"""A run that was interrupted ends with the same weights; averages are what a slow loop finds."""

import time
from itertools import chain

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from bigain.assets import asset
from bigain.backbones.pixel_dit import PixelDiT
from bigain.data.module import ImageData
from bigain.errors import DataError, SettingError
from bigain.training.averages import PowerAverage, PowerAverages
from bigain.training.diffusion import DiffusionTraining
from bigain.training.export import export_checkpoint
from bigain.training.time_limit import TimeLimit
from bigain.training.timesteps import LogitNormal

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
LENGTHS = [0.05, 0.2]


class Watching(Callback):
    """Notes the images of each batch and the weights after it."""

    def __init__(self):
        self.seen, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(batch["index"].tolist())
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])


class StopAfter(Callback):
    """Stops as the time limit does, at a known step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.should_stop = True


@pytest.fixture(scope="module")
def data():
    test = asset("cifar10_test/test.parquet")
    return ImageData(train=test, test=test, limit=4, chunk=6, resident=True, held_out=4980)


def fit(data, folder, stop=None, resume=None, steps=7, lengths=LENGTHS):
    torch.manual_seed(3)
    backbone = PixelDiT(weights=None, width=8, depth=1, heads=1, image_size=32)
    task = DiffusionTraining(backbone, lr=0.01, compile=False, warmup_steps=2, shift=2, timesteps=LogitNormal())
    watching, averages = Watching(), PowerAverages(lengths)
    callbacks = [averages, watching, TimeLimit(folder / "last.ckpt")] + ([StopAfter(stop)] if stop else [])
    # Two callbacks that save, at moments of their own.
    callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1))
    trainer = Trainer(max_steps=steps, callbacks=callbacks, **QUIET)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return watching, averages, trainer


@pytest.mark.parametrize("saved", ["last.ckpt", "step=3.ckpt"])
def test_an_interrupted_run_ends_with_the_same_digits(data, tmp_path, saved):
    whole, averages, trainer = fit(data, tmp_path)
    first, _, _ = fit(data, tmp_path / "cut", stop=3)
    second, resumed, again = fit(data, tmp_path / "cut", resume=tmp_path / "cut" / saved)
    assert first.seen + second.seen == whole.seen
    assert {*chain(*whole.seen)} == set(range(20))  # the last 4,980 of 5,000 are held out
    for one, other in zip(whole.weights, first.weights + second.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for length in averages.averages:
        torch.testing.assert_close(averages.averages[length].values, resumed.averages[length].values, rtol=0, atol=0)
    rates = [each.optimizers[0].param_groups[0]["lr"] for each in (trainer, again)]
    assert rates == [0, 0]  # the schedule ends where the run does


def test_a_checkpoint_ships_the_average_that_was_chosen(data, tmp_path):
    watching, averages, _ = fit(data, tmp_path)
    checkpoint, shipped = tmp_path / "last.ckpt", tmp_path / "w.safetensors"
    export_checkpoint(checkpoint, shipped, "backbone.network.", "0.2")
    names = [name for name, _ in PixelDiT(weights=None, width=8, depth=1, heads=1).network.named_parameters()]
    found = load_file(shipped)
    for name, value in zip(names, averages.averages["0.2"].values, strict=True):
        torch.testing.assert_close(found[name], value.half())
    current = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.testing.assert_close([current[f"backbone.network.{name}"] for name in names], watching.weights[-1])
    for wrong in (None, "0.3"):
        with pytest.raises(DataError, match=r"averages of the lengths 0\.05, 0\.2; --average"):
            export_checkpoint(checkpoint, shipped, "backbone.network.", wrong)
    with pytest.raises(DataError, match=r"the recipe of 0\.1"):
        fit(data, tmp_path, resume=checkpoint, lengths=[0.1], steps=9)


def test_time_runs_out_and_a_checkpoint_is_left(data, tmp_path):
    torch.manual_seed(0)
    backbone = PixelDiT(weights=None, width=8, depth=1, heads=1)
    task, limit = DiffusionTraining(backbone, compile=False), TimeLimit(tmp_path / "last.ckpt", 2.0, every=2)
    trainer = Trainer(max_steps=10**6, callbacks=[limit], enable_checkpointing=False, **QUIET)
    began = time.monotonic()
    trainer.fit(task, datamodule=data)
    assert time.monotonic() - began < 30
    assert 0 < trainer.global_step < 10**6
    assert trainer.global_step % 2 == 0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == trainer.global_step


@pytest.mark.parametrize("length", [0.05, 0.1, 0.28])
def test_an_average_spans_the_share_that_it_is_named_for(length):
    """Averaging the number of the step, and its square, gives mean and deviation of the steps that count."""
    values = torch.tensor([0.0, 0.0], dtype=torch.float64)
    average = PowerAverage([values], length)
    steps = 4000
    for step in range(1, steps + 1):
        average.update([torch.tensor([step, step**2], dtype=torch.float64)], step, step - 1)
    mean, square = average.values[0]
    assert float((square - mean**2).sqrt()) / steps == pytest.approx(length, rel=2e-3)


def test_updating_seldom_gives_nearly_the_same():
    often, seldom = (PowerAverage([torch.zeros(1)], 0.1) for _ in range(2))
    for step in range(1, 2001):
        often.update([torch.tensor([float(step)])], step, step - 1)
        if step % 10 == 0:
            seldom.update([torch.tensor([float(step)])], step, step - 10)
    torch.testing.assert_close(often.values, seldom.values, rtol=4e-3, atol=0)


@pytest.mark.parametrize("lengths", [[], [0.1, 0.1], [0.3], [0.0]])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises(SettingError, match="length"):
        PowerAverages(lengths)


@pytest.mark.parametrize("settings", [{"seconds": 0}, {"every": 0}])
def test_impossible_limits_are_refused(settings, tmp_path):
    with pytest.raises(SettingError, match="TimeLimit takes"):
        TimeLimit(tmp_path, **settings)


def test_holding_out_everything_is_refused():
    test = asset("cifar10_test/test.parquet")
    with pytest.raises(DataError, match="held_out is from 0 to 4999"):
        ImageData(train=test, limit=4, held_out=5000).setup("fit")
