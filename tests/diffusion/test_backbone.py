import sys
from types import ModuleType

import pytest
import torch

from bigain.diffusion.backbone import Backbone
from bigain.errors import SettingError
from bigain.registry import build


def old_interface():
    class Old(Backbone):
        def encode(self, images):
            return images

        def decode(self, latents):
            return latents

        def predict_noise(self, noisy, timesteps, labels):
            return noisy

    return Old


def test_a_backbone_of_the_old_interface_is_refused():
    with pytest.raises(SettingError, match=r"Old defines predict_noise, .* 0\.1 .*predict\(noisy, t, condition\)"):
        old_interface()


def test_a_noise_schedule_of_the_old_interface_is_refused():
    with pytest.raises(SettingError, match="defines schedule"):
        type("Old", (Backbone,), {"schedule": None})


class _Lazy(ModuleType):
    """A module of somebody else's, whose backbone is defined as it is imported."""

    def __getattr__(self, name):
        if name == "Old":
            return old_interface()
        raise AttributeError(name)


def test_the_registry_passes_the_reason_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "somebody_elses", _Lazy("somebody_elses"))
    with pytest.raises(SettingError, match=r"somebody_elses\.Old.*a backbone of bigain 0\.1"):
        build("backbones", "somebody_elses.Old")


def test_it_has_one_process_and_it_follows_its_scheduler(exact, config):
    backbone = exact(1.0, "scaled linear")
    assert backbone.process is backbone.process
    assert backbone.process.identity()["beta_schedule"] == "scaled_linear"
    scheduler = {"_class_name": "PNDMScheduler", **config("cosine")}
    assert exact(1.0, "cosine", scheduler).process.identity()["beta_schedule"] == "squaredcos_cap_v2"


def test_image_tokens_are_counted_in_patches(tiny_backbone, exact):
    assert tiny_backbone.image_tokens == 64
    assert exact(1.0).image_tokens == 16


@torch.no_grad()
def test_noise_prediction_passes_through(tiny_backbone):
    noisy, t, condition = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), tiny_backbone.embed([1, 2])
    predicted = tiny_backbone.predict(noisy, t, condition)
    torch.testing.assert_close(tiny_backbone.predict_noise(noisy, t, condition), predicted)
