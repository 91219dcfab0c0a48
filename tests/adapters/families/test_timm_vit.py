"""timm's vision transformers with every token given back: by hand, in all the forms that their attention has."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bigain
from bigain.errors import SettingError, SiteError
from bigain.testing import parametrize_with_checks
from tests.comparing import assert_same

ALL = ("self", "mlp")
REDUCERS = {
    "merge": {"name": "tome", "ratio": 0.4, "randomize": False},
    "kv": {"name": "kv_merge", "reducer": {"name": "lgtm", "ratio": 0.4}},
    "window": {"name": "pooling", "factor": 2},
    "pick": {"name": "todo", "factor": 2},
}
FORMS = {
    "class": ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "map": ("vit_base_patch16_siglip_224", {}),
    "post_norm": ("", {}),
    "eva": ("eva02_tiny_patch14_224", {}),
    "eva_apart": ("eva02_base_patch14_448", {}),
    "separate_bias": ("eva02_tiny_patch14_224", {"separate": True}),
    "rope_each_head": ("vit_small_patch16_rope_mixed_224", {}),
    "rope_halves": ("vit_small_patch16_dinov3", {}),
    "few_keys": ("", {}),
}


def tiny(form="class", **changes):
    """Make a model of 3 blocks of 2 heads x 16 channels on a 4 x 4 grid, in double precision."""
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import ResPostBlock, VisionTransformer

    name, given = FORMS[form]
    shape = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    given = {**shape, **given, **changes}
    separate = given.pop("separate", False)
    torch.manual_seed(0)
    if form == "post_norm":
        model = VisionTransformer(block_fn=ResPostBlock, init_values=1.0, **given)
    elif form == "few_keys":
        rope = {"attn_type": "rope", "use_rot_pos_emb": True, "qkv_fused": False, "rope_grid_indexing": "xy"}
        model = Eva(num_kv_heads=1, qk_norm=True, **rope, **given)
    else:
        model = timm.create_model(name, **given)
    for block in model.blocks:
        if separate:
            block.attn.qkv_bias_separate = True
        if form == "few_keys":
            block.attn.gate = nn.Linear(32, 32)
    for key, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and not key.endswith("bias")), std=spread)
    return model.double().eval()


def images(rows=3, size=(32, 32), seed=1):
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed)).double()


def refusal(model, *given, **settings):
    with pytest.raises((SiteError, SettingError)) as caught:
        bigain.attach(model, *given, **settings)
    return type(caught.value), str(caught.value)


def rotated(vector, sines, cosines, halves):
    """Turn pairs of channels as complex numbers: x of one head and token, `[D]`."""
    width = len(vector) // 2
    first, second = (vector[:width], vector[width:]) if halves else (vector[::2], vector[1::2])
    angles = (slice(None, width) if halves else slice(None, None, 2),)
    turned = torch.complex(first, second) * torch.complex(cosines[angles], sines[angles])
    return torch.cat([turned.real, turned.imag]) if halves else torch.stack([turned.real, turned.imag], -1).flatten()


def projections(attn, queries, keys):
    if attn.qkv is None:
        return attn.q_proj(queries), attn.k_proj(keys), attn.v_proj(keys)
    query, key, value = (F.linear(x, w) for x, w in zip((queries, keys, keys), attn.qkv.weight.chunk(3), strict=True))
    if getattr(attn, "q_bias", None) is not None:
        return query + attn.q_bias, key, value + attn.v_bias
    bias = torch.zeros(3 * query.shape[-1]).double() if attn.qkv.bias is None else attn.qkv.bias
    return tuple(x + part for x, part in zip((query, key, value), bias.chunk(3), strict=True))


def attention(attn, queries, keys, angles, bias):
    """Attend one row, head by head: queries `[N, C]`, keys `[M, C]`; angles for both, `[H, N, 2D]`, or none."""
    query, key, value = projections(attn, queries, keys)
    heads = [x.unflatten(-1, (-1, attn.head_dim)).transpose(0, 1) for x in (query, key, value)]
    query, key, value = attn.q_norm(heads[0]), attn.k_norm(heads[1]), heads[2]
    repeats = len(query) // len(key)
    halves, found = getattr(attn, "rotate_half", False), []
    for head in range(len(query)):
        mine = [query[head], key[head // repeats]]
        for number, table in enumerate(angles or ()):
            sines, cosines = table[head % len(table)].chunk(2, dim=-1)
            start = len(mine[number]) - len(sines)
            turned = [rotated(x, s, c, halves) for x, s, c in zip(mine[number][start:], sines, cosines, strict=True)]
            mine[number] = torch.cat([mine[number][:start], torch.stack(turned)])
        logits = mine[0] @ mine[1].T / attn.head_dim**0.5 + bias
        found.append(logits.softmax(-1) @ value[head // repeats])
    mixed = attn.norm(torch.cat(found, dim=-1))
    gate = getattr(attn, "gate", None)
    return attn.proj(mixed if gate is None else mixed * gate(queries).sigmoid())


def moved(table, plan, prefix):
    """Give each reduced token its destination's angles, or what the windows make of unit vectors: `[H, M, 2D]`."""
    table = table if table.ndim == 3 else table[None]
    held = getattr(plan, "inner", plan)
    if hasattr(held, "representatives"):
        return table[:, held.representatives[0, prefix:] - prefix]
    padded = F.pad(table, (0, 0, prefix, 0))
    short = torch.stack([plan.reduce(head[None])[0] for head in padded])[:, prefix:]
    sines, cosines = short.chunk(2, dim=-1)
    length = (sines**2 + cosines**2).sqrt()
    return torch.cat([sines / length, cosines / length], dim=-1)


class ByHand:
    """A model whose blocks are written out, row by row; everything around them is its own."""

    def __init__(self, model, reducer, shape, proportional=False, parts=ALL, layers=(0, 1, 2)):
        self.model, self.reducer, self.proportional = model, reducer, proportional
        self.parts, self.layers, self.grid = parts, layers, bigain.Grid(shape, prefix=model.num_prefix_tokens)

    def attend(self, attn, tokens, rope, plan):
        found = []
        for row, x in enumerate(tokens):
            angles = None if rope is None else [rope if rope.ndim == 3 else rope[None]] * 2
            if plan is None:
                found.append(attention(attn, x, x, angles, 0))
                continue
            one = self.reducer.plan(tokens[row : row + 1], self.grid)
            short = one.reduce(x[None])[0]
            bias = one.sizes[0].double().log() if self.proportional else 0
            if angles is not None:
                near = moved(rope, one, self.grid.prefix)
                angles = [near if one.kind == "merge" else angles[0], near]
            mixed = attention(attn, short if one.kind == "merge" else x, short, angles, bias)
            found.append(one.restore(mixed[None])[0] if one.kind == "merge" else mixed)
        return torch.stack(found)

    def block(self, block, layer, x, rope):
        post, ones = type(block).__name__ in ("ResPostBlock", "EvaBlockPostNorm"), [1.0, 1.0]
        gammas = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)
        gammas = [one if gamma is None else gamma for gamma, one in zip(gammas, ones, strict=True)]
        tokens = x if post else block.norm1(x)
        plan = self.reducer.plan(tokens, self.grid) if layer in self.layers else None
        mixed = self.attend(block.attn, tokens, rope, plan)
        mixed = block.norm1(mixed) if post else getattr(block, "ls1", nn.Identity())(mixed)
        x = x + gammas[0] * mixed
        tokens = x if post else block.norm2(x)
        if plan is not None and plan.kind == "merge" and "mlp" in self.parts:
            done = plan.restore(block.mlp(plan.reduce(tokens)))
        else:
            done = block.mlp(tokens)
        done = block.norm2(done) if post else getattr(block, "ls2", nn.Identity())(done)
        return x + gammas[1] * done

    @torch.no_grad()
    def __call__(self, x):
        model = self.model
        found, rope = model.patch_embed(x), None
        found = model._pos_embed(found)
        found, rope = found if isinstance(found, tuple) else (found, None)
        found = model.norm_pre(found)
        for layer, block in enumerate(model.blocks):
            found = self.block(block, layer, found, rope[layer] if getattr(model, "rope_mixed", False) else rope)
        return model.forward_head(model.norm(found))


# DINOv3's coordinates are symmetric: the mean of two opposite angles, which a window asks for, is none.
CASES = [(form, spec) for form in FORMS for spec in ("merge", "kv", "pick" if form == "rope_halves" else "window")]


@pytest.mark.parametrize(("form", "spec"), CASES)
@torch.no_grad()
def test_the_attached_forward_equals_the_one_by_hand(form, spec):
    model, x = tiny(form), images()
    plain, reducer = model(x), bigain.build_reducer(REDUCERS[spec])
    parts = ALL if spec == "merge" else ("self",)
    for proportional in (False, True):
        expected = ByHand(model, reducer, (4, 4), proportional, parts)(x)
        assert not torch.allclose(expected, plain, atol=1e-3)
        where = {"parts": parts, "proportional": proportional}
        with bigain.attach(model, reducer, placement=where):
            torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
        assert_same(model(x), plain)


@pytest.mark.parametrize("form", ["class", "eva", "rope_each_head"])
@torch.no_grad()
def test_images_of_other_sizes_lie_on_grids_of_their_own(form):
    model, reducer = tiny(form, dynamic_img_size=True), bigain.build_reducer("lgtm", ratio=0.3)
    given = {(4, 6): images(2, (32, 48)), (6, 2): images(2, (48, 16))}
    expected = {shape: ByHand(model, reducer, shape, parts=("self",))(x) for shape, x in given.items()}
    with bigain.attach(model, reducer) as report:
        for shape, x in given.items():
            torch.testing.assert_close(model(x), expected[shape], atol=1e-6, rtol=1e-6)
    assert [(site.grid.shape, site.before, site.after) for site in report.sites] == [((4, 4), 17, 13)] * 3


def test_a_model_for_images_that_are_not_square_has_its_grid():
    model = tiny(img_size=(32, 48))
    with bigain.attach(model, "tome", ratio=0.5) as report:
        assert {site.grid for site in report.sites} == {bigain.Grid((4, 6), prefix=1)}
        assert model(images(1, (32, 48))).isfinite().all()


@torch.no_grad()
def test_class_distillation_and_register_tokens_stay_as_they_are():
    for form, prefix in {"class": 1, "distilled": 2, "registers": 5, "map": 0, "rope_halves": 5}.items():
        model = tiny(form)
        with bigain.attach(model, "tome", ratio=0.5) as report:
            assert {(site.grid.prefix, site.before, site.after) for site in report.sites} == {
                (prefix, 16 + prefix, 8 + prefix)
            }


@torch.no_grad()
def test_blocks_are_all_of_them_unless_told():
    model, x = tiny(), images()
    reducer = bigain.build_reducer(REDUCERS["merge"])
    with bigain.attach(model, reducer, layers=[1]) as report:
        assert [site.name for site in report.sites] == ["blocks.1.attn"]
        torch.testing.assert_close(model(x), ByHand(model, reducer, (4, 4), parts=("self",), layers=(1,))(x))


class Halved(nn.Linear):
    """A projection that is not what its weight says."""

    def forward(self, x):
        return super().forward(x) / 2


@torch.no_grad()
def test_a_fused_projection_is_sliced_only_where_it_is_a_plain_layer():
    x, spec = images(), REDUCERS["kv"]
    model, seen = tiny("map"), []
    with bigain.attach(model, spec):
        sliced = model(x)
        hook = model.blocks[1].attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        torch.testing.assert_close(model(x), sliced)
        assert seen == [16, 10]  # all tokens for queries, and 6 of 16 less for keys and values
        hook.remove()
    plain = model.blocks[1].attn.qkv
    half = Halved(32, 96).double()
    half.load_state_dict(plain.state_dict())
    model.blocks[1].attn.qkv = half
    with bigain.attach(model, spec):
        halved = model(x)
    model.blocks[1].attn.qkv = plain
    for parameter in plain.parameters():
        parameter.div_(2)
    with bigain.attach(model, spec):
        torch.testing.assert_close(halved, model(x))
    assert not torch.allclose(halved, sliced, atol=1e-3)


@torch.no_grad()
def test_attention_that_timm_was_told_not_to_fuse_stays_so():
    x, model, seen = images(), tiny(), []
    with bigain.attach(model, REDUCERS["kv"], placement={"proportional": True}):
        fused = model(x)
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        torch.testing.assert_close(model(x), fused)
    assert seen == [(3, 2, 17, 11)] * 3


def test_keys_of_attention_that_is_not_timms_are_not_made_fewer():
    from timm.layers import Attention

    class Own(Attention):
        def forward(self, x, attn_mask=None, is_causal=False):
            return super().forward(x, attn_mask, is_causal)

    told = "nothing is known of how blocks.0.attn, a {}, makes them: known are Attention, AttentionRope, EvaAttention"
    for layer, name in ((Own, "Own"), ("diff", "DiffAttention")):
        model, x = tiny("map", attn_layer=layer), images()
        kind, text = refusal(model, REDUCERS["kv"])
        assert kind is SiteError
        assert told.format(name) in text
        with torch.no_grad():
            plain = model(x)
            with bigain.attach(model, REDUCERS["merge"]):  # which needs to know nothing of it
                assert not torch.allclose(model(x), plain, atol=1e-3)
            assert_same(model(x), plain)


def test_blocks_that_do_everything_at_once_are_refused():
    from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock

    for block in (ParallelScalingBlock, ParallelThingsBlock):
        kind, text = refusal(tiny("map", block_fn=block), "tome", ratio=0.5)
        assert kind is SiteError
        assert re.match(
            rf"VisionTransformer is not as the adapter .*: {block.__name__} has no .* It was tested with timm 1\.", text
        )


@torch.no_grad()
def test_masks_of_unmerged_tokens_are_refused_in_the_call():
    model = tiny()
    for spec in REDUCERS.values():
        with bigain.attach(model, spec):
            with pytest.raises(
                SiteError, match=r"^blocks.0.attn was called with attn_mask, which says nothing of merg"
            ):
                model(images(), attn_mask=torch.zeros(17, 17).double())
            with pytest.raises(SiteError, match=r"^blocks.0.attn was called with is_causal"):
                model(images(), is_causal=True)
            assert model(images()).isfinite().all()


def test_detaching_takes_the_own_attention_away():
    model = tiny("eva")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with bigain.attach(model, REDUCERS["kv"], layers=2):
        ours = [name for name, module in model.named_modules() if "forward" in vars(module)]
        assert ours == ["blocks.0.attn", "blocks.1.attn"]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


@torch.no_grad()
def test_a_forward_that_is_replaced_later_is_noticed():
    model = tiny()
    with bigain.attach(model, REDUCERS["kv"]):
        attention = model.blocks[2].attn
        ours, attention.forward = attention.forward, lambda x, **_: x
        with pytest.raises(SiteError, match=r"^blocks\.2\.attn\.forward was replaced after a reducer was attached"):
            model(images())
        attention.forward = ours
        assert model(images()).isfinite().all()


@torch.no_grad()
def test_features_can_be_asked_for_without_the_head():
    model, x = tiny(), images()
    for spec in REDUCERS.values():
        with bigain.attach(model, spec):
            torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
            assert model.forward_intermediates(x, intermediates_only=True)[-1].shape == (3, 32, 4, 4)


def test_a_model_without_an_image_size_has_to_be_told_how_its_tokens_lie():
    model = tiny(dynamic_img_size=True)
    model.patch_embed.grid_size = None
    assert refusal(model, "tome", ratio=0.5) == (
        SettingError,
        "This VisionTransformer has no image size of its own; say how its tokens lie, as in "
        "attach(model, ..., shape=(14, 14)).",
    )
    report = bigain.attach(model, "tome", ratio=0.5, shape=(6, 4))
    assert report.sites[0].grid.shape == (6, 4)


def vit():
    import timm

    shape = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **shape)


def eva():
    import timm

    shape = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    return timm.create_model("eva02_base_patch14_448", **shape)


@parametrize_with_checks([vit, eva])
def test_conformance(subject, check):
    check(subject)
