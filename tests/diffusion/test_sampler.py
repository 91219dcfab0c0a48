import pytest
import torch

from bigain.diffusion.sampler import DDIMSampler
from bigain.errors import NumericalError, SettingError

LABELS, SEEDS = torch.tensor([1, 7, 3, 3]), torch.tensor([5, 6, 7, 5])


def slow_ddim(backbone, label, seed, steps, guidance):
    """Song et al. (2021), equation 12, sigma = 0, one image at a time."""
    alphas = backbone.schedule.alphas_cumprod()
    stride = 1000 / steps
    timesteps = [round(1000 - k * stride) - 1 for k in range(steps)]
    x = torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(seed))[None]
    for step in timesteps:
        before = step - 1000 // steps
        row = torch.tensor([step])
        noise = backbone.predict_noise(x, row, torch.tensor([backbone.null_label]))
        noise = noise + guidance * (backbone.predict_noise(x, row, torch.tensor([label])) - noise)
        clean = ((x - (1 - alphas[step]).sqrt() * noise) / alphas[step].sqrt()).clamp(-1, 1)
        a = alphas[before] if before >= 0 else torch.tensor(1.0)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
    return x[0]


@torch.no_grad()
def test_it_agrees_with_the_equation(tiny_backbone):
    drawn = DDIMSampler(tiny_backbone, steps=10, guidance=2.0, rows=3)(LABELS, SEEDS)
    for row, (label, seed) in enumerate(zip(LABELS.tolist(), SEEDS.tolist(), strict=True)):
        expected = tiny_backbone.decode(slow_ddim(tiny_backbone, label, seed, 10, 2.0)[None])[0]
        assert (drawn[row].int() - expected.int()).abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_seed_gives_its_image_in_any_batch(tiny_backbone, rows):
    expected = DDIMSampler(tiny_backbone, steps=4, rows=4)(LABELS, SEEDS)
    found = DDIMSampler(tiny_backbone, steps=4, rows=rows)(LABELS.flip(0), SEEDS.flip(0)).flip(0)
    assert (found.int() - expected.int()).abs().max() <= 1


@torch.no_grad()
def test_guidance_one_is_the_conditional_model_at_half_the_cost(tiny_backbone):
    plain = DDIMSampler(tiny_backbone, steps=4, guidance=1.0)
    barely = DDIMSampler(tiny_backbone, steps=4, guidance=1.0 + 1e-9)
    assert (plain.evaluations, barely.evaluations) == (4, 8)
    assert (plain(LABELS, SEEDS).int() - barely(LABELS, SEEDS).int()).abs().max() <= 1


@torch.no_grad()
def test_nan_is_named_by_timestep_class_and_seed(tiny_backbone):
    tiny_backbone.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[7] = torch.nan
    with pytest.raises(NumericalError, match=r"timestep 999 .* class 7, seed 6"):
        DDIMSampler(tiny_backbone, steps=4)(LABELS, SEEDS)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 1001}, {"guidance": 0.5}, {"rows": 0}])
def test_impossible_settings_are_refused(tiny_backbone, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        DDIMSampler(tiny_backbone, **settings)
