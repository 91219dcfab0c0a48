"""The sampler against a loop over diffusers' own scheduler, one image at a time."""

import sys
from contextlib import nullcontext
from types import ModuleType

import diffusers
import numpy as np
import pytest
import torch

from bigain.backbones.pixel_dit import PixelDiT
from bigain.diffusion.condition import Condition
from bigain.diffusion.sampler import Sampler
from bigain.errors import NumericalError, SettingError

LABELS, SEEDS = [1, 7, 3, 3], [5, 6, 7, 5]
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCHEDULERS = {
    "DDIM": {"_class_name": "DDIMScheduler", **LINEAR, "timestep_spacing": "trailing"},
    "DDIM unclipped": {"_class_name": "DDIMScheduler", **LINEAR, "clip_sample": False, "steps_offset": 1},
    "Euler": {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
              "beta_schedule": "scaled_linear"},
    "Euler, velocity, zero SNR": {"_class_name": "EulerDiscreteScheduler", **LINEAR, "prediction_type": "v_prediction",
                                  "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "DPM-Solver": {"_class_name": "DPMSolverMultistepScheduler", **LINEAR},
    "Heun": {"_class_name": "HeunDiscreteScheduler", **LINEAR},
    "PNDM": {"_class_name": "PNDMScheduler", **LINEAR, "skip_prk_steps": True},
    "UniPC": {"_class_name": "UniPCMultistepScheduler", **LINEAR},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "stochastic flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
    "Euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", **LINEAR},
    "DDPM": {"_class_name": "DDPMScheduler", **LINEAR, "clip_sample": True},
    "LCM": {"_class_name": "LCMScheduler", **LINEAR},
}  # fmt: skip
DYNAMIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.5,
           "max_shift": 1.15, "base_image_seq_len": 16, "max_image_seq_len": 96}  # fmt: skip


class Unrounded(PixelDiT):
    """Returns latents as they are, so that they can be compared beyond 1 of 255."""

    def decode(self, latents):
        return latents


@pytest.fixture
def make(tiny_weights):
    return lambda config: Unrounded(tiny_weights, scheduler=config).eval()


def scheduler_of(config):
    return getattr(diffusers, config["_class_name"]).from_config(config)


def by_hand(backbone, scheduler, label, seed, guidance=2.0):
    """The loop of DiTPipeline: one image, two calls of the network."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn((1, *backbone.latent_shape), generator=generator)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = "generator" in scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        both = [
            backbone.network(backbone._windows(seen), timestep=t[None], class_labels=torch.tensor([c])).sample
            for c in (10, label)
        ]
        predicted = both[0] + guidance * (both[1] - both[0])
        x = scheduler.step(predicted, t, x, **({"generator": generator} if takes else {})).prev_sample
    return x[0]


@torch.no_grad()
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_it_agrees_with_the_loop_over_diffusers_scheduler(make, name):
    config = SCHEDULERS[name]
    backbone = make(config)
    drawn = Sampler(backbone, steps=6, guidance=2.0, rows=3)(backbone.embed(LABELS), SEEDS)
    for row, (label, seed) in enumerate(zip(LABELS, SEEDS, strict=True)):
        scheduler = scheduler_of(config)
        scheduler.set_timesteps(6)
        torch.testing.assert_close(drawn[row], by_hand(backbone, scheduler, label, seed), rtol=1e-3, atol=1e-3)
    assert (drawn[0] - drawn[2]).abs().max() > 0.1


@torch.no_grad()
def test_a_dynamic_shift_depends_on_the_number_of_image_tokens(make):
    """mu as in FLUX's pipeline: a line through (base_image_seq_len, base_shift) and (max_.., max_shift)."""
    backbone, scheduler = make(DYNAMIC), scheduler_of(DYNAMIC)
    scheduler.set_timesteps(6, mu=float(np.interp(64, [16, 96], [0.5, 1.15])))
    drawn = Sampler(backbone, steps=6, guidance=2.0)(backbone.embed([4]), [9])
    torch.testing.assert_close(drawn[0], by_hand(backbone, scheduler, 4, 9), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("config", [DYNAMIC, SCHEDULERS["flow"]])
def test_a_family_may_hand_its_own_sigmas_to_the_scheduler(make, config):
    class Flux(Unrounded):
        def sampling_sigmas(self, steps):
            return np.linspace(1.0, 1 / steps, steps).tolist()

    backbone, scheduler = make(config), scheduler_of(config)
    backbone.__class__ = Flux
    mu = {"mu": float(np.interp(64, [16, 96], [0.5, 1.15]))} if config is DYNAMIC else {}
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), **mu)
    drawn = Sampler(backbone, steps=6, guidance=2.0)(backbone.embed([4]), [9])
    torch.testing.assert_close(drawn[0], by_hand(backbone, scheduler, 4, 9), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPM-Solver", "flow", "Euler ancestral", "DDPM"])
def test_a_seed_gives_its_image_in_any_batch(make, name, rows):
    backbone = make(SCHEDULERS[name])
    expected = Sampler(backbone, steps=4, rows=4)(backbone.embed(LABELS), SEEDS)
    found = Sampler(backbone, steps=4, rows=rows)(backbone.embed(LABELS[::-1]), SEEDS[::-1]).flip(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.manual_seed(1)  # what others draw makes no difference
    alone = Sampler(backbone, steps=4, rows=rows)(backbone.embed(LABELS[1:2]), SEEDS[1:2])
    torch.testing.assert_close(alone[0], expected[1], rtol=1e-3, atol=1e-3)


def test_what_an_exact_backbone_knows_is_what_is_drawn(exact):
    """Clipping belongs to the checkpoint: without it, x_0 = 3 comes out as 3, decoded as 30."""
    backbone = exact(3.0)
    drawn = Sampler(backbone, steps=10, guidance=1.0, rows=2)(backbone.embed([0, 1]), [0, 1])
    assert set(drawn.flatten().tolist()) == {30}
    clipped = {**backbone.scheduler, "clip_sample": True}
    drawn = Sampler(exact(3.0, scheduler=clipped), steps=10, guidance=1.0)(backbone.embed([0]), [0])
    assert set(drawn.flatten().tolist()) == {10}


@pytest.mark.parametrize("spec", [None, "diffusers.EulerDiscreteScheduler", "diffusers.DPMSolverMultistepScheduler"])
def test_it_samples_with_the_process_that_it_classifies_with(exact, process_name, config, spec):
    """The backbone divides by its own sigma: with another process, its x_0 would not come out."""
    form = "velocity" if process_name == "zero terminal SNR" else "noise"
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"}
    backbone = exact(2.0, process_name, {**scheduler, **config(process_name)}, form)
    drawn = Sampler(backbone, steps=10, guidance=1.0, scheduler=spec)(backbone.embed([0, 1]), [0, 1])
    assert (drawn.int() - 20).abs().max() <= 1


@torch.no_grad()
def test_another_scheduler_takes_the_checkpoints_process(make):
    spec = {"class_path": "diffusers.EulerDiscreteScheduler", "init_args": {"use_karras_sigmas": True}}
    config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    backbone, own = make(config), {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    scheduler = diffusers.EulerDiscreteScheduler(**own, use_karras_sigmas=True)
    scheduler.set_timesteps(6)
    drawn = Sampler(backbone, steps=6, guidance=2.0, scheduler=spec)(backbone.embed([4]), [9])
    torch.testing.assert_close(drawn[0], by_hand(backbone, scheduler, 4, 9), rtol=1e-3, atol=1e-3)
    bare = Sampler(backbone, steps=6, scheduler={"init_args": {"timestep_spacing": "trailing"}})
    assert bare._scheduler.timesteps.tolist() != Sampler(backbone, steps=6)._scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"init_args": {"beta_start": 0.1}}, "got beta_start: the checkpoint decides"),
        ({"init_args": {"prediction_type": "sample", "trained_betas": [0.1]}}, "got prediction_type, trained_betas"),
        ({"init_args": {"rescale_betas_zero_snr": True}}, "got rescale_betas_zero_snr"),
        ({"init_args": {"num_train_timesteps": 10}}, "got num_train_timesteps"),
        ({"init_args": {"spacing": "trailing"}}, "no setting spacing; accepted are .*timestep_spacing"),
        ({"name": "x"}, "class_path and init_args; got name"),
        ("diffusers.DiTPipeline", "no scheduler"),
        ("diffusers.Nothing", "cannot be imported"),
        ("Nothing", "no scheduler"),
        ("diffusers.FlowMatchEulerDiscreteScheduler", "one predicts flow, the other noise"),
        ("diffusers.EDMEulerScheduler", "variance-preserving"),
    ],
)
def test_schedulers_that_would_change_the_process_are_refused(exact, spec, expected):
    with pytest.raises(SettingError, match=expected):
        Sampler(exact(1.0), scheduler=spec)


def test_a_scheduler_that_forgets_a_setting_of_the_process_is_refused(exact, config):
    """PNDM knows no zero terminal SNR: diffusers would drop it in silence."""
    backbone = exact(1.0, "zero terminal SNR", form="velocity")
    with pytest.raises(SettingError, match=r"PNDMScheduler would sample with another process .* alphas differ"):
        Sampler(backbone, scheduler="diffusers.PNDMScheduler")


class SharedNoise(diffusers.EulerAncestralDiscreteScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        return super().step(model_output, timestep, sample, return_dict=return_dict)


def test_noise_that_images_share_is_refused(exact, monkeypatch):
    module = ModuleType("somebody_elses")
    module.SharedNoise = SharedNoise
    monkeypatch.setitem(sys.modules, "somebody_elses", module)
    with pytest.raises(SettingError, match=r"SharedNoise draws noise .* depend on its neighbours"):
        Sampler(exact(1.0), steps=4, scheduler="somebody_elses.SharedNoise")


def test_trying_a_scheduler_draws_nothing_from_anybody(exact):
    backbone, state = exact(1.0), torch.get_rng_state()
    Sampler(backbone, steps=4, scheduler="diffusers.DDPMScheduler")
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
@pytest.mark.parametrize("name", ["DDIM", "Euler", "flow"])
def test_timesteps_reach_network_and_reducers_as_the_scheduler_gives_them(make, name):
    backbone, at, network = make(SCHEDULERS[name]), [], []
    backbone.network.register_forward_pre_hook(
        lambda _, args, kwargs: network.append(kwargs["timestep"]), with_kwargs=True
    )

    def record(timestep):
        at.append(timestep)
        return nullcontext()

    Sampler(backbone, steps=7, rows=2, at=record)(backbone.embed([1]), [0])
    scheduler = scheduler_of(SCHEDULERS[name])
    scheduler.set_timesteps(7)
    assert at == scheduler.timesteps.tolist()
    assert all(torch.equal(t, step.expand(4)) for t, step in zip(network, scheduler.timesteps, strict=True))
    assert name == "DDIM" or any(step != int(step) for step in at)


@torch.no_grad()
def test_unconditional_rows_come_first(make):
    backbone, seen = make(SCHEDULERS["DDIM"]), []
    backbone.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    Sampler(backbone, steps=1, rows=2)(backbone.embed([1, 7]), [0, 1])
    Sampler(backbone, steps=1, rows=2, guidance=1.0)(backbone.embed([1, 7]), [0, 1])
    assert seen == [[10, 10, 1, 7], [1, 7]]


@torch.no_grad()
def test_guidance_one_is_the_conditional_model_at_half_the_cost(make):
    backbone = make(SCHEDULERS["DDIM"])
    plain = Sampler(backbone, steps=4, guidance=1.0)
    barely = Sampler(backbone, steps=4, guidance=1.0 + 1e-9)
    assert (plain.evaluations, barely.evaluations) == (4, 8)
    condition = backbone.embed(LABELS)
    torch.testing.assert_close(plain(condition, SEEDS), barely(condition, SEEDS), rtol=1e-3, atol=1e-3)


def test_evaluations_are_those_of_the_scheduler(make):
    assert Sampler(make(SCHEDULERS["Heun"]), steps=4, guidance=1.0).evaluations == 7
    assert Sampler(make(SCHEDULERS["PNDM"]), steps=4, guidance=1.0).evaluations == 5


def test_guidance_without_a_null_condition_is_refused(exact):
    backbone = exact(1.0)
    with pytest.raises(SettingError, match=r"ExactBackbone has no unconditional .* got 2\.0"):
        Sampler(backbone, guidance=2.0)(backbone.embed([0]), [0])


@torch.no_grad()
def test_nan_is_named_by_timestep_image_and_seed(tiny_backbone):
    tiny_backbone.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[7] = torch.nan
    with pytest.raises(NumericalError, match=r"timestep 999 for image b, seed 6"):
        Sampler(tiny_backbone, steps=4)(tiny_backbone.embed(LABELS), SEEDS, list("abcd"))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 1001}, {"guidance": 0.5}, {"rows": 0}])
def test_impossible_settings_are_refused(tiny_backbone, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        Sampler(tiny_backbone, **settings)


def test_a_seed_for_each_row(tiny_backbone):
    with pytest.raises(SettingError, match="2 conditions and 1 seeds"):
        Sampler(tiny_backbone)(Condition(labels=torch.tensor([0, 1])), [0])


@torch.no_grad()
def test_half_precision_changes_the_network_alone(make):
    """Lightning changes torch's default type around every step; noise, tables and latents stay float32."""
    backbone = make(SCHEDULERS["Euler"]).to(torch.bfloat16)
    # Without products, whose last bits differ from call to call: those of bfloat16 are as much as its tables would be.
    backbone.network.forward = lambda x, timestep, class_labels, return_dict: (
        x[:, 4::9] * (timestep.float() / 2000 - class_labels.float() / 10)[:, None, None, None],
    )
    sampler, expected = Sampler(backbone, steps=3), Sampler(backbone, steps=3)(backbone.embed([2]), [4])
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = sampler(backbone.embed([2]), [4])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPM-Solver", "flow", "Euler ancestral"])
def test_a_device_draws_the_same_images(make, name):
    backbone = make(SCHEDULERS[name])
    expected = Sampler(backbone, steps=4, rows=2)(backbone.embed(LABELS), SEEDS)
    backbone.cuda()
    found = Sampler(backbone, steps=4, rows=2)(backbone.embed(LABELS), SEEDS)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-2)
