"""LoRA beside a reducer: loaded before, loaded and taken away while attached, trained."""

import pytest
import torch

import bigain

REDUCERS = [{"name": "lgtm", "ratio": 0.5}, {"name": "iekvd", "factor": 2, "alpha": 0.8}]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in"]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-3


def attached(unet, spec):
    parts = ("self",) if spec["name"] == "iekvd" else ("self", "cross", "mlp")
    return bigain.attach(unet, spec, placement={"parts": parts, "names": "*"})


def config():
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)


@pytest.fixture
def weights(tiny_unet):
    """Make a LoRA's weights, as a pipeline loads them: `weights(seed)`."""
    from peft.utils import get_peft_model_state_dict

    def make(seed=1):
        unet = tiny_unet()
        unet.add_adapter(config())
        generator = torch.Generator().manual_seed(seed)
        state = get_peft_model_state_dict(unet)
        drawn = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
        return {f"unet.{name}": value.double() * 0.3 for name, value in drawn.items()}

    return make


@pytest.fixture
def merged(tiny_unet):
    """Make a U-Net whose weights hold LoRAs, by hand: `merged((weights, scale), ..)`."""

    def make(*given):
        unet, found = tiny_unet(), 0
        for weights, scale in given:
            for name, down in weights.items():
                if ".lora_A." in name:
                    up = weights[name.replace("lora_A", "lora_B")].flatten(1)
                    module = unet.get_submodule(name.removeprefix("unet.").removesuffix(".lora_A.weight"))
                    module.weight.data += scale * torch.einsum("or,ri...->oi...", up, down)
                    found += 1
        assert found == len(given) * (4 * 2 * 4 + 2 * 4 + 4)  # attentions, MLPs, projections of 4 blocks
        return unet

    return make


@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
@torch.no_grad()
def test_lora_loaded_before_attaching_is_the_weights_it_stands_for(sd, draw, batch, weights, merged, spec):
    first = weights()
    reference = merged((first, 1.0))
    plain = draw(sd)
    sd.load_lora_weights(dict(first))
    state = list(sd.unet.state_dict())
    with attached(sd.unet, spec), attached(reference, spec):
        assert list(sd.unet.state_dict()) == state
        close(sd.unet(**batch).sample, reference(**batch).sample)
        found = draw(sd)
        sd.unet, held = reference, sd.unet
        close(found, draw(sd))
        sd.unet = held
    differ(found, plain)


@pytest.mark.parametrize("spec", REDUCERS, ids=lambda spec: spec["name"])
@torch.no_grad()
def test_lora_may_come_change_and_go_while_a_reducer_is_attached(sd, tiny_unet, batch, weights, merged, spec):
    first, second = weights(1), weights(2)
    never, unet = tiny_unet()(**batch).sample, sd.unet

    def check(*given):
        reference = merged(*given)
        with attached(reference, spec):
            close(unet(**batch).sample, reference(**batch).sample)
        differ(unet(**batch).sample, never)

    report = attached(unet, spec)
    sd.load_lora_weights(dict(first), adapter_name="first")
    check((first, 1.0))
    sd.load_lora_weights(dict(second), adapter_name="second")
    sd.set_adapters(["first", "second"], [0.5, 0.25])
    check((first, 0.5), (second, 0.25))
    sd.disable_lora()
    check()
    sd.enable_lora()
    sd.delete_adapters("first")
    sd.set_adapters("second", 1.0)
    check((second, 1.0))
    sd.fuse_lora()
    check((second, 1.0))
    sd.unfuse_lora()
    sd.unload_lora_weights()
    check()
    report.detach()
    close(unet(**batch).sample, never)


@torch.no_grad()
def test_lora_scales_of_a_call_reach_the_layers(sd, draw, weights, merged):
    first = weights()
    sd.load_lora_weights(dict(first))
    reference = merged((first, 0.3))
    with attached(sd.unet, REDUCERS[0]), attached(reference, REDUCERS[0]):
        found = draw(sd, cross_attention_kwargs={"scale": 0.3})
        sd.unet = reference
        close(found, draw(sd))


def test_what_reduction_saves_is_counted_with_lora(sd, weights):
    with bigain.attach(sd, "lgtm", ratio=0.5) as report:
        plain = report.flops()
    sd.load_lora_weights(weights())
    with bigain.attach(sd, "lgtm", ratio=0.5) as report:
        counted = report.flops()
        assert counted.before > plain.before
        assert 0 < counted.after < counted.before


def test_lora_trains_through_a_reducer_with_and_without_gradient_checkpointing(tiny_unet, batch):
    unet, target = tiny_unet(), torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(5)).double()
    unet.requires_grad_(False)
    unet.add_adapter(config())
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    unet.train()

    def gradients():
        unet.zero_grad()
        (unet(**batch).sample - target).square().mean().backward()
        return {name: p.grad.clone() for name, p in trained.items()}

    with attached(unet, {"name": "tome", "ratio": 0.5}):
        plain = gradients()
        unet.enable_gradient_checkpointing()
        again = gradients()
        assert all(grad.any() for grad in plain.values())
        for name, grad in plain.items():
            close(again[name], grad)
        optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = (unet(**batch).sample - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
