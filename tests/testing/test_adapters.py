"""The contract of adapters: on tiny models, and how it is run and told."""

import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bigain.adapters.families.dit import DiTAdapter
from bigain.testing import (
    ContractError,
    NotApplicable,
    Specimen,
    check_adapter,
    checks_of,
    parametrize_with_checks,
)
from bigain.testing.adapters.bench import Bench
from bigain.testing.collecting import cases_of

pytest_plugins = ["pytester"]

CHECKS = {check.name: check for check in checks_of("adapters")}


def dit(**changes):
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 3, "sample_size": 16}
    fixed = {"patch_size": 2, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"}
    return DiTTransformer2DModel(**{**shape, **fixed, **changes})


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=2,
    )


@parametrize_with_checks([dit])
def test_conformance(subject, check):
    check(subject)


def test_a_model_is_checked_without_pytest_and_left_alone(monkeypatch):
    every = [check for check in CHECKS.values() if check.name != "check_compiles_to_one_graph"]  # which takes as long
    monkeypatch.setattr("bigain.testing.adapters.run.CHECKS", every)
    torch.manual_seed(0)
    model = dit()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    check_adapter(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training


def test_all_that_fails_is_told_at_once(monkeypatch):
    few = [CHECKS["check_default_layers_are_layers"], CHECKS["check_sites_are_modules"], CHECKS["check_inputs_run"]]
    monkeypatch.setattr("bigain.testing.adapters.run.CHECKS", few)

    class Lost(DiTAdapter):
        def default_layers(self, sites):
            return []

        def inputs(self, *args):
            raise KeyError("prompt")

    with pytest.raises(ContractError) as caught:
        check_adapter(dit, Lost())
    assert (
        str(caught.value)
        == """\
dit fails 2 checks.

check_default_layers_are_layers
  why:  Without a placement a reducer goes to the default blocks: with none, it would do nothing.
  seen: default_layers() names no layer

check_inputs_run
  why:  Costs and latencies are measured on what `inputs` makes: it has to run, with one row and with several.
  seen: KeyError: 'prompt'"""
    )


def test_every_check_says_why_in_one_sentence():
    assert len(CHECKS) == len(checks_of("adapters")) > 20
    for check in CHECKS.values():
        assert check.name.startswith("check_")
        assert check.why.endswith(".")
        assert len(check.why) > 40


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (dit, "dit"),
        (partial(dit, num_layers=1), "dit"),
        (Specimen(dit, DiTAdapter(), "DiT, one size"), "DiTonesize"),
        (nn.Linear(2, 2), "Linear"),
        (nn.Identity, "Identity"),
    ],
    ids=["function", "partial", "specimen", "model", "class"],
)
def test_each_check_of_each_model_is_a_case(given, name):
    assert [identifier for *_, identifier in cases_of([given])] == [f"{name}-{check}" for check in CHECKS]
    assert len(list(cases_of(given))) == len(CHECKS)  # one needs no list


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (nn.Identity, "SiteError: Nothing to attach to in Identity"),
        (dict, "dict makes a dict, which is no torch module"),
        (partial(dit, num_layers="two"), "TypeError"),
    ],
    ids=["unknown", "no model", "broken"],
)
def test_what_cannot_be_made_fails_with_the_reason(given, reason):
    with pytest.raises(ContractError, match=reason):
        CHECKS["check_inputs_run"](Specimen(given))


def test_what_a_model_does_not_have_is_skipped_with_the_reason(pytester):
    pytester.makepyfile("""
        from torch import nn
        from bigain.testing import Specimen, parametrize_with_checks

        def encoder():
            return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1)

        @parametrize_with_checks([Specimen(encoder, {"name": "modules", "shape": [16]})])
        def test_conformance(subject, check):
            check(subject)
    """)
    result = pytester.runpytest_inprocess("-rs", "-k", "saving or sites", "-p", "no:cacheprovider")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED*TransformerEncoder has no save_pretrained"])
    with pytest.raises(NotApplicable):
        CHECKS["check_saving_and_loading"](
            Specimen(lambda: nn.TransformerEncoder(layer(), 1), {"name": "modules", "shape": [4]})
        )


def layer():
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)


def test_no_weight_of_a_checked_model_hides_what_happens_before_it():
    """DiT's modulation starts at zero, so that its blocks do nothing."""
    made = dit()
    nn.init.zeros_(made.transformer_blocks[0].norm1.linear.weight)
    bench, again = Bench(Specimen(lambda: made)), Bench(Specimen(dit))
    assert all(parameter.all() for parameter in bench.model.parameters())
    assert all(map(torch.equal, bench.model.parameters(), again.model.parameters()))


def test_rows_are_taken_of_what_has_rows():
    bench = Bench(Specimen(unet))
    inputs = {**bench.inputs(3), "scale": torch.ones(3)}
    bench.adapter.inputs = lambda *args: {**type(bench.adapter).inputs(bench.adapter, *args), "scale": torch.ones(3)}
    taken = bench.rows_of(inputs, [2, 0])
    assert torch.equal(taken["sample"], inputs["sample"][[2, 0]])
    assert torch.equal(taken["timestep"], inputs["timestep"][[2, 0]])
    assert torch.equal(taken["scale"], torch.ones(3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(16, 16) for _ in "qkvo")

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(16), Attention(), nn.Sequential(nn.Linear(16, 16), nn.GELU())

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class Painter(nn.Module):
    """The model of CONTRIBUTING.md."""

    side = 16

    def __init__(self):
        super().__init__()
        self.patch, self.time = nn.Conv2d(3, 16, 2, 2), nn.Linear(1, 16)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, image, time):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.time(time[:, None])[:, None], x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def painter_adapter(monkeypatch):
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
    (body,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class PainterAdapter" in code]
    module = ModuleType("my_models")
    exec(body, vars(module))
    monkeypatch.setitem(sys.modules, "my_models", module)
    monkeypatch.setattr(Painter, "__module__", "my_models.painter")
    return module.PainterAdapter()


def test_the_adapter_of_contributing_keeps_the_contract(painter_adapter):
    assert painter_adapter.matches(Painter())
    check_adapter(Painter, painter_adapter)
