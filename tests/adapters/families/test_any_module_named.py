"""The generic adapter on models of one's own: modules that are named by path."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bigain
from bigain import build_reducer
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context
from tests.comparing import assert_same

LGTM = {"name": "lgtm", "ratio": 0.5, "cell": 2}
CACHED = {"name": "cached", "reducer": LGTM}
IEKVD = {"name": "iekvd", "factor": 2}
NAMED = {"name": "modules", "attention": "layers.*.attn"}
KEYS = {**NAMED, "keys": ["to_k", "to_v"]}


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.to_q = heads, nn.Linear(width, width)
        self.to_k, self.to_v, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        split = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, attn):
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), attn
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Plain(nn.Module):
    """A transformer as anybody writes one: a class token, then an image in patches."""

    def __init__(self, depth=2, make=lambda: Attention(16, 2)):
        super().__init__()
        self.patch, self.first = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.zeros(1, 1, 16))
        self.layers, self.checkpointing = nn.ModuleList(Layer(16, make()) for _ in range(depth)), False

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
        return x


def tiny(model):
    """Weights that are nowhere zero; in double precision rounding does not decide what is merged."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    return model.eval().double()


def image(rows=3, height=8, width=12):
    return torch.randn(rows, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(model, given, spec, grid, parts=("self",)):
    """The transformer above with reduced attention and MLPs: one plan a layer."""
    reducer, cache = build_reducer(spec), {}
    x = model.patch(given).flatten(2).transpose(1, 2)
    x = torch.cat([model.first.expand(len(x), -1, -1), x], dim=1)
    for number, layer in enumerate(model.layers):
        normed = layer.norm1(x)
        plan = reducer.plan(normed, grid, Context(layer=number, cache=cache))
        x = x + attended(layer.attn, normed, plan)
        normed = layer.norm2(x)
        x = x + (plan.restore(layer.mlp(plan.reduce(normed))) if "mlp" in parts else layer.mlp(normed))
    return x


def attended(attn, x, plan):
    short = plan.reduce(x)
    queries = x if plan.kind == "kv" else short
    pairs = ((attn.to_q, queries), (attn.to_k, short), (attn.to_v, short))
    query, key, value = (layer(of).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, of in pairs)
    mixed = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1) @ value
    mixed = attn.out(mixed.transpose(1, 2).flatten(2))
    return mixed if plan.kind == "kv" else plan.restore(mixed)


GRID = bigain.Grid((4, 6), prefix=1)
ON_IMAGES = {"shape": [4, 6], "prefix": 1}


@pytest.mark.parametrize("spec", [LGTM, {"name": "abm", "ratio": 0.4}, CACHED, IEKVD], ids=str)
@torch.no_grad()
def test_attached_forward_equals_the_one_by_hand(spec):
    model, given = tiny(Plain()), image()
    expected = by_hand(model, given, spec, GRID)
    with bigain.attach(model, spec, adapter={**KEYS, **ON_IMAGES}) as report:
        assert [(site.name, site.grid) for site in report.sites] == [(f"layers.{i}.attn", GRID) for i in (0, 1)]
        torch.testing.assert_close(model(given), expected)


@torch.no_grad()
def test_attention_and_mlp_of_a_layer_share_a_plan():
    model, given = tiny(Plain()), image()
    expected = by_hand(model, given, LGTM, GRID, ("self", "mlp"))
    adapter = {**NAMED, **ON_IMAGES, "mlp": "layers.*.mlp"}
    with bigain.attach(model, LGTM, placement={"parts": ["self", "mlp"]}, adapter=adapter) as report:
        assert [site.name for site in report.sites][:2] == ["layers.0.attn", "layers.0.mlp"]
        torch.testing.assert_close(model(given), expected)


@torch.no_grad()
def test_only_the_modules_named_are_taken():
    model = tiny(Plain(3))
    for names in ("layers.1.attn", ["layers.2.attn", "layers.[01].attn"]):
        with bigain.attach(model, LGTM, adapter={**NAMED, **ON_IMAGES, "attention": names}) as report:
            found = [site.name for site in report.sites]
        assert found == (["layers.1.attn"] if isinstance(names, str) else [f"layers.{i}.attn" for i in range(3)])


class Pairs(nn.Module):
    """Layers that are lists, which never run themselves."""

    def __init__(self):
        super().__init__()
        pair = lambda: nn.ModuleList([Attention(16, 2), nn.Linear(16, 16)])  # noqa: E731
        self.layers = nn.ModuleList([pair(), pair()])

    def forward(self, x):
        for attn, mlp in self.layers:
            x = x + attn(x)
            x = x + mlp(x)
        return x


@pytest.mark.parametrize("parts", [("self",), ("self", "mlp")], ids=str)
@torch.no_grad()
def test_layers_may_be_lists_of_modules(parts):
    model, x = tiny(Pairs()), torch.randn(2, 12, 16, dtype=torch.float64)
    expected, reducer = x, build_reducer(LGTM)
    for number, (attn, mlp) in enumerate(model.layers):
        plan = reducer.plan(expected, bigain.Grid((12,)), Context(layer=number))
        expected = expected + attended(attn, expected, plan)
        fed = plan.restore(mlp(plan.reduce(expected))) if "mlp" in parts else mlp(expected)
        expected = expected + fed
    adapter = {"name": "modules", "attention": "layers.*.0", "shape": [12]}
    adapter |= {"mlp": "layers.*.1"} if "mlp" in parts else {}
    with bigain.attach(model, LGTM, placement={"parts": parts}, adapter=adapter) as report:
        assert report.sites[0].name == "layers.0.0"
        torch.testing.assert_close(model(x), expected)


class Awkward(Attention):
    """Its tokens come second, and a tuple goes out."""

    def forward(self, scale, x=None):
        return super().forward(x * scale), scale


class Around(nn.Module):
    """Hands its arguments on."""

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, *args, **kwargs):
        return self.attn(*args, **kwargs)


@torch.no_grad()
def test_tokens_may_be_another_argument_and_the_output_a_tuple():
    attn, x = tiny(Awkward(16, 2)), torch.randn(2, 12, 16, dtype=torch.float64)
    plan = build_reducer(LGTM).plan(x, bigain.Grid((12,)))
    expected, model = attended(attn, 2 * x, plan), Around(attn)
    adapter = {"name": "modules", "attention": "attn", "tokens": "x", "shape": [12]}
    with bigain.attach(model, LGTM, adapter=adapter):
        for args, kwargs in (((2, x), {}), ((2,), {"x": x}), ((), {"x": x, "scale": 2})):
            found, scale = model(*args, **kwargs)
            torch.testing.assert_close(found, expected)
            assert scale == 2
    with pytest.raises(SiteError, match="takes scale, x; there is no tokens='y'"):
        bigain.attach(model, LGTM, adapter={**adapter, "tokens": "y"})


@torch.no_grad()
def test_detaching_restores_the_model():
    model, given = tiny(Plain()), image()
    before, hooks = model(given), [dict(vars(module)) for module in model.modules()]
    adapter = {**KEYS, **ON_IMAGES, "mlp": "layers.*.mlp"}
    for spec, parts in ((LGTM, ["self", "mlp"]), (IEKVD, ["self"])):
        with bigain.attach(model, spec, placement={"parts": parts}, adapter=adapter):
            assert not torch.allclose(model(given), before)
            with pytest.raises(SettingError, match="Got 17 tokens for a grid of 25"):
                model(image(height=8, width=8))
        assert_same(model(given), before)
        assert [dict(vars(module)) for module in model.modules()] == hooks
    with bigain.attach(model, "identity", adapter=adapter):
        assert_same(model(given), before)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("spec", [CACHED, IEKVD], ids=str)
def test_a_training_step_has_the_gradients_of_the_one_by_hand(spec, checkpointing):
    model, given = tiny(Plain()).train(), image()
    twin = copy.deepcopy(model)
    (by_hand(twin, given, spec, GRID) ** 2).mean().backward()
    model.checkpointing = checkpointing
    with bigain.attach(model, spec, adapter={**KEYS, **ON_IMAGES}):
        (model(given) ** 2).mean().backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-6, rtol=1e-4)  # iekvd averages in float32
