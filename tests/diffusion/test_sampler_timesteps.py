"""Samplers whose timesteps are fractional, and reducers that switch by timestep."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch

import bigain
from bigain.backbones.flux import Flux
from bigain.backbones.sd3 import SD3
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.diffusion.sampler import Sampler
from bigain.reducers.base import TokenReducer
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from tests.pipelines import assert_same_image, drawn, loaded, save_flux, save_sd, save_sd3

STEPS = 7


def euler():
    from diffusers import EulerDiscreteScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return EulerDiscreteScheduler(**betas, timestep_spacing="linspace")


MODELS = {
    "Euler": (StableDiffusion, lambda folder: save_sd(folder, scheduler=euler()), 2.0),
    "shifted flow": (SD3, save_sd3, 2.0),
    "dynamically shifted flow": (
        partial(Flux, image_size=16),
        lambda folder: save_flux(folder, use_dynamic_shifting=True),
        1.0,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A folder, its backbone's class, and a guidance scale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        kind, save, guidance = MODELS[request.param]
        yield save(tmp_path_factory.mktemp("models") / "model"), kind, guidance


class Noted(TokenReducer):
    """L-GTM that notes when it plans."""

    def __init__(self, ratio, seen):
        self.inner, self.ratio, self.seen = LGTM(ratio), ratio, seen

    def plan(self, tokens, grid, context=None):
        self.seen.append(self.ratio)
        return self.inner.plan(tokens, grid, context)

    def reduced_length(self, grid, context=None):
        return self.inner.reduced_length(grid, context)

    def __repr__(self):
        return f"Noted({self.ratio})"


def timesteps_of(backbone):
    """The scheduler's own timesteps."""
    return [float(timestep) for timestep in Sampler(backbone, STEPS, 1.0, 1)._scheduler.timesteps]


@torch.no_grad()
def test_each_step_follows_the_rule_whose_range_holds_its_timestep(model):
    """Ranges begin and end exactly at steps, and between two: what is at the beginning belongs to it."""
    folder, kind, guidance = model
    backbone, seen, at = kind(folder), [], []
    timesteps = timesteps_of(backbone)
    assert any(timestep % 1 for timestep in timesteps)
    ranges = {
        0.25: (timesteps[1], 1001),  # the second step is the last of it
        0.375: (timesteps[3], timesteps[1]),
        0.5: ((timesteps[4] + timesteps[5]) / 2, timesteps[3]),
    }
    rules = [Rule(Noted(ratio, seen), timesteps=own) for ratio, own in ranges.items()]
    with bigain.attach(backbone.network, Scheduled(rules, Noted(0.125, seen))) as report:

        @contextmanager
        def noted(timestep):
            at.append((timestep, len(seen)))
            with report.at(timestep):
                yield

        Sampler(backbone, STEPS, guidance, 1, at=noted)(backbone.embed(["a cat"]), [3])
    ends = [*(start for _, start in at[1:]), len(seen)]
    followed = [set(seen[start:end]) for (_, start), end in zip(at, ends, strict=True)]
    assert [timestep for timestep, _ in at] == timesteps
    expected = [
        next((ratio for ratio, (low, high) in ranges.items() if low <= timestep < high), 0.125)
        for timestep in timesteps
    ]
    assert followed == [{ratio} for ratio in expected]
    assert expected == [0.25] * 2 + [0.375] * 2 + [0.5] + [0.125] * 2


@torch.no_grad()
def test_the_image_is_that_of_the_pipeline_that_is_given_the_reducer_of_each_step(model):
    folder, kind, guidance = model
    pipe, backbone = loaded(folder), kind(folder)
    steps = timesteps_of(backbone)
    middle, late = (steps[2] + steps[3]) / 2, (steps[4] + steps[5]) / 2
    rules = [(middle, 1001, LGTM(0.5)), (late, middle, bigain.build_reducer("identity"))]
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def attached(timestep):
        return bigain.attach(network, next((one for low, high, one in rules if low <= timestep < high), LGTM(0.25)))

    report = attached(steps[0])

    def change(pipe, step, timestep, tensors):
        nonlocal report
        report.detach()
        report = attached(steps[min(step + 1, STEPS - 1)])
        return tensors

    scale = guidance if backbone.guidance is None else backbone.guidance
    expected = drawn(pipe, 3, num_inference_steps=STEPS, guidance_scale=scale, callback_on_step_end=change)
    scheduled = Scheduled([Rule(one, timesteps=(low, high)) for low, high, one in rules], LGTM(0.25))
    condition = backbone.embed(["a cat"])
    with bigain.attach(backbone.network, scheduled) as report_at:
        found = Sampler(backbone, STEPS, guidance, 1, at=report_at.at)(condition, [3])
    assert_same_image(found, expected)
    assert not torch.equal(found, Sampler(backbone, STEPS, guidance, 1)(condition, [3]))
