"""The process against each scheduler's own `add_noise`, and against the papers' formulas."""

import json

import diffusers
import pytest
import torch

from bigain.diffusion.process import Process
from bigain.errors import SettingError

T = torch.tensor([0, 1, 500, 998])
FORMS = {"noise": "epsilon", "velocity": "v_prediction", "clean": "sample"}


def pair(rows=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, rows, 3, 4, 4, generator=generator).unbind()


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_it_adds_noise_as_the_scheduler_does(name, process_name, config):
    settings = config(process_name)
    if name == "PNDMScheduler" and "rescale_betas_zero_snr" in settings:
        pytest.skip("PNDM has no zero terminal SNR")
    scheduler, (clean, noise) = getattr(diffusers, name)(**settings), pair()
    found = Process.of(scheduler).add_noise(clean, noise, T)
    expected = scheduler.add_noise(clean, noise, T)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_adds_noise_as_dpm_solver_does_at_its_own_timesteps(process_name, config):
    scheduler, (clean, noise) = diffusers.DPMSolverMultistepScheduler(**config(process_name)), pair()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[[0, 2, 5, 9]]
    expected = scheduler.add_noise(clean, noise, t)
    torch.testing.assert_close(Process.of(scheduler).add_noise(clean, noise, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_it_adds_noise_as_euler_does_at_fractional_timesteps(process_name, config, spacing):
    scheduler = diffusers.EulerDiscreteScheduler(**config(process_name), timestep_spacing=spacing)
    scheduler.set_timesteps(30)
    process = Process.of(scheduler)
    for t in scheduler.timesteps[:-1]:
        clean, noise = pair(1)
        # A fresh one for each timestep: scaling remembers how far it has come.
        fresh = diffusers.EulerDiscreteScheduler(**config(process_name), timestep_spacing=spacing)
        fresh.set_timesteps(30)
        expected = fresh.scale_model_input(fresh.add_noise(clean, noise, t[None]), t)
        torch.testing.assert_close(process.add_noise(clean, noise, t[None]), expected, rtol=1e-3, atol=1e-4)


def test_it_adds_noise_as_flow_matching_does():
    scheduler, (clean, noise) = diffusers.FlowMatchEulerDiscreteScheduler(), pair()
    t = scheduler.timesteps[[0, 3, 500, 999]]
    found = Process.of(scheduler).add_noise(clean, noise, t)
    torch.testing.assert_close(found, scheduler.scale_noise(clean, t, noise))


def test_a_flow_is_unshifted_whatever_its_scheduler_shifts():
    t = torch.tensor([0.0, 250.0, 333.3, 1000.0])
    for settings in ({"shift": 3.0}, {"use_dynamic_shifting": True}):
        process = Process.of(diffusers.FlowMatchEulerDiscreteScheduler(**settings))
        torch.testing.assert_close(process.sigma(t), t / 1000)
        torch.testing.assert_close(process.alpha(t), 1 - t / 1000)
    assert process.prediction == "flow"


def test_it_agrees_with_the_papers(process_name, config, papers):
    process, t = Process.of({"_class_name": "DDIMScheduler", **config(process_name)}), torch.arange(0, 1000, 37)
    alpha, sigma = papers(process_name, t)
    torch.testing.assert_close(process.alpha(t).double(), alpha, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(process.sigma(t).double(), sigma, rtol=1e-3, atol=1e-5)


def test_fractional_timesteps_lie_between_whole_ones(process_name, config):
    process = Process.of({"_class_name": "DDIMScheduler", **config(process_name)})
    whole = torch.arange(1000)
    assert torch.equal(process.alpha(whole.float()), process.alpha(whole))
    assert torch.equal(process.sigma(whole.float()), process.sigma(whole))
    middle = whole[:-1] + 0.5
    assert (process.alpha(middle) <= process.alpha(whole[:-1])).all()
    assert (process.alpha(middle) >= process.alpha(whole[1:])).all()
    one = process.alpha(middle) ** 2 + process.sigma(middle) ** 2
    torch.testing.assert_close(one, torch.ones_like(one))


@pytest.mark.parametrize("form", list(FORMS))
def test_every_prediction_becomes_the_noise(form, process_name, config, exact, papers):
    settings = {**config(process_name), "prediction_type": FORMS[form]}
    backbone = exact(0.7, process_name, {"_class_name": "DDPMScheduler", **settings}, form)
    t, noise = torch.tensor([40, 500, 998]), pair(3)[1]
    alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in papers(process_name, t))
    noisy = (alpha * 0.7 + sigma * noise).float()
    found = backbone.predict_noise(noisy, t, backbone.embed([0, 0, 0]))
    torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-3)


def test_a_flow_prediction_becomes_the_noise(exact):
    """e = x + (1 - sigma) v, where v = e - x_0."""
    for scheduler in (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ):
        backbone, t, noise = exact(0.7, "flow", scheduler, "flow"), torch.tensor([40.0, 500.0, 1000.0]), pair(3)[1]
        sigma = t.reshape(-1, 1, 1, 1) / 1000
        noisy = (1 - sigma) * 0.7 + sigma * noise
        found = backbone.predict_noise(noisy, t, backbone.embed([0, 0, 0]))
        torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-4)


def test_half_precision_and_defaults_leave_it_alone(exact):
    backbone = exact(1.0).to(torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = backbone.process.alpha(torch.tensor([10]))
        fresh = exact(1.0).process.alpha(torch.tensor([10]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == fresh.dtype == torch.float32
    assert torch.equal(found, fresh)
    assert not list(backbone.buffers())


def test_its_identity_says_what_decides_it(config):
    scaled = {"_class_name": "DDIMScheduler", **config("zero terminal SNR"), "clip_sample": False}
    found = Process.of(scaled).identity()
    assert json.loads(json.dumps(found)) == found == {
        "prediction": "velocity", "steps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"beta_start": 1e-4}, "_class_name"),
        ({"_class_name": "os.path"}, "no scheduler"),
        ({"_class_name": "DiTPipeline"}, "no scheduler"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}, "wavy"),
        ({"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow_prediction"}, "flow sigmas"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "magic"}, "magic"),
        ({"_class_name": "EDMEulerScheduler"}, "variance-preserving"),
        ({"_class_name": "IPNDMScheduler"}, "prediction_type=None"),
    ],
)
def test_what_is_no_known_process_is_refused(scheduler, expected):
    with pytest.raises(SettingError, match=expected):
        Process.of(scheduler)
