"""Tiny video transformers of three families, and their blocks written by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import bigain
from bigain.reducers.base import Context

TEXT = 7
"""Tokens of text."""

TIMESTEPS = torch.tensor([20, 500, 980])


def settle(model):
    """Give every weight a value, a norm's one near 1; double precision, as far as the models keep it."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2 + mean
    return model.eval().double()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def tiny_wan(**changes):
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    kind = WanVACETransformer3DModel if "vace_layers" in changes else WanTransformer3DModel
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 3}
    rest = {"text_dim": 10, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32}
    return settle(kind(**{**shape, **rest, **changes}))


def wan_inputs(rows=3, grid=(3, 5, 6), seed=1):
    frames, height, width = grid
    return {
        "hidden_states": noise(rows, 4, frames, 2 * height, 2 * width, seed=seed),
        "timestep": TIMESTEPS[:rows],
        "encoder_hidden_states": noise(rows, TEXT, 10, seed=seed + 1),
    }


def tiny_cogvideox(**changes):
    from diffusers import CogVideoXTransformer3DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 3}
    sample = {"sample_width": 12, "sample_height": 10, "sample_frames": 9, "max_text_seq_length": TEXT}
    rest = {"time_embed_dim": 8, "text_embed_dim": 10, "use_rotary_positional_embeddings": True}
    return settle(CogVideoXTransformer3DModel(**{**shape, **sample, **rest, **changes}))


def cogvideox_inputs(rows=3, grid=(3, 5, 6), seed=1, rotary=True, patch_frames=1):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = grid
    table = get_3d_rotary_pos_embed(16, ((0, 0), (height, width)), (height, width), frames)
    return {
        "hidden_states": noise(rows, frames * patch_frames, 4, 2 * height, 2 * width, seed=seed),
        "encoder_hidden_states": noise(rows, TEXT, 10, seed=seed + 1),
        "timestep": TIMESTEPS[:rows],
        **({"image_rotary_emb": table} if rotary else {}),
    }


def tiny_ltx(**changes):
    from diffusers import LTXVideoTransformer3DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 10, "in_channels": 4, "out_channels": 4, "num_layers": 3}
    merged = {**shape, "caption_channels": 10, **changes}
    # The text is projected to the model's width.
    width = merged["num_attention_heads"] * merged["attention_head_dim"]
    return settle(LTXVideoTransformer3DModel(**merged, cross_attention_dim=width))


def ltx_inputs(rows=3, grid=(3, 5, 6), seed=1):
    frames, height, width = grid
    return {
        "hidden_states": noise(rows, math.prod(grid), 4, seed=seed),
        "encoder_hidden_states": noise(rows, TEXT, 10, seed=seed + 1),
        "timestep": TIMESTEPS[:rows],
        # Prompts of different lengths.
        "encoder_attention_mask": (torch.arange(TEXT) < torch.tensor([[7], [4], [1]])).double()[:rows],
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32.0, 32.0),
    }


class Row:
    """One row at one block: its reducer's plan, made from the first part that asks, or the block's input."""

    def __init__(self, reducer, parts, grid, context, source):
        self.reducer, self.parts, self.grid, self.context, self.source = reducer, parts, grid, context, source
        self.plan = None

    def asked(self, part, tokens):
        if self.reducer is not None and part in self.parts and self.plan is None:
            source = tokens if self.source is None else self.source
            self.plan = self.reducer.plan(source, self.grid, self.context)
        return self.plan if part in self.parts else None

    def turns(self, turns):
        """Say by which unit complex numbers, `[M, P]`, the reduced tokens' pairs of channels are rotated."""
        shares = self.plan.place_positions(torch.eye(len(turns))[None])[0]  # [M, N]: whose positions a place has
        mixed = shares.to(turns.dtype) @ turns
        return mixed / mixed.abs()

    def attend(self, tokens, turns, attention):
        """Do `attention(queries, their turns, states, their turns)` with fewer tokens."""
        plan = self.asked("self", tokens)
        if plan is None:
            return attention(tokens, turns, tokens, turns)
        short, fewer = plan.reduce(tokens), None if turns is None else self.turns(turns)
        if plan.kind == "kv":
            return attention(tokens, turns, short, fewer)
        return self._restored(plan, attention(short, fewer, short, fewer))

    def shortened(self, part, tokens, work):
        plan = self.asked(part, tokens)
        whole = plan is None or plan.kind == "kv"
        return work(tokens) if whole else self._restored(plan, work(plan.reduce(tokens)))

    def _restored(self, plan, output):
        video, *rest = output if isinstance(output, tuple) else (output,)
        return (plan.restore(video), *rest) if rest else plan.restore(video)


def softmax_attention(query, key, value, heads, bias=None):
    """Attention as a textbook has it, `[N, H * D]` to the same."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (query, key, value))
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    logits = logits if bias is None else logits + bias
    return (logits.softmax(dim=-1) @ value).transpose(-2, -3).flatten(-2)


def rotate(tokens, turns):
    """Turn neighbouring channels as complex numbers."""
    return torch.view_as_real(torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


def modulated(tokens, shift, scale, norm=F.layer_norm):
    return norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def normed_keys(attn, norm, x):
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def wan_block(block, row, x, text, condition, turns):
    """Wan (Wan Team, 2025, figure 10): self-attention, cross-attention to text and image, MLP."""
    table = block.scale_shift_table.float() + condition.float()
    # With a condition for every token, [1, N, 6, C].
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.unbind(-2)
    attn = block.attn1

    def attend(queries, of_queries, states, of_states):
        query = normed_keys(attn, attn.norm_q, attn.to_q(queries)).unflatten(-1, (attn.heads, -1))
        key = normed_keys(attn, attn.norm_k, attn.to_k(states)).unflatten(-1, (attn.heads, -1))
        query, key = (rotate(a, b[:, None]) for a, b in ((query, of_queries), (key, of_states)))
        return attn.to_out[0](softmax_attention(query.flatten(-2), key.flatten(-2), attn.to_v(states), attn.heads))

    def cross(queries):
        attn, image = block.attn2, text.shape[1] - 512 if block.attn2.add_k_proj is not None else 0
        query = normed_keys(attn, attn.norm_q, attn.to_q(queries))
        pairs = [(attn.to_k, attn.norm_k, attn.to_v, text[:, image:])]
        if image:
            pairs.append((attn.add_k_proj, attn.norm_added_k, attn.add_v_proj, text[:, :image]))
        mixed = [
            softmax_attention(query, normed_keys(attn, norm, to_k(x)), to_v(x), attn.heads)
            for to_k, norm, to_v, x in pairs
        ]
        return attn.to_out[0](sum(mixed))

    # Norms, modulation and gates are in single precision, whatever the rest.
    x = x + gate_a * row.attend(modulated(x.float(), shift_a, scale_a).double(), turns, attend)
    norm2 = block.norm2
    normed = F.layer_norm(x.float(), x.shape[-1:], norm2.weight.float(), norm2.bias.float(), norm2.eps)
    x = x + row.shortened("cross", normed.double(), cross)
    return x + gate_m * row.shortened("mlp", modulated(x.float(), shift_m, scale_m).double(), block.ffn)


def cogvideox_block(block, row, x, text, condition, turns):
    """CogVideoX (Yang et al., 2024, figure 3): text and video attend as one sequence, each modulated by itself."""
    lead, attn = text.shape[1], block.attn1

    def expert(norm, video, text):
        parts = norm.linear(F.silu(condition))[:, None].chunk(6, dim=-1)
        normed = [F.layer_norm(t, t.shape[-1:], norm.norm.weight, norm.norm.bias, norm.norm.eps) for t in (video, text)]
        (shift, scale, gate), (text_shift, text_scale, text_gate) = parts[:3], parts[3:]
        return normed[0] * (1 + scale) + shift, normed[1] * (1 + text_scale) + text_shift, gate, text_gate

    def attend(queries, of_queries, states, of_states):
        def heads(layer, norm, video, turns):
            split = norm(layer(torch.cat([told, video], dim=1)).unflatten(-1, (attn.heads, -1)))
            if turns is not None:
                split = torch.cat([split[:, :lead], rotate(split[:, lead:], turns[:, None])], dim=1)
            return split.flatten(-2)

        query = heads(attn.to_q, attn.norm_q, queries, of_queries)
        key = heads(attn.to_k, attn.norm_k, states, of_states)
        value = attn.to_v(torch.cat([told, states], dim=1))
        both = attn.to_out[0](softmax_attention(query, key, value, attn.heads))
        return both[:, lead:], both[:, :lead]

    normed, told, gate, text_gate = expert(block.norm1, x, text)
    video, words = row.attend(normed, turns, attend)
    x, text = x + gate * video, text + text_gate * words
    normed, told, gate, text_gate = expert(block.norm2, x, text)
    return x + gate * row.shortened("mlp", normed, block.ff), text + text_gate * block.ff(told)


def ltx_block(block, row, x, text, condition, turns, mask):
    """LTX-Video (HaCohen et al., 2024, figure 6): self-attention, cross-attention to the text, MLP."""
    table = block.scale_shift_table + condition.unflatten(-1, (6, -1))
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.unbind(-2)

    def attend(queries, of_queries, states, of_states, attn=block.attn1, bias=None):
        query = normed_keys(attn, attn.norm_q, attn.to_q(queries))
        key = normed_keys(attn, attn.norm_k, attn.to_k(states))
        if of_queries is not None:  # all heads at once, each with angles of its own
            query, key = rotate(query, of_queries), rotate(key, of_states)
        return attn.to_out[0](softmax_attention(query, key, attn.to_v(states), attn.heads, bias))

    x = x + gate_a * row.attend(modulated(x, shift_a, scale_a, F.rms_norm), turns, attend)
    x = x + row.shortened("cross", x, lambda q: attend(q, None, text, None, block.attn2, mask))
    return x + gate_m * row.shortened("mlp", modulated(x, shift_m, scale_m, F.rms_norm), block.ff)


def as_turns(rotary, row):
    """Make unit complex numbers, `[N, P]`, of a library's pair of tables."""
    if rotary is None:
        return None
    cosines, sines = (table.squeeze(2) if table.ndim == 4 else table for table in rotary)
    cosines, sines = (table[row % len(table)] if table.ndim == 3 else table for table in (cosines, sines))
    return torch.complex(cosines[:, ::2].double(), sines[:, ::2].double())


FAMILIES = {
    "wan": SimpleNamespace(
        name="wan", model=tiny_wan, inputs=wan_inputs, block=wan_block, blocks="blocks",
        parts=("self", "cross", "mlp"), mlp="ffn",
        order=("hidden_states", "encoder_hidden_states", "temb", "rotary_emb"),
    ),
    "cogvideox": SimpleNamespace(
        name="cogvideox", model=tiny_cogvideox, inputs=cogvideox_inputs, block=cogvideox_block,
        blocks="transformer_blocks", parts=("self", "mlp"), mlp="ff",
        order=("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb"),
    ),
    "ltx": SimpleNamespace(
        name="ltx", model=tiny_ltx, inputs=ltx_inputs, block=ltx_block, blocks="transformer_blocks",
        parts=("self", "cross", "mlp"), mlp="ff",
        order=("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask"),
    ),
}  # fmt: skip


@pytest.fixture(params=list(FAMILIES))
def family(request):
    """Each family: its tiny model `family.model(**changes)`, and its arguments `family.inputs(rows, grid)`."""
    return FAMILIES[request.param]


@pytest.fixture
def families():
    return FAMILIES


class Recorder:
    """Takes down what every block is given and gives in one pass."""

    def __init__(self, family, model):
        self.family, self.model, self.calls = family, model, []

    def run(self, batch):
        hooks = [
            block.register_forward_hook(self._note, with_kwargs=True)
            for block in getattr(self.model, self.family.blocks)
        ]
        with torch.no_grad():
            output = self.model(**batch).sample
        for hook in hooks:
            hook.remove()
        return output

    def _note(self, block, args, kwargs, output):
        given = dict(zip(self.family.order, args, strict=False)) | kwargs
        self.calls.append((given, output if isinstance(output, tuple) else (output,)))


def _check(family, model, batch, reducers, layers, *, grid=(3, 5, 6), parts=("self",), plan_from="part", seed=0):
    """Run a model, attached, and compare each of its blocks with one written by hand on the same input.

    Args:
        family: One of `FAMILIES`.
        model: Its model.
        batch: Its arguments.
        reducers: The reducer attached, or a function that gives what it comes to at a timestep.
        layers: Blocks that are reduced.
        grid: How the tokens lie.
        parts: Which parts of them.
        plan_from: As in a placement.
        seed: For the context.

    Returns:
        What the model gives.
    """
    recorder = Recorder(family, model)
    output, timesteps = recorder.run(batch), batch["timestep"]
    timesteps = timesteps.flatten(1).amax(dim=1) if timesteps.ndim > 1 else timesteps
    caches = [{} for _ in timesteps]
    bare = type(model).from_config(model.config).eval().double()
    bare.load_state_dict(model.state_dict())
    for layer, (given, found) in enumerate(recorder.calls):
        block = getattr(bare, family.blocks)[layer]
        for i, timestep in enumerate(timesteps):
            x, *rest = (given[name] for name in family.order)
            one, (text, condition, rotary, *mask) = slice(i, i + 1), rest
            chosen = reducers(float(timestep)) if callable(reducers) else reducers
            context = Context(timesteps[one], layer, None, seed, cache=caches[i])
            source = x[one] if plan_from == "block" else None
            row = Row(chosen if layer in layers else None, parts, bigain.Grid(grid), context, source)
            with torch.no_grad():
                tensors = x[one], text[one], condition[one], as_turns(rotary, i), *(t[one] for t in mask)
                expected = family.block(block, row, *tensors)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for ours, theirs in zip(found, expected, strict=True):
                # Rotations, and most of Wan, are in single precision.
                torch.testing.assert_close(ours[one], theirs, atol=1e-5, rtol=1e-5)
    return output


@pytest.fixture
def check_by_hand():
    """Compare an attached model's blocks with such by hand: `check_by_hand(family, model, batch, reducer, [0, 1])`."""
    return _check
