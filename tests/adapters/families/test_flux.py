"""FLUX.1 and Chroma: blocks written out by hand, each row by itself, with positions of its own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bigain
from bigain.errors import SiteError
from bigain.reducers.base import Context
from tests.comparing import assert_same

SHAPE, TEXT, AXES = (4, 6), 5, (2, 2, 4)
MERGING = [
    {"name": "lgtm", "ratio": 0.5},
    {"name": "tome", "ratio": 0.4},
    {"name": "abm", "ratio": 0.5},
    {"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}, "per": "forward"},
]
SHRINKING = [{"name": "iekvd", "factor": 2}, {"name": "todo", "factor": 2}, {"name": "select", "keep": 0.5}]
SIZES = {"in_channels": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12}


def name_of(reducer):
    return reducer["name"]


def randomized(model, std=0.3):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=std)
    # In double precision, two ways to the same tokens do not differ by what could decide which tokens are merged.
    return model.eval().double()


def tiny_flux(kind="FluxTransformer2DModel", **changes):
    """Two double blocks, then two single ones."""
    import diffusers

    blocks = {"num_layers": 2, "num_single_layers": 2, "axes_dims_rope": AXES}
    own = {"pooled_projection_dim": 10}
    if kind.startswith("Chroma"):
        own = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return randomized(getattr(diffusers, kind)(**SIZES | blocks | own | changes))


def positions(rows, columns, image=0):
    lines, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.full_like(lines, image), lines, across], dim=-1).flatten(0, 1).double()


def inputs(rows=3, shape=SHAPE, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, shape[0] * shape[1], 3, generator=noise).double(),
        "encoder_hidden_states": torch.randn(rows, TEXT, 12, generator=noise).double(),
        "pooled_projections": torch.randn(rows, 10, generator=noise).double(),
        "timestep": torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)[:rows],
        "img_ids": positions(*shape),
        "txt_ids": torch.zeros(TEXT, 3).double(),
    }


def of_chroma(batch, mask=None):
    return {name: value for name, value in batch.items() if name != "pooled_projections"} | {"attention_mask": mask}


@pytest.fixture
def flux():
    return tiny_flux()


@pytest.fixture
def batch():
    """Three images of 4 x 6 tokens and their texts, each at a timestep of its own."""
    return inputs()


def run(model, batch):
    with torch.no_grad():
        return model(**batch, return_dict=False)[0]


def rms(norm, heads):
    eps = torch.finfo(heads.dtype).eps if norm.eps is None else norm.eps
    return heads * torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + eps) * norm.weight


def turns(ids):
    """Say by how much each channel pair of a head is turned at a position, as complex numbers [N, D / 2]."""
    angles = [
        ids[:, axis, None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width) for axis, width in enumerate(AXES)
    ]
    return torch.polar(torch.ones(()).double(), torch.cat(angles, dim=1))


def turned(heads, by):
    return torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * by).flatten(-2)


def textbook(queries, keys, values, bias=0.0):
    weights = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5 + bias).softmax(dim=-1)
    weights = weights.nan_to_num()  # a query that may see nothing
    return (weights @ values).transpose(0, 1).flatten(1)


def modulated(tokens, shift, scale):
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Row:
    """One row of a batch in one block, and what a plan makes of its tokens."""

    def __init__(self, make_plan, ids, mask):
        self.make_plan, self.ids, self.mask, self.plan = make_plan, ids, mask, None

    def decide(self, tokens):
        self.plan = self.plan or self.make_plan(tokens)

    def asked(self, image):
        return image if self.plan.kind == "kv" else self.plan.reduce(image[None])[0]

    def looked_at(self, image):
        return self.plan.reduce(image[None])[0]

    def restored(self, image):
        return image if self.plan.kind == "kv" else self.plan.restore(image[None])[0]

    def sides(self, values):
        """What the image's queries and keys have of something that belongs to positions, [N, C]."""
        short = self.plan.place_positions(values[None])[0]
        return (values if self.plan.kind == "kv" else short), short

    def turns(self):
        by = turns(self.ids)
        parts = zip(self.sides(by.real), self.sides(by.imag), strict=True)
        return [torch.polar(torch.ones(()).double(), torch.complex(*part).angle()) for part in parts]

    def bias(self):
        """A mask that allows adds 0 or forbids; one of numbers adds them."""
        if self.mask is None:
            return 0.0
        text, image = self.mask[:TEXT], self.mask[TEXT:, None]
        queries, keys = (torch.cat([text.double(), side[:, 0]]) for side in self.sides(image.double()))
        both = queries[:, None] * keys
        return both.log() if self.mask.dtype == torch.bool else both


def heads(attn, layer, tokens, norm=None):
    split = layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
    return split if norm is None else rms(norm, split)


def double_by_hand(block, row, image, text, modulation, prompts):
    """A double block: image and text with weights of their own attend over both."""
    (shift_a, scale_a, gate_a, shift_m, scale_m, gate_m), of_text = modulation
    attn, normed = block.attn, modulated(image, shift_a, scale_a)
    told = modulated(text, *of_text[:2])
    row.decide(normed)
    asked, looked_at = row.asked(normed), row.looked_at(normed)
    unturned = heads(attn, attn.to_q, asked, attn.norm_q)
    by = row.turns()
    queries = torch.cat([heads(attn, attn.add_q_proj, told, attn.norm_added_q), turned(unturned, by[0])], dim=1)
    keys = heads(attn, attn.to_k, looked_at, attn.norm_k)
    keys = torch.cat([heads(attn, attn.add_k_proj, told, attn.norm_added_k), turned(keys, by[1])], dim=1)
    values = torch.cat([heads(attn, layer, x) for layer, x in ((attn.add_v_proj, told), (attn.to_v, looked_at))], dim=1)
    mixed = textbook(queries, keys, values, row.bias())
    image = image + gate_a * row.restored(attn.to_out[0](mixed[TEXT:]))
    text = text + of_text[2] * attn.to_add_out(mixed[:TEXT])
    image = image + gate_m * block.ff(modulated(image, shift_m, scale_m))
    if prompts is not None:
        own = attn.processor
        keys, values = heads(attn, own.to_k_ip[0], prompts), heads(attn, own.to_v_ip[0], prompts)
        image = image + row.restored(own.scale[0] * textbook(unturned, keys, values))
    return text + of_text[5] * block.ff_context(modulated(text, *of_text[3:5])), image


def single_by_hand(block, row, image, text, modulation):
    """A single block: attention and MLP side by side, over text and image as one sequence."""
    shift, scale, gate = modulation
    attn, together = block.attn, modulated(torch.cat([text, image]), shift, scale)
    told, normed = together[:TEXT], together[TEXT:]
    row.decide(normed)
    asked, looked_at = (torch.cat([told, side]) for side in (row.asked(normed), row.looked_at(normed)))
    still = torch.ones(TEXT, sum(AXES) // 2, dtype=torch.complex128)
    by = [torch.cat([still, side]) for side in row.turns()]
    queries = turned(heads(attn, attn.to_q, asked, attn.norm_q), by[0])
    keys = turned(heads(attn, attn.to_k, looked_at, attn.norm_k), by[1])
    mixed = textbook(queries, keys, heads(attn, attn.to_v, looked_at), row.bias())
    done = block.proj_out(torch.cat([mixed, F.gelu(block.proj_mlp(asked), approximate="tanh")], dim=1))
    return text + gate * done[:TEXT], image + gate * row.restored(done[TEXT:])


def modulation_of(block, temb, double):
    """Read a row's shifts, scales and gates; Chroma's come ready."""
    if temb.ndim == 2:
        return (temb[:6], temb[6:]) if double else temb
    if not double:
        return block.norm.linear(F.silu(temb)).chunk(3)
    return [norm.linear(F.silu(temb)).chunk(6) for norm in (block.norm1, block.norm1_context)]


def by_hand(model, batch, reducer, prompts=None):
    """Run a copy of the model whose blocks are written by hand, each row by itself."""
    model, times = copy.deepcopy(model), batch["timestep"] * 1000
    caches = [{} for _ in times]

    def replace(layer, block, double):
        def forward(hidden_states, encoder_hidden_states=None, temb=None, attention_mask=None, **_):
            joined = encoder_hidden_states is None  # Chroma's single blocks
            rows = []
            for i, image in enumerate(hidden_states):
                text = image[:TEXT] if joined else encoder_hidden_states[i]
                context = Context(times[i : i + 1], layer, cache=caches[i])
                make = lambda x, context=context: reducer.plan(x[None], bigain.Grid(SHAPE), context)  # noqa: E731
                row = Row(make, batch["img_ids"], None if attention_mask is None else attention_mask[i])
                args = (block, row, image[TEXT:] if joined else image, text, modulation_of(block, temb[i], double))
                rows.append(
                    double_by_hand(*args, None if prompts is None else prompts[i]) if double else single_by_hand(*args)
                )
            texts, images = (torch.stack(side) for side in zip(*rows, strict=True))
            return torch.cat([texts, images], dim=1) if joined else (texts, images)

        block.forward = forward

    for layer, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        replace(layer, block, layer < len(model.transformer_blocks))
    return run(model, batch)


def close(attached, expected):
    # Groups of tokens are averaged, and queries and keys are turned, in single precision.
    torch.testing.assert_close(attached, expected, rtol=1e-4, atol=1e-5)


def test_the_blocks_by_hand_are_the_librarys(flux, batch):
    close(by_hand(flux, batch, bigain.build_reducer("identity")), run(flux, batch))


def test_no_reduction_changes_nothing_at_all(flux, batch):
    plain = run(flux, batch)
    with bigain.attach(flux, "identity", layers=4):
        assert_same(run(flux, batch), plain)


@pytest.mark.parametrize("reducer", MERGING + SHRINKING, ids=name_of)
def test_an_attached_pass_is_that_of_blocks_by_hand(flux, batch, reducer):
    expected, plain = by_hand(flux, batch, bigain.build_reducer(reducer)), run(flux, batch)
    with bigain.attach(flux, reducer, layers=4, shape=SHAPE):
        attached = run(flux, batch)
    close(attached, expected)
    assert (attached - plain).abs().max() > 1e-3


@pytest.mark.parametrize("mask", [None, "allowed", "added"])
@pytest.mark.parametrize("reducer", [MERGING[0], MERGING[2], SHRINKING[0]], ids=name_of)
def test_chroma_with_its_masks_is_that_of_blocks_by_hand(batch, reducer, mask):
    model, given = tiny_flux("ChromaTransformer2DModel"), None
    if mask == "allowed":
        given = torch.arange(TEXT + 24) < torch.tensor([TEXT, 2, 3])[:, None]
        given[:, TEXT:] = True
    if mask == "added":
        given = torch.rand(3, TEXT + 24, generator=torch.Generator().manual_seed(4)).double()
    batch = of_chroma(batch, given)
    expected = by_hand(model, batch, bigain.build_reducer(reducer))
    with bigain.attach(model, reducer, layers=4, shape=SHAPE):
        close(run(model, batch), expected)


@pytest.mark.parametrize("reducer", [{"name": "identity"}, MERGING[0], SHRINKING[0]], ids=name_of)
def test_image_prompts_are_attended_to_with_queries_that_are_not_turned(flux, batch, reducer):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    for block in flux.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(16, 6, scale=0.7))
    randomized(flux)
    prompts = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2)).double()
    batch["joint_attention_kwargs"] = {"ip_hidden_states": [prompts]}
    expected, whole = by_hand(flux, batch, bigain.build_reducer(reducer), prompts), run(flux, batch)
    with bigain.attach(flux, reducer, layers=4, shape=SHAPE):
        attached = run(flux, batch)
    close(attached, expected)
    assert torch.allclose(attached, whole) == (reducer["name"] == "identity")
    assert_same(run(flux, batch), whole)


class Wrapped(nn.Module):
    """A projection inside another module, with a small update beside it, as LoRA has it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.update = inner, nn.Linear(inner.in_features, inner.out_features).double()

    def forward(self, tokens):
        return self.inner(tokens) + self.update(tokens)


@pytest.mark.parametrize("reducer", [MERGING[0], SHRINKING[0]], ids=name_of)
def test_projections_inside_other_modules_are_used_as_they_are(flux, batch, reducer):
    torch.manual_seed(3)
    for block in [*flux.transformer_blocks, *flux.single_transformer_blocks]:
        block.attn.to_k, block.attn.to_v = Wrapped(block.attn.to_k), Wrapped(block.attn.to_v)
    for block in flux.single_transformer_blocks:
        block.proj_mlp, block.proj_out = Wrapped(block.proj_mlp), Wrapped(block.proj_out)
    expected = by_hand(flux, batch, bigain.build_reducer(reducer))
    with bigain.attach(flux, reducer, layers=4, shape=SHAPE):
        close(run(flux, batch), expected)


def test_fused_projections_merge_and_cannot_shrink_keys(flux, batch):
    expected = by_hand(flux, batch, bigain.build_reducer("lgtm", ratio=0.5))
    flux.fuse_qkv_projections()
    with bigain.attach(flux, "lgtm", ratio=0.5, layers=4):
        close(run(flux, batch), expected)
    with pytest.raises(SiteError, match="unfuse_qkv_projections"):
        bigain.attach(flux, "todo", factor=2)
