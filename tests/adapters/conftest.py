"""Tiny models with weights that are nowhere zero; forward passes by hand; a reducer that takes notes."""

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import bigain
from bigain.reducers.base import Context, Reduction, TokenReducer
from tests.comparing import assert_same

HOOKS = [
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
]


def _tiny_dit(**changes):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "in_channels": 3, "sample_size": 8}
    fixed = {"patch_size": 1, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"}
    model = DiTTransformer2DModel(**{**shape, **fixed, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _tiny_unet(**changes):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    down, up = ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2
    shape = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16, 16)}
    blocks = {"down_block_types": down, "up_block_types": up, "layers_per_block": 1}
    fixed = {"norm_num_groups": 4, "cross_attention_dim": 24, "attention_head_dim": 2}
    model = UNet2DConditionModel(**{**shape, **blocks, **fixed, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    # In double precision, two ways to the same tokens do not differ by what could decide which tokens are merged.
    return model.eval().double()


@pytest.fixture(scope="session")
def tiny_dit():
    """Make a DiT of 4 blocks of 2 heads x 8 channels on an 8 x 8 grid: `tiny_dit(num_layers=28)`."""
    return _tiny_dit


@pytest.fixture(scope="session")
def tiny_unet():
    """Make a U-Net of 7 blocks on 8 x 8 latents: `tiny_unet(use_linear_projection=True)`.

    Downsample of its blocks, from the input to the output: 1, 2, 4, 2, 2, 1, 1.
    """
    return _tiny_unet


@pytest.fixture
def dit():
    return _tiny_dit()


@pytest.fixture
def unet():
    return _tiny_unet()


@pytest.fixture
def batch():
    """Three noisy images at different timesteps, of different classes, as keyword arguments of a DiT."""
    return {
        "hidden_states": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([20, 500, 980]),
        "class_labels": torch.tensor([0, 4, 9]),
    }


@pytest.fixture
def latents():
    """Make keyword arguments of a U-Net: `latents()`, `latents(1)`, `latents(3, (12, 10))`."""

    def make(rows=3, shape=(8, 8), seed=1):
        generator = torch.Generator().manual_seed(seed)
        return {
            "sample": torch.randn(rows, 3, *shape, generator=generator).double(),
            "timestep": torch.tensor([20, 500, 980])[:rows],
            "encoder_hidden_states": torch.randn(rows, 5, 24, generator=generator).double(),
        }

    return make


class _Snapshot:
    """Everything about a model that attaching could change."""

    def __init__(self, model, batch):
        self.batch = batch
        self.before = self._look(model)
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            self.output = model(**batch).sample

    def _look(self, model):
        modules = list(model.modules())
        processors = [id(getattr(module, "processor", None)) for module in modules]
        return processors, [(type(module), module.forward, set(vars(module))) for module in modules]

    def check(self, model):
        assert self._look(model) == self.before
        assert all(len(getattr(module, name)) == 0 for module in model.modules() for name in HOOKS)
        state = model.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[key], self.state[key]) for key in state)
        with torch.no_grad():
            assert_same(model(**self.batch).sample, self.output)


@pytest.fixture(scope="session")
def snapshot():
    """Take a snapshot, `before = snapshot(model, batch)`; `before.check(model)` says that nothing is left behind."""
    return _Snapshot


@dataclass(frozen=True)
class _Halves(Reduction):
    """The first half of the tokens; each of the second half is restored from its counterpart."""

    sizes: torch.Tensor

    def reduce(self, tokens):
        return tokens[:, : self.sizes.shape[1]]

    def restore(self, reduced):
        return torch.cat([reduced, reduced], dim=1)


class _Recording(TokenReducer):
    """Takes down every plan it is asked for: tokens, grid and context."""

    def __init__(self):
        self.calls = []

    def plan(self, tokens, grid, context=None):
        grid.check(tokens)
        told = {name: getattr(context, name) for name in ("timestep", "layer", "stage", "cache")}
        self.calls.append(SimpleNamespace(tokens=tokens.detach().clone(), grid=grid, **told))
        return _Halves(torch.full((tokens.shape[0], grid.tokens // 2), 2.0))

    def reduced_length(self, grid, context=None):
        return grid.tokens // 2

    def __repr__(self):
        return "Recording()"


@pytest.fixture
def recording():
    return _Recording()


def _attention(attn, queries, states, bias=None):
    """Softmax attention as a textbook has it."""
    projected = (attn.to_q, queries), (attn.to_k, states), (attn.to_v, states)
    query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in projected)
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    mixed = (logits if bias is None else logits + bias).softmax(dim=-1) @ value
    return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


class _Block:
    """One block of a pass by hand: every row on its own, with the plan of the group it stands in."""

    def __init__(self, reducers, contexts, grid, proportional, share, source):
        self.reducers, self.contexts, self.grid = reducers, contexts, grid
        self.proportional, self.share, self.source, self.plans = proportional, share, source, {}

    def plan(self, part, row, tokens):
        """Plan for a row from the mean of its group: of the block's input, or else of `tokens`, this part's."""
        reducer = self.reducers[row].get(part)
        if reducer is None:
            return None
        first = row // self.share * self.share
        if (id(reducer), first) not in self.plans:
            source = tokens if self.source is None else self.source
            means = source.unflatten(0, (-1, self.share)).mean(
                dim=1, dtype=torch.promote_types(source.dtype, torch.float32)
            )[first // self.share, None]
            source = source[row, None] if self.share == 1 else means
            self.plans[id(reducer), first] = reducer.plan(source, self.grid, self.contexts[first])
        return self.plans[id(reducer), first]

    def attend(self, attn, tokens):
        return torch.cat([self._attend(attn, self.plan("self", i, tokens), x) for i, x in enumerate(tokens.split(1))])

    def _attend(self, attn, plan, row):
        if plan is None:
            return _attention(attn, row, row)
        short = plan.reduce(row)
        weight = plan.sizes if self.proportional else (plan.sizes > 0).float()
        bias = weight.log()[:, None, None]
        if plan.kind == "kv":
            return _attention(attn, row, short, bias)
        return plan.restore(_attention(attn, short, short, bias))

    def shortened(self, part, tokens, work):
        """Do `work(number of the row, its tokens)` on what the plan leaves of each row."""
        done = []
        for i, row in enumerate(tokens.split(1)):
            plan = self.plan(part, i, tokens)
            whole = plan is None or plan.kind == "kv"
            done.append(work(i, row) if whole else plan.restore(work(i, plan.reduce(row))))
        return torch.cat(done)


def _block_by_hand(block, reduced, tokens, timesteps, labels, text):
    """A transformer block of diffusers' (its figure in Rombach et al., or in Peebles and Xie)."""
    if block.norm_type == "ada_norm_zero":
        condition = block.norm1.linear(F.silu(block.norm1.emb(timesteps, labels, hidden_dtype=tokens.dtype)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = condition[:, None].chunk(6, dim=-1)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * reduced.attend(block.attn1, normed)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5) * (1 + scale_m) + shift_m
        return tokens + gate_m * reduced.shortened("mlp", normed, lambda _, x: block.ff(x))
    tokens = tokens + reduced.attend(block.attn1, block.norm1(tokens))
    normed = block.norm2(tokens)
    tokens = tokens + reduced.shortened("cross", normed, lambda i, x: _attention(block.attn2, x, text[i : i + 1]))
    return tokens + reduced.shortened("mlp", block.norm3(tokens), lambda _, x: block.ff(x))


def _shapes_of_blocks(model, batch):
    """Run the model, and say for each block, in order of execution, its name and the grid of its tokens."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    found, current = [], [None]
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Transformer2DModel):
                note = lambda _, args: current.__setitem__(0, tuple(args[0].shape[-2:]))  # noqa: E731
                hooks.callback(module.register_forward_pre_hook(note).remove)
            if isinstance(module, BasicTransformerBlock):
                note = lambda block, args, name=name: found.append((name, current[0] or _square(args)))  # noqa: E731
                hooks.callback(module.register_forward_pre_hook(note).remove)
        model(**batch)
    return found


def _square(args):
    return (math.isqrt(args[0].shape[1]),) * 2


def _by_hand(model, batch, reducers, layers=None, *, plan_from="block", proportional=False, share=1, seed=0):
    """Run a copy of the model whose blocks are written by hand, each row on its own.

    Args:
        model: A tiny model, with nothing attached.
        batch: Its arguments.
        reducers: Part to reducer; or a function of (timestep, stage, layer) that gives such a mapping.
        layers: Blocks in order of execution; `None` for all.
        plan_from: As in a placement.
        proportional: Whether log(size) is added to the logits of self-attention.
        share: So many rows follow the plan made from their mean.
        seed: For the context.
    """
    blocks, model = _shapes_of_blocks(model, batch), copy.deepcopy(model)
    rows = next(iter(batch.values())).shape[0]
    timesteps = torch.as_tensor(batch["timestep"]).expand(rows)
    labels, caches = batch.get("class_labels"), [{} for _ in range(rows)]

    def replace(name, shape, layer):
        stage = name.split(".attentions")[0] if "attentions" in name else None

        def forward(hidden_states, encoder_hidden_states=None, **_):
            given = [reducers(float(t), stage, layer) if callable(reducers) else reducers for t in timesteps]
            given = given if layers is None or layer in layers else [{}] * rows
            contexts = [Context(timesteps[i : i + 1], layer, stage, seed, cache=caches[i]) for i in range(rows)]
            source = hidden_states if plan_from == "block" else None
            reduced = _Block(given, contexts, bigain.Grid(shape), proportional, share, source)
            block = model.get_submodule(name)
            return _block_by_hand(block, reduced, hidden_states, timesteps, labels, encoder_hidden_states)

        model.get_submodule(name).forward = forward

    for layer, (name, shape) in enumerate(blocks):
        replace(name, shape, layer)
    with torch.no_grad():
        return model(**batch).sample


@pytest.fixture(scope="session")
def by_hand():
    """Run a forward pass with blocks written out: `by_hand(model, batch, {"self": reducer}, layers=[0, 1])`."""
    return _by_hand


@pytest.fixture(scope="session")
def shapes_of_blocks():
    return _shapes_of_blocks
