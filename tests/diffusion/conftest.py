"""A backbone whose prediction is exact, and scheduler configurations of every process."""

import pytest
import torch
from torch import nn

from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition

CONFIGS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
}


def levels(process, t):
    """alpha and sigma at whole timesteps, from the papers' formulas in float64."""
    if process == "flow":
        return 1 - t.double() / 1000, t.double() / 1000
    settings, steps = CONFIGS[process], 1000
    if process == "cosine":
        f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    else:
        root = 0.5 if settings["beta_schedule"] == "scaled_linear" else 1.0
        start, end = settings["beta_start"] ** root, settings["beta_end"] ** root
        betas = torch.linspace(start, end, steps, dtype=torch.float64) ** (1 / root)
    cumulative = (1 - betas).cumprod(0)
    if process == "zero terminal SNR":  # Lin et al. (2024), algorithm 1
        root = cumulative.sqrt()
        cumulative = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()


class ExactBackbone(Backbone):
    """Predicts exactly what belongs to one clean image, a constant; decodes 10 times the latent."""

    label_count = 2

    def __init__(self, clean, process="linear", scheduler=None, form="noise"):
        super().__init__()
        self.network, self.clean, self.name, self.form = nn.Linear(1, 1), clean, process, form
        self.scheduler = scheduler or {"_class_name": "DDIMScheduler", "clip_sample": False, **CONFIGS[process]}
        self.image_size, self.latent_shape = 4, (3, 4, 4)

    def encode(self, images):
        return images.float() / 10

    def decode(self, latents):
        return (10 * latents).round().clamp(0, 255).to(torch.uint8)

    def embed(self, conditions):
        return Condition(labels=torch.as_tensor(conditions))

    def null(self, condition):
        return None

    def predict(self, noisy, t, condition):
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in levels(self.name, t.long()))
        noise = (noisy.double() - alpha * self.clean) / sigma
        found = {
            "noise": noise,
            "velocity": alpha * noise - sigma * self.clean,
            "clean": torch.full_like(noise, self.clean),
            "flow": noise - self.clean,
        }
        return found[self.form].float()


@pytest.fixture
def exact():
    """Make an exact backbone: `exact(clean, process, scheduler, form)`."""
    return ExactBackbone


@pytest.fixture
def papers():
    """alpha and sigma by the papers: `papers(process, t)`."""
    return levels


@pytest.fixture(params=list(CONFIGS))
def process_name(request):
    """Name each variance-preserving process in turn."""
    return request.param


@pytest.fixture
def config():
    """Settings of a process: `config(process)`."""
    return lambda name: dict(CONFIGS[name])
