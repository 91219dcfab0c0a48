"""Training: the loss falls, the average is kept, a checkpoint resumes and ships."""

import pytest
import torch
from diffusers import DDIMScheduler
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from torch import nn

from bigain.backbones.pixel_dit import WEIGHTS_NAME, PixelDiT
from bigain.errors import DataError, SettingError
from bigain.metrics.features import ResidualClassifier
from bigain.training.diffusion import DiffusionTraining, _trapezoid
from bigain.training.export import export_checkpoint
from bigain.training.features import FeatureTraining
from bigain.training.optimizers import MuonWithAdamW

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def loader(size=8, count=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    # Each class has a colour of its own, so that there is something to learn.
    colours = torch.randint(0, 256, (10, 3, 1, 1), generator=generator)
    images = colours[labels].expand(-1, -1, size, size).to(torch.uint8)
    rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    return torch.utils.data.DataLoader(rows, batch_size=16)


def tiny(**settings):
    torch.manual_seed(0)
    backbone = PixelDiT(weights=None, width=16, depth=2, heads=2, image_size=8)
    return DiffusionTraining(backbone, compile=False, warmup_steps=2, **settings)


def fit(task, folder, steps, ckpt_path=None):
    callbacks = [
        EMAWeightAveraging(decay=0.5),
        ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=1),
    ]
    trainer = Trainer(max_steps=steps, callbacks=callbacks, **QUIET)
    trainer.fit(task, loader(), ckpt_path=ckpt_path)
    return trainer


def test_the_loss_falls(tmp_path):
    task = tiny(lr=5e-3)
    trainer = Trainer(max_steps=40, enable_checkpointing=False, **QUIET)
    before = trainer.validate(task, loader(), verbose=False)[0]["val_loss"]
    trainer.fit(task, loader())
    assert trainer.validate(task, loader(), verbose=False)[0]["val_loss"] < 0.8 * before


def test_a_fresh_model_predicts_nothing_and_starts_at_loss_one():
    """adaLN-Zero: every block is the identity and the last projection is zero."""
    task = tiny()
    noisy = torch.randn(4, 3, 8, 8)
    found = task.backbone.predict_noise(noisy, torch.arange(4), task.backbone.embed(range(4)))
    assert not found.any()


def test_a_checkpoint_resumes_and_exports_the_average(tmp_path):
    trainer = fit(tiny(), tmp_path, 3)
    resumed = tiny()
    assert fit(resumed, tmp_path / "more", 5, ckpt_path=tmp_path / "last.ckpt").global_step == 5
    line = export_checkpoint(tmp_path / "last.ckpt", tmp_path / "w.safetensors", "backbone.network.")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    shipped = load_file(tmp_path / "w.safetensors")
    averaged, current = state["state_dict"], state["current_model_state"]
    name = "transformer_blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(shipped[name], averaged[f"backbone.network.{name}"].half())
    assert not torch.equal(averaged[f"backbone.network.{name}"], current[f"backbone.network.{name}"])
    assert all(value.dtype == torch.float16 for value in shipped.values())
    assert "step 3" in line
    assert trainer.global_step == 3


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_exporting_what_is_no_checkpoint_is_refused(tmp_path, content):
    if content:
        (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.ckpt"):
        export_checkpoint(tmp_path / "x.ckpt", tmp_path / "w.safetensors", "a.")
    assert not (tmp_path / "w.safetensors").exists()


def test_exported_weights_load_again(tmp_path):
    task = tiny()
    fit(task, tmp_path, 2)
    task.backbone.network.save_config(tmp_path / "shipped")
    export_checkpoint(tmp_path / "last.ckpt", tmp_path / "shipped" / WEIGHTS_NAME, "backbone.network.")
    averaged = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in PixelDiT(tmp_path / "shipped").network.state_dict().items():
        torch.testing.assert_close(value, averaged[f"backbone.network.{name}"].half().float())


def test_a_model_that_predicts_velocity_trains_on_the_noise_it_means(tmp_path):
    task, batch = tiny(), next(iter(loader()))
    task.backbone = PixelDiT(
        weights=None, width=16, depth=1, heads=2, image_size=8,
        scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    )  # fmt: skip
    clean, noise = task.backbone.encode(batch["image"]), torch.randn(16, 3, 8, 8)
    t = torch.full((16,), 500)
    process = DDIMScheduler()
    sigma = (1 - process.alphas_cumprod[500]).sqrt()
    # A fresh model predicts the velocity 0, which means the noise sigma x_t.
    expected = (sigma * process.add_noise(clean, noise, t) - noise).square().mean()
    torch.testing.assert_close(task._loss(clean, noise, t, batch["label"]), expected)


def test_training_needs_a_null_label():
    class Unguided(PixelDiT):
        def null(self, condition):
            return None

    with pytest.raises(SettingError, match=r"Unguided has no null condition"):
        DiffusionTraining(Unguided(weights=None, width=16, depth=1, heads=2, image_size=8))


def test_some_rows_are_trained_without_a_label():
    """Dropping happens once for the whole model; diffusers alone would drop in each block separately."""
    task = tiny(label_dropout=1.0)
    seen = []
    task.backbone.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["class_labels"]), with_kwargs=True
    )
    task.log = lambda *_, **__: None
    task.train()
    task.training_step(next(iter(loader())), 0)
    assert set(seen[0].tolist()) == {10}
    embeddings = [m for m in task.modules() if type(m).__name__ == "LabelEmbedding"]
    assert embeddings
    assert all(m.dropout_prob == 0 for m in embeddings)


def test_the_rate_rises_stays_and_falls():
    rates = [_trapezoid(step, 100, 10, 0.5) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[30] == 1
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    network = nn.ModuleDict({"hidden": nn.Linear(4, 4), "proj_out": nn.Linear(4, 4)})
    optimizer = MuonWithAdamW(network.named_parameters(), lr=0.1)
    muon, adamw = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert muon == {id(network["hidden"].weight)}
    assert adamw == {id(p) for p in network.parameters()} - muon


@pytest.mark.same_digits  # Newton and Schulz's steps work in bfloat16, where an ulp grows
def test_two_optimizers_behave_as_one():
    """The same steps as torch's two, one after the other; and the same again from a saved state."""
    from torch.optim import AdamW, Muon

    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.load_state_dict(first.state_dict())
    ours = MuonWithAdamW(first.named_parameters(), lr=0.1, weight_decay=0.2)
    theirs = [
        Muon([second.weight], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        AdamW([second.bias], lr=0.1, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    for step in range(3):
        for layer, optimizers in ((first, [ours]), (second, theirs)):
            layer.zero_grad()
            layer(torch.ones(2, 4) + step).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        if step == 1:
            ours.load_state_dict(ours.state_dict())
        ours.param_groups[0]["lr"] = theirs[0].param_groups[0]["lr"] = 0.05
    torch.testing.assert_close(first.weight, second.weight)
    torch.testing.assert_close(first.bias, second.bias)


def test_the_feature_network_learns(tmp_path):
    torch.manual_seed(0)
    task = FeatureTraining(ResidualClassifier(10, 4), lr=0.05, shift=1)
    trainer = Trainer(max_epochs=15, enable_checkpointing=False, **QUIET)
    trainer.fit(task, loader(), loader())
    assert trainer.callback_metrics["val_accuracy"] > 0.3
