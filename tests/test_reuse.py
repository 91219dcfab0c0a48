"""The scripts of recipes/reuse do what they print: each against forward passes written out, or closed forms."""

import copy
import io
import re
import runpy
import shlex
import socket
import sys
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

import bigain

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "reuse"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


@cache
def run(name, *arguments):
    """Run a script, and return what it printed and what it left behind; a connection is an error."""
    printed = io.StringIO()
    argv = patch.object(sys, "argv", [name, *arguments])
    alone = patch.object(socket.socket, "connect", side_effect=AssertionError("a script reached for the network"))
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), redirect_stdout(printed), argv, alone:
        space = runpy.run_path(str(FOLDER / name), run_name="__main__")
    return SimpleNamespace(text=printed.getvalue(), **{key: space[key] for key in space if not key.startswith("__")})


def numbers(pattern, text):
    return [float(found) for found in re.findall(pattern, text)]


def change(found, whole):
    return ((found - whole).norm() / whole.norm()).item()


def agree(found, expected, whole):
    """Two ways to the same output are far closer to each other than to what no reduction gives."""
    assert change(found, whole) > 1e-3
    # Not all equal: where two tokens are alike up to rounding, either may be the one that merges.
    assert (found - expected).norm() < 0.02 * (found - whole).norm()


def softmax_attention(heads, query, key, value, bias=0.0):
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def torch_attention(module, queries, states):
    """`nn.MultiheadAttention` as a textbook has it."""
    (wq, wk, wv), (bq, bk, bv) = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    projected = F.linear(queries, wq, bq), F.linear(states, wk, bk), F.linear(states, wv, bv)
    return module.out_proj(softmax_attention(module.num_heads, *projected))


def on_all(work, tokens, planned=None):
    return work(tokens)


def on_fewer(work, tokens, planned=None, *, reducer, grid):
    """Do work on the mean of each group of tokens; every token gets what came of its group."""
    places = reducer.plan(tokens if planned is None else planned, grid).places()
    members = F.one_hot(places).to(tokens.dtype).transpose(1, 2)  # as many groups in each row
    short = work(members @ tokens / members.sum(dim=2, keepdim=True))
    return torch.stack([row[place] for row, place in zip(short, places, strict=True)])


def layer_by_hand(layer, tokens, attend=on_all, feed=on_all):
    """`nn.TransformerEncoderLayer` with the norms first: its attention and MLP by the functions given."""
    first = layer.norm1(tokens)
    tokens = tokens + attend(lambda x: torch_attention(layer.self_attn, x, x), first)
    return tokens + feed(lambda x: layer.linear2(layer.linear1(x).relu()), layer.norm2(tokens), first)


def test_there_are_scripts_and_the_readme_lists_them_all():
    listed = re.findall(r"^\| \[(\w+\.py)\]\((\w+\.py)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert len(SCRIPTS) >= 6
    assert sorted(listed) == [(name, name) for name in SCRIPTS]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_says_how_to_run_it_and_runs_without_a_network(name):
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) < 80
    assert f"\n    python recipes/reuse/{name}\n" in text.split('"""')[1]
    assert "tokens\n" in run(name).text  # of a site, before and after


def test_a_block_of_ones_own_attends_to_groups_of_tokens():
    script, lgtm = run("plain_transformer.py"), bigain.build_reducer("lgtm", ratio=0.5)

    def by_hand(blocks, attend):
        x = script.tokens
        for block in blocks:
            x = x + attend(lambda y, block=block: torch_attention(block.attention, y, y), block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return x

    with torch.no_grad():
        whole = by_hand(script.inside, on_all)
        expected = by_hand(script.inside, partial(on_fewer, reducer=lgtm, grid=bigain.Grid((16, 16), prefix=1)))
    torch.testing.assert_close(script.whole, whole)
    agree(script.called, expected, whole)
    agree(script.attached, script.called, whole)
    assert [(site.before, site.after) for site in script.report.sites] == [(1 + 256, 1 + 128)] * 4
    assert numbers(r"output by ([\d.]+)%", script.text) == [pytest.approx(100 * change(expected, whole), abs=0.2)]


@torch.no_grad()
def test_a_block_of_ones_own_takes_reducers_of_keys_and_values():
    script = run("plain_transformer.py")
    pooling = bigain.build_reducer("pooling", factor=2)
    block = script.Block(64, 4, script.grid, pooling).eval()
    normed = block.norm1(script.tokens)
    cells = F.avg_pool2d(normed[:, 1:].transpose(1, 2).unflatten(-1, (16, 16)), 2).flatten(2).transpose(1, 2)
    x = script.tokens + torch_attention(block.attention, normed, torch.cat([normed[:, :1], cells], dim=1))
    torch.testing.assert_close(block(script.tokens), x + block.mlp(block.norm2(x)))


def rotated(heads, positions):
    """Rotary positions as multiplication of complex numbers."""
    half = heads.shape[-1] // 2
    frequencies = torch.tensor([100 ** (-index / (half // 2 - 1)) for index in range(half // 2)])
    angle = torch.cat([positions[..., :1] * frequencies, positions[..., 1:] * frequencies], dim=-1)[:, None]
    turned = torch.complex(*heads.split(half, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["lgtm", "iekvd"])
def test_attention_with_rotary_positions_and_sizes_is_that_of_groups(name):
    """Each reduced token has the place of one of its own, and weighs as many as it stands for."""
    script, settings = run("rotary_attention.py"), {"lgtm": {"ratio": 0.5}, "iekvd": {"factor": 2}}[name]
    plan = bigain.build_reducer(name, **settings).plan(script.start, script.grid)
    block, short, positions = script.blocks[0], plan.reduce(script.start), script.positions
    moved = plan.place_positions(positions)
    if name == "lgtm":
        numbered = plan.place_positions(torch.arange(65.0)[None, :, None].expand(2, -1, -1))[..., 0].long()
        assert torch.equal(plan.places().gather(1, numbered), torch.arange(33).expand(2, -1))
        moved = torch.stack([row[index] for row, index in zip(positions, numbered, strict=True)])
    count = torch.stack([torch.bincount(row, minlength=short.shape[1]) for row in plan.places()])
    queries, where = (short, moved) if name == "lgtm" else (script.start, positions)
    query, key, value = (
        part.unflatten(-1, (4, -1)).transpose(1, 2)
        for part in (block.qkv(queries)[..., :64], block.qkv(short)[..., 64:128], block.qkv(short)[..., 128:])
    )
    logits = rotated(query, where) @ rotated(key, moved).transpose(-1, -2) / 4 + count.log()[:, None, None]
    output = block.out((logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    if name == "lgtm":
        output = torch.stack([row[place] for row, place in zip(output, plan.places(), strict=True)])
    torch.testing.assert_close(block(script.start, positions, plan), output, rtol=1e-4, atol=1e-5)


def test_rows_at_different_timesteps_are_as_if_each_were_alone():
    script = run("rotary_attention.py")
    scheduled = bigain.build_reducer("scheduled", rules=script.late, otherwise=script.merge)
    both = script.run(scheduled)
    torch.testing.assert_close(both[0], script.whole[0], rtol=1e-4, atol=1e-5)
    alone = script.run(bigain.build_reducer("lgtm", ratio=0.5), slice(1, 2))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert change(both[1], script.whole[1]) > 0.01
    found = numbers(r"rows by ([\d.]+)%", script.text), numbers(r"and ([\d.]+)%", script.text)
    assert found[0][2] == 0
    assert found[1][2] == pytest.approx(100 * change(both[1], script.whole[1]), abs=0.1)


def tome_step(block, x, sizes, removed):
    """One block of ToMe: attention weighted by size, then the most alike of alternating tokens merge (one row)."""
    attn, normed = block.attn, block.norm1(x)
    query, key, value = F.linear(normed, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
    x = x + attn.proj(softmax_attention(attn.num_heads, query, key, value, sizes.log()))
    metric = F.normalize(key.unflatten(-1, (attn.num_heads, -1)).mean(dim=2)[0], dim=-1)
    similarity = metric[::2] @ metric[1::2].T
    similarity[0] = -torch.inf  # the class token
    best, partner = similarity.max(dim=1)
    merged = best.argsort(descending=True)[:removed].tolist()
    groups = {odd: [odd] for odd in range(1, x.shape[1], 2)}
    for source in merged:
        groups[2 * int(partner[source]) + 1].append(2 * source)
    members = [[even] for even in range(0, x.shape[1], 2) if even // 2 not in merged] + list(groups.values())
    means = [(x[0, group] * sizes[group, None]).sum(dim=0) / sizes[group].sum() for group in members]
    x, sizes = torch.stack(means)[None], torch.stack([sizes[group].sum() for group in members])
    return x + block.mlp(block.norm2(x)), sizes


@torch.no_grad()
def test_timm_progressive_is_tome_written_out():
    script, logits = run("timm_vit.py"), []
    for image in script.images.split(1):
        x, sizes = script.model._pos_embed(script.model.patch_embed(image)), torch.ones(197)
        for block in script.model.blocks:
            x, sizes = tome_step(block, x, sizes, 8)
        assert x.shape[1] == 197 - 12 * 8
        logits.append(script.model.head(script.model.norm(x)[:, 0]))
    agree(script.progressive, torch.cat(logits), script.whole)


@torch.no_grad()
def test_timm_with_tokens_given_back_is_attention_on_groups():
    script, lgtm = run("timm_vit.py"), bigain.build_reducer("lgtm", ratio=0.5)
    fewer, model = partial(on_fewer, reducer=lgtm, grid=bigain.Grid((14, 14), prefix=1)), copy.deepcopy(script.model)
    for block in model.blocks:
        block.attn.forward = lambda x, work=block.attn.forward, **_: fewer(work, x)
    agree(script.given_back, model(script.images), script.whole)
    assert numbers(r": (\d+) tokens come out", script.text) == [197, 197, 197 - 12 * 8]
    outputs = script.whole, script.given_back, script.progressive
    told = numbers(r"changed by ([\d.]+)%", script.text)
    assert told == [pytest.approx(100 * change(output, script.whole), abs=0.051) for output in outputs]


@torch.no_grad()
def test_whisper_attends_to_fewer_frames():
    script, changes = run("whisper_encoder.py"), []
    lgtm = bigain.build_reducer("lgtm", ratio=0.5, cell=2)

    def attend(module, queries, states):
        projected = module.q_proj(queries), module.k_proj(states), module.v_proj(states)
        return module.out_proj(softmax_attention(module.num_heads, *projected))

    def merged(module, x):
        return on_fewer(lambda y: attend(module, y, y), x, reducer=lgtm, grid=bigain.Grid((1500,)))

    def downsampled(module, x):  # IE-KVD: 0.9 of the second of two frames, 0.1 of their mean
        return attend(module, x, 0.9 * x[:, 1::2] + 0.1 * x.unflatten(1, (-1, 2)).mean(dim=2))

    for way in (merged, downsampled):
        encoder = copy.deepcopy(script.encoder)
        for layer in encoder.layers:
            module = layer.self_attn
            module.forward = lambda hidden_states, module=module, way=way, **_: (way(module, hidden_states), None)
        expected = encoder(script.spectrogram).last_hidden_state
        changes.append(100 * change(expected, script.whole))
    agree(script.frames, expected, script.whole)  # what the script had last
    told = numbers(r"1500 frames come out, changed by ([\d.]+)%", script.text)
    assert told == [pytest.approx(expected, abs=0.1) for expected in changes]
    assert script.text.count("1500 -> 750 tokens") == 8


@torch.no_grad()
def test_a_video_block_attends_over_frames_height_and_width():
    script, shares, changes = run("video_block.py"), [], []
    for name in ("abm", "lgtm"):
        reducer = bigain.build_reducer(name, ratio=0.5, cell=(1, 2, 2))
        attend = partial(on_fewer, reducer=reducer, grid=bigain.Grid((4, 14, 14)))
        expected = layer_by_hand(script.block, script.tokens, attend)
        changes.append(100 * change(expected, script.whole))
        frames = {}
        places = reducer.plan(script.block.norm1(script.tokens), script.grid).places()[0].tolist()
        for token, place in enumerate(places):
            frames.setdefault(place, set()).add(token // 196)
        shares.append(100 * sum(len(frames[place]) > 1 for place in places) / len(places))
    assert shares[0] == 0 < shares[1]
    agree(script.output, expected, script.whole)
    assert numbers(r"changed by ([\d.]+)%", script.text) == [pytest.approx(value, abs=0.1) for value in changes]
    assert numbers(r"([\d.]+)% of the tokens merged", script.text) == [pytest.approx(value, abs=1) for value in shares]


def test_images_are_those_of_a_pipeline_whose_blocks_are_rewritten():
    script, lgtm = run("diffusers_pipeline.py"), bigain.build_reducer("lgtm", ratio=0.5)
    pipe = copy.deepcopy(script.pipe)
    pipe.set_progress_bar_config(disable=True)
    for block in pipe.transformer.transformer_blocks[:3]:  # 12 of 28 blocks, of 7
        attn = block.attn1

        def work(x, attn=attn):
            return attn.to_out[0](softmax_attention(attn.heads, attn.to_q(x), attn.to_k(x), attn.to_v(x)))

        attn.forward = lambda x, work=work, **_: on_fewer(work, x, reducer=lgtm, grid=bigain.Grid((8, 8)))
    whole, merged, expected = (torch.from_numpy(x) for x in (script.whole, script.merged, script.draw(pipe)))
    assert whole.shape == (2, 16, 16, 3)
    agree(merged, expected, whole)
    levels = 255 * (expected - whole).abs().mean().item()
    assert numbers(r" by ([\d.]+)", script.text) == [pytest.approx(levels, abs=0.1), 0]


def test_a_pipeline_may_come_from_a_folder(tmp_path):
    tiny = run("diffusers_pipeline.py")
    tiny.pipe.save_pretrained(tmp_path)
    found = run("diffusers_pipeline.py", *shlex.split(f"--model {tmp_path}"))
    assert found.pipe is not tiny.pipe
    agree(*(torch.from_numpy(images) for images in (found.merged, tiny.merged, tiny.whole)))
    changes = r" by ([\d.]+)"
    assert re.sub(changes, "", found.text) == re.sub(changes, "", tiny.text)
    assert numbers(changes, found.text) == [pytest.approx(value, abs=0.1) for value in numbers(changes, tiny.text)]


def classify_by_hand(model, images, attend=on_all, feed=on_all):
    """The classifier of the training script, its layers written out."""
    tokens = model.embed(images).flatten(2).transpose(1, 2) + model.positions
    for layer in model.encoder.layers:
        tokens = layer_by_hand(layer, tokens, attend, feed)
    return model.head(tokens.mean(dim=1))


def merged_by_hand(model, images):
    """The classifier with half of the tokens merged, in each layer as its attention's input decides."""
    fewer = partial(on_fewer, reducer=bigain.build_reducer("lgtm", ratio=0.5), grid=bigain.Grid((8, 8)))
    return classify_by_hand(model, images, fewer, fewer)


@torch.no_grad()
def test_training_lets_the_loss_fall_and_tells_the_accuracies_of_passes_by_hand():
    script = run("training.py")
    losses = numbers(r"loss ([\d.]+)", script.text)
    assert losses[0] == pytest.approx(torch.tensor(4.0).log().item(), rel=0.1)  # four classes, untrained
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    logits = merged_by_hand(script.model, script.images), classify_by_hand(script.model, script.images)
    right = [100 * (each.argmax(dim=1) == script.labels).float().mean().item() for each in logits]
    assert numbers(r"([\d.]+)% (?:are right with|without)", script.text) == [pytest.approx(x, abs=0.5) for x in right]
    assert min(right) > 50  # a guess is right in 25


def test_gradients_are_those_of_the_pass_by_hand_and_reach_every_parameter():
    script = run("training.py")
    model, images, labels = script.model, script.images[:8], script.labels[:8]
    parameters = dict(model.named_parameters())
    with bigain.attach(model, "lgtm", ratio=0.5, placement=script.where, shape=(8, 8)):
        found = torch.autograd.grad(F.cross_entropy(model(images), labels), [*parameters.values()])
    expected = torch.autograd.grad(F.cross_entropy(merged_by_hand(model, images), labels), [*parameters.values()])
    for name, gradient, other in zip(parameters, found, expected, strict=True):
        assert other.norm() > 0
        assert (gradient - other).norm() < 1e-3 * other.norm(), name
    layers = 4 * (4 + 4 + 4)  # weights and biases: attention in and out, two of the MLP, two norms
    assert f"gradients reached {1 + 2 + 2 + layers} of {len(parameters)} parameters" in script.text
