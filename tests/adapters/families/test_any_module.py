"""The generic adapter on torch's own modules: encoder layers and multi-head attention."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bigain
from bigain import build_reducer
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context
from tests.comparing import assert_same

LGTM = {"name": "lgtm", "ratio": 0.5, "cell": 2}
ABM = {"name": "abm", "ratio": 0.4, "cell": 2}
CACHED = {"name": "cached", "reducer": LGTM}
IEKVD = {"name": "iekvd", "factor": 2}
METHODS = [LGTM, ABM, CACHED, IEKVD]
BOTH = {"parts": ["self", "mlp"], "layers": 2}
FUSED = ["_transformer_encoder_layer_fwd", "_native_multi_head_attention"]


def tiny(model):
    """Weights that are nowhere zero; in double precision rounding does not decide what is merged."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    return model.eval().double()


def encoder(layers=2, **changes):
    layer = nn.TransformerEncoderLayer(16, 2, 24, **{"dropout": 0.0, "batch_first": True, **changes})
    with warnings.catch_warnings(action="ignore"):  # nested tensors do not go with every layer
        return tiny(nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(16)))


def tokens(rows=3, count=16, seed=1):
    return torch.randn(rows, count, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(attn, queries, states, sizes=None):
    """Softmax attention as a textbook has it; log(sizes) is added to the logits."""
    weights = zip((queries, states, states), attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    query, key, value = (F.linear(x, w, b).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x, w, b in weights)
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    logits = logits if sizes is None else logits + sizes.log()[:, None, None]
    return attn.out_proj((logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Block:
    """What a reducer does in one layer, as the documentation says it: one plan a block."""

    def __init__(self, reducer, context, grid, parts, proportional=False, source=None):
        self.reducer, self.context, self.grid, self.parts = reducer, context, grid, parts
        self.proportional, self.source, self.made = proportional, source, None

    def plan(self, x):
        if self.made is None:
            self.made = self.reducer.plan(x if self.source is None else self.source, self.grid, self.context)
        return self.made

    def attend(self, attn, x):
        if "self" not in self.parts:
            return attention(attn, x, x)
        plan = self.plan(x)
        short, sizes = plan.reduce(x), plan.sizes if self.proportional else None
        if plan.kind == "kv":
            return attention(attn, x, short, sizes)
        return plan.restore(attention(attn, short, short, sizes))

    def feed(self, mlp, x):
        if "mlp" not in self.parts or self.plan(x).kind == "kv":
            return mlp(x)
        return self.plan(x).restore(mlp(self.plan(x).reduce(x)))


def by_hand(model, x, spec, parts=("self",), layers=2, prefix=0, plan_from="part", proportional=False, shape=None):
    """An encoder over `[B, N, C]` (Vaswani et al., 2017; the norm first as in Xiong et al., 2020), written out."""
    reducer, cache = build_reducer(spec), {}
    grid = bigain.Grid(shape or (x.shape[1] - prefix,), prefix)
    for number, layer in enumerate(model.layers):
        source = x if plan_from == "block" else None
        here = parts if number < layers else ()
        block = Block(reducer, Context(layer=number, cache=cache), grid, here, proportional, source)
        mlp = nn.Sequential(layer.linear1, nn.ReLU(), layer.linear2)
        if layer.norm_first:
            x = x + block.attend(layer.self_attn, layer.norm1(x))
            x = x + block.feed(mlp, layer.norm2(x))
        else:
            x = layer.norm1(x + block.attend(layer.self_attn, x))
            x = layer.norm2(x + block.feed(mlp, x))
    return model.norm(x)


@pytest.mark.parametrize("spec", [None, *METHODS], ids=str)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_attached_forward_equals_the_one_by_hand(spec, norm_first, batch_first):
    model, x = encoder(norm_first=norm_first, batch_first=batch_first), tokens()
    given = x if batch_first else x.transpose(0, 1)
    if spec is None:
        expected, found = by_hand(model, x, "identity", ()), model(given)
    else:
        parts = ("self",) if spec is IEKVD else ("self", "mlp")
        expected = by_hand(model, x, spec, parts)
        with bigain.attach(model, spec, shape=(16,), placement={**BOTH, "parts": parts}):
            found = model(given)
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_plans_come_from_the_input_of_the_layer_where_asked(batch_first):
    model, x = encoder(norm_first=True, batch_first=batch_first), tokens()
    expected = by_hand(model, x, LGTM, ("self", "mlp"), plan_from="block")
    assert not torch.allclose(expected, by_hand(model, x, LGTM, ("self", "mlp")))
    with bigain.attach(model, LGTM, shape=(16,), placement={**BOTH, "plan_from": "block"}):
        found = model(x if batch_first else x.transpose(0, 1))
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)


@pytest.mark.parametrize("spec", [LGTM, IEKVD], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_proportional_attention_weights_keys_by_size(spec, batch_first):
    model, x = encoder(batch_first=batch_first), tokens()
    expected = by_hand(model, x, spec, proportional=True)
    with bigain.attach(model, spec, shape=(16,), placement={"layers": 2, "proportional": True}):
        found = model(x if batch_first else x.transpose(0, 1))
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)


@torch.no_grad()
def test_the_mlp_alone_is_a_part():
    model, x = encoder(), tokens()
    expected = by_hand(model, x, LGTM, ("mlp",))
    with bigain.attach(model, LGTM, shape=(16,), placement={"parts": "mlp", "layers": 2}) as report:
        assert [site.name for site in report.sites] == ["layers.0.linear1", "layers.1.linear1"]
        torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_an_image_with_a_class_token_lies_on_two_axes():
    model, x, spec = encoder(), tokens(count=1 + 16), {"name": "lgtm", "ratio": 0.5}
    adapter = {"name": "modules", "shape": [4, 4], "prefix": 1}
    with bigain.attach(model, spec, layers=2, adapter=adapter) as report:
        assert report.sites[0].grid == bigain.Grid((4, 4), prefix=1)
        torch.testing.assert_close(model(x), by_hand(model, x, spec, prefix=1, shape=(4, 4)))
        with pytest.raises(SettingError, match="Got 26 tokens for a grid of 17"):
            model(tokens(count=26))
    with bigain.attach(model, spec, shape=(5, 5), layers=2, adapter=adapter):
        model(tokens(count=26))  # what attaching is told goes before the adapter's own


class Captioner(nn.Module):
    """Text of any length in, one number a word out: an encoder inside of a model, called with token numbers."""

    def __init__(self, **changes):
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(30, 16), encoder(**changes), nn.Linear(16, 1)

    def forward(self, ids):
        return self.head(self.encoder(self.embed(ids)))


@torch.no_grad()
def test_a_sequence_may_have_any_length():
    model = tiny(Captioner())
    with bigain.attach(model, LGTM, shape=(16,), layers=2) as report:
        assert [site.name for site in report.sites] == [f"encoder.layers.{i}.self_attn" for i in (0, 1)]
        for count in (16, 22, 9):
            ids = torch.arange(2 * count).reshape(2, count) * 7 % 30
            expected = model.head(by_hand(model.encoder, model.embed(ids), LGTM))
            torch.testing.assert_close(model(ids), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("parts", ["self", "mlp"])
def test_torch_fused_inference_does_not_pass_the_reducer_by(mode, parts):
    """In eval mode without gradients torch runs a whole encoder layer as one kernel, and no module inside."""
    model, x = encoder(3), tokens()
    expected = by_hand(model, x, LGTM, (parts,)).detach()
    with bigain.attach(model, LGTM, shape=(16,), placement={**BOTH, "parts": parts}), mode():
        with torch.profiler.profile() as profile:
            found = model(x)
        ran = [event.name for event in profile.events() if any(name in event.name for name in FUSED)]
    torch.testing.assert_close(found.detach(), expected)
    # The layer without a reducer is fused as ever, attention inside; and so is attention on merged tokens.
    counts = [sum(name in event for event in ran) for name in FUSED]
    assert counts == ([0, 0] if mode is torch.enable_grad else [1, 3])


@torch.no_grad()
def test_detaching_gives_back_the_fused_output():
    model, x = encoder(batch_first=True), tokens()
    before, state = model(x), copy.deepcopy(model.state_dict())
    hooks = [dict(vars(module)) for module in model.modules()]
    with bigain.attach(model, LGTM, shape=(16,), placement=BOTH):
        assert not torch.allclose(model(x), before)
    with bigain.attach(model, LGTM, shape=(16,), placement=BOTH), pytest.raises(SiteError):
        model(x, mask=torch.zeros(16, 16, dtype=torch.float64))
    assert_same(model(x), before)
    assert [dict(vars(module)) for module in model.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_identity_changes_nothing(batch_first):
    model, x = encoder(batch_first=batch_first), tokens(16, 16)
    expected = model(x)
    with bigain.attach(model, "identity", shape=(16,), placement=BOTH):
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("spec", "batch_first"), [(LGTM, False), (ABM, True), (CACHED, True), (IEKVD, True)], ids=str)
def test_it_compiles_to_one_graph(spec, batch_first):
    torch.compiler.reset()
    model, x = encoder(batch_first=batch_first), tokens(16, 16)
    with bigain.attach(model, spec, shape=(16,), layers=2):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if spec is CACHED else "eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("spec", [LGTM, IEKVD], ids=str)
def test_a_training_step_has_the_gradients_of_the_one_by_hand(spec):
    model, x = encoder().train(), tokens()
    (by_hand(model, x, spec) ** 2).mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with bigain.attach(model, spec, shape=(16,), layers=2):
        (model(x) ** 2).mean().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class Bare(nn.Module):
    """Multi-head attention without an encoder layer around it, and cross-attention that is left alone."""

    def __init__(self, **changes):
        super().__init__()
        self.attns = nn.ModuleList([nn.MultiheadAttention(16, 2, **{"batch_first": True, **changes}) for _ in "abc"])
        self.decoder = nn.TransformerDecoderLayer(16, 2, 24, 0.0, batch_first=True)

    def forward(self, x, need_weights=False, **more):
        for attn in self.attns:
            x = x + attn(x, x, x, need_weights=need_weights, **more)[0]
        return x


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("spec", [LGTM, IEKVD], ids=str)
@torch.no_grad()
def test_bare_attention_modules_are_sites(spec, batch_first):
    model, x = tiny(Bare(batch_first=batch_first)), tokens()
    expected, reducer = x, build_reducer(spec)
    for number, attn in enumerate(model.attns):
        block = Block(reducer, Context(layer=number), bigain.Grid((16,)), ("self",))
        expected = expected + block.attend(attn, expected)
    with bigain.attach(model, spec, shape=(16,), layers=3) as report:
        assert [site.name for site in report.sites] == ["attns.0", "attns.1", "attns.2"]
        found = model(x if batch_first else x.transpose(0, 1))
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)


@torch.no_grad()
def test_a_layer_or_an_attention_module_may_be_the_whole_model():
    model, x = encoder(1), tokens()
    expected = by_hand(model, x, LGTM)
    with bigain.attach(model.layers[0], LGTM, shape=(16,)) as report:
        assert report.sites[0].name == "self_attn"
        torch.testing.assert_close(model.norm(model.layers[0](x)), expected)
    attn = model.layers[0].self_attn
    with bigain.attach(attn, LGTM, shape=(16,)) as report:
        assert report.sites[0].name == "MultiheadAttention"
        found = attn(x, x, x, need_weights=False)[0]
    plan = build_reducer(LGTM).plan(x, bigain.Grid((16,)))
    short = plan.reduce(x)
    torch.testing.assert_close(found, plan.restore(attention(attn, short, short)))


@pytest.mark.parametrize(("depth", "first"), [(1, 1), (4, 1), (7, 3)])
def test_default_layers_are_the_first_twelve_of_twenty_eight(depth, first):
    with bigain.attach(encoder(depth), LGTM, shape=(16,)) as report:
        assert [site.name for site in report.sites] == [f"layers.{i}.self_attn" for i in range(first)]


def test_operations_of_an_encoder_are_counted_and_of_others_not():
    with bigain.attach(encoder(), LGTM, shape=(64,), placement=BOTH) as report:
        counted = report.flops()
        assert counted.after < 0.8 * counted.before
    refused = pytest.raises(SiteError, match="cannot make inputs for a Captioner")
    with bigain.attach(tiny(Captioner()), LGTM, shape=(64,)) as report, refused:
        report.flops()
