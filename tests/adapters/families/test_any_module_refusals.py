"""The generic adapter: what it refuses, in words; and the contract of all adapters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bigain
from bigain.adapters.families.any_module import ModulesAdapter
from bigain.errors import SettingError, SiteError
from bigain.testing import Specimen, parametrize_with_checks

LGTM = {"name": "lgtm", "ratio": 0.5, "cell": 2}
IEKVD = {"name": "iekvd", "factor": 2}
BOTH = {"parts": ["self", "mlp"], "layers": 2}
NAMED = {"name": "modules", "attention": "layers.*.attn", "shape": [16]}
KEYS = {**NAMED, "keys": ["to_k", "to_v"]}


def encoder(layers=2):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True), layers).eval()


def tokens(count=16):
    return torch.randn(3, count, 16, generator=torch.Generator().manual_seed(1))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, need_weights=False, **more):
        return self.attn(x, x, x, need_weights=need_weights, **more)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(16, 16) for _ in "qkvo")

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class Layer(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(16), attn, nn.Linear(16, 16)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class Plain(nn.Module):
    """A transformer as anybody writes one: a class token, then an image in patches."""

    def __init__(self, make=Attention):
        super().__init__()
        self.patch, self.first = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.zeros(1, 1, 16))
        self.layers = nn.Sequential(Layer(make()), Layer(make()))

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        return self.layers(torch.cat([self.first.expand(len(x), -1, -1), x], dim=1))


class PlainAdapter(ModulesAdapter):
    """Knows, besides, what to call it with."""

    def inputs(self, model, rows, shape, device, dtype):
        return {"image": torch.randn(rows, 3, *(2 * length for length in shape), device=device, dtype=dtype)}


OF_PLAIN = PlainAdapter("layers.*.attn", "layers.*.mlp", [4, 6], prefix=1, keys=["to_k", "to_v"])
SUBJECTS = [
    Specimen(encoder, {"name": "modules", "shape": [16]}, "encoder"),
    Specimen(Plain, OF_PLAIN, "plain"),
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject, check):
    check(subject)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"need_weights": True}, "asked for attention weights.*need_weights=False"),
        ({"attn_mask": torch.zeros(16, 16)}, "was called with attn_mask"),
        ({"key_padding_mask": torch.zeros(3, 16, dtype=torch.bool)}, "was called with key_padding_mask"),
    ],
)
def test_a_call_that_reduction_cannot_serve_is_refused(more, match):
    model = Bare()
    with bigain.attach(model, LGTM, shape=(16,)), pytest.raises(SiteError, match=match):
        model(tokens(), **more)


def test_cross_attention_is_refused():
    model, x = nn.MultiheadAttention(16, 2, batch_first=True), tokens()
    with bigain.attach(model, LGTM, shape=(16,)), pytest.raises(SiteError, match="are not one tensor"):
        model(x, x, x + 1, need_weights=False)
    with bigain.attach(model, LGTM, shape=(16,)), pytest.raises(SiteError, match="of 3 axes"):
        model(*[x[0]] * 3, need_weights=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("parts", ["self", "mlp"])
@pytest.mark.parametrize("plan_from", ["block", "part"])
@torch.no_grad()
def test_padded_rows_are_refused(parts, plan_from):
    """With a padding mask, torch's encoder hands nested tensors to its layers."""
    model, padding = encoder(), torch.zeros(3, 16, dtype=torch.bool)
    padding[:, 12:] = True
    placement = {"parts": parts, "plan_from": plan_from}
    with bigain.attach(model, LGTM, shape=(16,), placement=placement):
        with pytest.raises(SiteError, match=r"layers\.0 was given padded rows"):
            model(tokens(), src_key_padding_mask=padding)
        with pytest.raises(SiteError, match=r"layers\.0 was given padded rows"):
            model.layers[0](tokens(), src_key_padding_mask=padding)


def test_a_shape_has_to_be_given():
    with pytest.raises(SiteError, match=r"tells how its tokens lie.*shape=\(77,\)"):
        bigain.attach(encoder(), LGTM)


def test_a_model_without_attention_is_not_matched():
    with pytest.raises(SiteError, match="Nothing to attach to in Sequential"):
        bigain.attach(nn.Sequential(nn.Linear(4, 4)), LGTM, shape=(16,))


def test_a_replaced_module_is_noticed():
    model = encoder()
    with bigain.attach(model, LGTM, shape=(16,), placement=BOTH):
        model.layers[1].linear2 = nn.Linear(24, 16)
        with pytest.raises(SiteError, match=r"layers\.1\.linear2 was replaced"):
            model(tokens())


def test_a_second_reducer_is_refused():
    model = encoder()
    with bigain.attach(model, LGTM, shape=(16,)), pytest.raises(SiteError, match="attached already"):
        bigain.attach(model, LGTM, shape=(16,))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attention": "layers.*.attention"}, r"names no module of Plain\. Did you mean layers\.\*\.attn"),
        ({"attention": "layers.*"}, r"names layers\.0 and layers\.0\.norm inside of it"),
        ({"mlp": "layers.1.mlp"}, "attention names 2 modules and mlp 1"),
        ({"mlp": "layers.*.ff"}, r"mlp='layers\.\*\.ff' names no module"),
        ({"keys": ["to_k", "value"]}, r"layers\.0\.attn has no value, named as keys; it has to_q, to_k, to_v, out"),
    ],
)
def test_names_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(SiteError, match=match):
        bigain.attach(Plain(), LGTM, adapter={**NAMED, **settings})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"keys": "to_k"}, "it names none"),
        ({"mlp": "layers.*.mlp"}, "it names none"),
        ({"attention": ["layers.*.attn", 3]}, "attention is the path of a module"),
        ({"attention": "a", "shape": [0]}, "one or more axes of at least one token"),
        ({"attention": "a", "shape": 64}, "one or more axes of at least one token"),
        ({"attention": "a", "tokens": 1}, "tokens is the name of an argument; got 1"),
        ({"attention": "a", "prefix": -1}, "counts of 0 or more"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, match):
    with pytest.raises(SettingError, match=match):
        ModulesAdapter(**settings)


def test_keys_and_values_need_names():
    model = Plain()
    with pytest.raises(SiteError, match=r'name its projections, as keys=\["to_k", "to_v"\]'):
        bigain.attach(model, IEKVD, adapter={**NAMED})
    with pytest.raises(SiteError, match="Proportional attention does not know"):
        bigain.attach(model, LGTM, placement={"proportional": True}, adapter={**NAMED})
    own = Plain(lambda: nn.MultiheadAttention(16, 2))
    with pytest.raises(SiteError, match="whose call is known: leave tokens and keys out"):
        bigain.attach(own, LGTM, adapter={**KEYS})


class Counting(Attention):
    """Takes the number of keys from its input, and adds positions of its own."""

    def forward(self, x):
        key = self.to_k(x) + torch.arange(17, device=x.device)[:, None]
        return self.out(key.reshape(len(x), x.shape[1], -1))


class Unasked(Attention):
    """Never calls its projection of keys."""

    def forward(self, x):
        return F.linear(x, self.to_k.weight)


class Pooled(Attention):
    """Gives one token for all."""

    def forward(self, x):
        return x.mean(dim=1)


@torch.no_grad()
def test_a_module_that_cannot_follow_says_what_was_done_to_it():
    model, given = Plain(Counting), torch.randn(3, 3, 8, 8)
    for spec, told in ((LGTM, "it was given 9 tokens in place of 17"), (IEKVD, "to_k and to_v, named as keys, gave 9")):
        with bigain.attach(model, spec, adapter={**KEYS}):
            with pytest.raises(RuntimeError) as raised:
                model(given)
            assert f"A reducer is attached to layers.0.attn: {told}" in " ".join(raised.value.__notes__)
    for make, spec, match in (
        (Unasked, IEKVD, "did not call to_k and to_v, named as keys"),
        (Pooled, LGTM, r"gave \[3, 16\] for 9 tokens"),
    ):
        other = Plain(make)
        with bigain.attach(other, spec, adapter={**KEYS}), pytest.raises(SiteError, match=match):
            other(given)


def test_an_argument_that_is_no_tokens_is_refused():
    model = Plain()
    adapter = {**NAMED, "attention": "patch"}
    told = r"'input', tokens \[B, N, C\], and was given \[3, 3, 8, 8\]"
    with bigain.attach(model, LGTM, adapter=adapter), pytest.raises(SiteError, match=told):
        model(torch.randn(3, 3, 8, 8))
