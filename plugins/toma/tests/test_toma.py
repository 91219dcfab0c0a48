"""ToMA: a slow version, token by token and in double precision, and what holds for any soft merge."""

import itertools
import math

import numpy as np
import pytest
import torch
from bigain_toma import ToMA
from bigain_toma.merging import SoftMerge, select_facilities
from hypothesis import given, settings
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, NoReduction


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(shape, tile):
    """List the tokens of each tile: as few tiles as the sides allow, lengths that differ by one at most."""
    index, axes = np.arange(math.prod(shape)).reshape(shape), []
    for length, side in zip(shape, tile, strict=True):
        count = math.ceil(length / side)
        borders = [math.floor(i * length / count) for i in range(count + 1)]
        axes.append([slice(*pair) for pair in itertools.pairwise(borders)])
    return [index[pieces].ravel() for pieces in itertools.product(*axes)]


def slow(image, tiles, length, scale):
    """Share one image's tokens `[N, C]` out: A, `[M, N]`, and the destinations, `[M]`."""
    unit = image.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    matrix, destinations, seen = np.zeros((length, len(image))), [], 0
    for tile in tiles:
        count = math.floor((seen + len(tile)) * length / len(image)) - math.floor(seen * length / len(image))
        seen += len(tile)
        cosine = unit[tile] @ unit[tile].T
        gains, chosen = cosine.sum(axis=1).tolist(), []
        while len(chosen) < count:
            if chosen:
                best = cosine[chosen].max(axis=0)
                gains = [sum(max(cosine[v, i] - best[i], 0) for i in range(len(tile))) for v in range(len(tile))]
            others = [v for v in range(len(tile)) if v not in chosen]
            most = max(gains[v] for v in others)
            chosen.append(next(v for v in others if gains[v] >= most - 1e-5))
        for i, token in enumerate(tile):
            weights = np.exp(scale * (cosine[chosen, i] - cosine[chosen, i].max()))
            matrix[len(destinations) : len(destinations) + count, token] = weights / weights.sum()
        destinations += [int(tile[v]) for v in chosen]
    return torch.from_numpy(matrix), destinations


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
    tile = (*(draw(st.integers(1, 4)) for _ in shape[:-1]), draw(st.integers(2, 4)))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    smallest = min(len(tokens) for tokens in cut(shape, tile))
    removed = draw(st.integers(0, grid.size - math.ceil(grid.size / smallest)))
    reducer = ToMA((removed + 0.5) / grid.size if removed else 0, tile, draw(st.sampled_from([1.0, 20.0])))
    return reducer, grid, removed, randn(2, grid.tokens, 8, seed=draw(st.integers(0, 99)))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_equals_the_slow_version_on_any_grid(case):
    reducer, grid, removed, tokens = case
    reduction = reducer.plan(tokens, grid)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    assert reducer.reduced_length(grid) == reduced.shape[1] == grid.tokens - removed
    if not removed:
        assert isinstance(reduction, NoReduction)
        return
    body, ends = slice(grid.prefix, grid.prefix + grid.size), grid.tokens - grid.suffix
    for row in range(2):
        image = tokens[row, body]
        matrix, destinations = slow(image, cut(grid.shape, reducer.tile), grid.size - removed, reducer.scale)
        mass = matrix.sum(dim=1)
        expected = (matrix @ image.double()) / mass[:, None]
        short = slice(grid.prefix, grid.prefix + grid.size - removed)
        torch.testing.assert_close(reduced[row, short], expected.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(restored[row, body], (matrix.T @ expected).float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(reduction.sizes[row, short], mass.float(), rtol=1e-4, atol=1e-4)
        named = [*range(grid.prefix), *(d + grid.prefix for d in destinations), *range(ends, grid.tokens)]
        assert torch.equal(reduction.place_positions(tokens)[row], tokens[row, named])
    for fixed in (slice(0, grid.prefix), slice(ends, None)):
        assert torch.equal(restored[:, fixed], tokens[:, fixed])


@given(cases())
@settings(max_examples=30, deadline=None)
def test_the_inverse_is_the_transpose(case):
    """Of reduce times sizes, found through restore's weights: restore gives the identity its own matrix."""
    reducer, grid, _, tokens = case
    reduction = reducer.plan(tokens, grid)
    length = reduction.sizes.shape[1]
    weights = reduction.restore(torch.eye(length).expand(2, -1, -1))  # [B, N, M]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, grid.tokens))
    torch.testing.assert_close(weights.sum(dim=1), reduction.sizes)
    torch.testing.assert_close(reduction.sizes.sum(dim=1), torch.full((2,), float(grid.tokens)))
    total = weights.transpose(1, 2) @ tokens
    torch.testing.assert_close(reduction.reduce(tokens) * reduction.sizes[..., None], total, rtol=1e-4, atol=1e-4)
    own = reduction.place_positions(torch.arange(grid.tokens).expand(2, -1)[..., None])[..., 0]
    places = reduction.places()
    assert torch.equal(places.gather(1, own), torch.arange(length).expand(2, -1)), "a destination is at its own place"
    ahead = weights.gather(2, places[..., None])[..., 0]
    torch.testing.assert_close(ahead, weights.amax(dim=2))


@given(cases())
@settings(max_examples=30, deadline=None)
def test_equal_tokens_come_back(case):
    reducer, grid, _, tokens = case
    equal = torch.full((2, grid.tokens, 5), 3.7)
    for made_on in (tokens, equal, torch.zeros_like(tokens)):
        reduction = reducer.plan(made_on, grid)
        torch.testing.assert_close(reduction.restore(reduction.reduce(equal)), equal)


def test_tokens_of_few_kinds_come_back():
    """Four directions in each tile and four destinations: one of each is chosen, and each kind is kept."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    tokens = torch.eye(4)[order % 4][None]
    counted = torch.stack([tokens[0, tile].sum(dim=0) for tile in cut((8, 8), (4, 4))])
    assert (counted > 0).all()
    reduction = ToMA(0.75).plan(tokens, bigain.Grid((8, 8)))
    torch.testing.assert_close(reduction.restore(reduction.reduce(tokens)), tokens)
    torch.testing.assert_close(reduction.sizes.reshape(4, 4).sort(dim=1).values, counted.sort(dim=1).values)


def test_each_image_has_its_own_destinations():
    """The released code took those of the first image."""
    grid, first, second = bigain.Grid((8, 8)), randn(1, 64, 8, seed=1), randn(1, 64, 8, seed=2)
    both = ToMA(0.5).plan(torch.cat([first, second]), grid).destinations
    assert torch.equal(both, torch.cat([ToMA(0.5).plan(one, grid).destinations for one in (first, second)]))
    assert not torch.equal(both[0], both[1])


def test_of_two_tokens_that_add_the_same_the_first_is_chosen():
    """Each of two is as similar to the other, and so are two that are near each other and far from those chosen."""
    destinations = ToMA(0.5, tile=2).plan(randn(8, 64, 320), bigain.Grid((64,))).destinations
    assert destinations.tolist() == [list(range(0, 64, 2))] * 8
    angles = torch.tensor([0.0, 1, 2, 90, 97]) * math.pi / 180
    for turn in range(0, 360, 15):
        turned = angles + turn
        tokens = torch.stack([turned.cos(), turned.sin()], dim=-1)[None]
        assert ToMA(0.6, tile=5).plan(tokens, bigain.Grid((5,))).destinations.tolist() == [[2, 3]]


def test_none_is_chosen_twice_where_all_are_equal():
    picks = select_facilities(torch.ones(1, 6, 6), torch.tensor([True, True, False, True, True, True]), 5)
    assert sorted(picks[0].tolist()) == [0, 1, 3, 4, 5]


def test_a_high_scale_gives_each_token_to_its_most_similar_destination():
    tokens, grid = randn(1, 64, 8), bigain.Grid((8, 8))
    reduction = ToMA(0.5, scale=1e6).plan(tokens, grid)
    short = reduction.reduce(tokens)
    restored = reduction.restore(short)
    assert torch.allclose(restored, short.gather(1, reduction.places()[..., None].expand_as(tokens)), atol=1e-5)
    assert torch.allclose(reduction.sizes, reduction.sizes.round(), atol=1e-3)


@pytest.mark.parametrize("per", ["stage", "forward"])
def test_cached_shares_one_plan_among_blocks_and_none_between_passes(per):
    reducer = bigain.build_reducer("cached", reducer={"name": "toma", "ratio": 0.5}, per=per)
    grid, tokens, cache = bigain.Grid((8, 8), prefix=1), randn(2, 65, 8), {}
    first = reducer.plan(tokens, grid, Context(layer=0, stage="down", cache=cache))
    assert isinstance(first, SoftMerge)
    assert reducer.plan(2 - tokens, grid, Context(layer=1, stage="down", cache=cache)) is first
    assert (reducer.plan(tokens, grid, Context(layer=2, stage="up", cache=cache)) is first) == (per == "forward")
    assert reducer.plan(tokens, grid, Context()) is not first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32(dtype):
    tokens, grid = (randn(2, 64, 8) * 1000).to(dtype), bigain.Grid((8, 8))
    reducer = ToMA(0.5, scale=5.0)  # a scale of 1000 would multiply what rounding leaves of similarities
    expected = reducer.plan(tokens.float(), grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reducer.plan(tokens, grid)
        reduced = found.reduce(tokens)
        restored = found.restore(reduced)
    assert torch.equal(found.destinations, expected.destinations)
    torch.testing.assert_close(found.shares, expected.shares, rtol=1e-5, atol=1e-6)
    assert_rounded_once(reduced, expected.reduce(tokens.float()))
    assert_rounded_once(restored, expected.restore(reduced.float()))


def assert_rounded_once(found, exact):
    """Half a unit in the last place, and what float32 leaves of a sum."""
    bound = torch.finfo(found.dtype).eps / 2 * exact.abs() + 1e-5 * exact.abs().max()
    assert ((found.float() - exact).abs() <= bound).all()


def test_one_graph_under_compile_on_a_grid_that_tiles_do_not_divide():
    reducer, grid, tokens = ToMA(0.5, tile=3, scale=10), bigain.Grid((5, 7), prefix=1), randn(3, 36, 8)

    def run(tokens):
        reduction = reducer.plan(tokens, grid)
        short = reduction.reduce(tokens)
        return short, reduction.restore(short), reduction.sizes, reduction.places()

    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for found, expected in zip(compiled(tokens), run(tokens), strict=True):
        torch.testing.assert_close(found, expected)


def test_attached_to_a_model_by_name():
    """On a DiT whose 8 x 8 tokens are halved in attention, the output changes, and detaching takes that back."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=16, patch_size=2
    ).eval()
    given = {"timestep": torch.tensor([10, 500]), "class_labels": torch.tensor([1, 2])}
    latents = randn(2, 4, 16, 16)
    with torch.no_grad():
        before = model(latents, **given).sample
        with bigain.attach(model, "toma", ratio=0.5):
            whole = model(latents, **given).sample
            alone = model(latents[1:], **{key: value[1:] for key, value in given.items()}).sample
        assert not torch.allclose(whole, before)
        torch.testing.assert_close(whole[1:], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(latents, **given).sample, before)


def test_settings():
    reducer = bigain.build_reducer("toma", ratio=0.5)
    assert isinstance(reducer, ToMA)
    assert not reducer.averages
    assert repr(reducer) == "ToMA(ratio=0.5, tile=(4, 4), scale=1000.0)"
    with pytest.raises(SettingError, match=r"ToMA with ratio=0\.96 would remove 61 of 64.*\(8, 8\).*at most 60"):
        ToMA(0.96).reduced_length(bigain.Grid((8, 8)))
    with pytest.raises(SettingError, match=r"ToMA got a tile of 2 axes \(4, 4\) for a grid of 3 axes"):
        ToMA(0.5).plan(randn(1, 8, 4), bigain.Grid((2, 2, 2)))


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, 2e6, "1000", None, True])
def test_impossible_scale_is_refused(scale):
    with pytest.raises(SettingError, match="scale is a number above 0 and at most 1e\\+06; got"):
        ToMA(0.5, scale=scale)


@pytest.mark.parametrize("tile", [0, 1, (1, 1), (4, 0), (), 4.0, "4", True, None])
def test_impossible_tile_is_refused(tile):
    with pytest.raises(SettingError, match="A tile is one or more whole numbers >= 1, one of them >= 2; got"):
        ToMA(0.5, tile=tile)


@torch.no_grad()
def test_shares_are_carried_on_where_merged_tokens_stay_merged():
    """A ViT of equal patches gives the same class token, however its tokens are shared out."""
    timm = pytest.importorskip("timm")
    shape = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 16, "num_heads": 2, "num_classes": 4}
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    model.pos_embed[:, 1:] = model.pos_embed[:, 1:2]
    images = torch.randn(2, 3, 1, 1).expand(-1, -1, 32, 32)
    expected = model(images)
    with bigain.attach(model, "toma", ratio=0.25, tile=4, placement={"progressive": True}):
        torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()
