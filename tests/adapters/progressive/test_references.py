"""Progressive merging against ToMe by a slow loop, and against models in which copies stand for merged tokens."""

import copy
import math

import pytest
import torch

import bigain
from tests.comparing import assert_same

TOME = {"class_path": "bigain.reducers.tome_vit.ToMeViT"}
IN_TIMM = ("class", "mean", "mean_of_all", "mean_and_max", "distilled", "registers", "attention_pool")
WITH_ROPE = ("eva", "rope_each_head", "rope_halves", "prefix_in_attention_pool")
IN_TRANSFORMERS = (
    "ViTForImageClassification",
    "CLIPVisionModelWithProjection",
    "CLIPForImageClassification",
    "SiglipVisionModel",
    "SiglipForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
)


def tome(keys, removed, prefix):
    """Group the tokens of one row as ToMe does: the index each group's token had, and all of its members.

    Args:
        keys: Mean of the heads' keys, `[N, D]`.
        removed: r.
        prefix: Tokens that take no part.
    """
    unit = keys.detach() / keys.detach().norm(dim=-1, keepdim=True)
    sources, targets = range(0, len(keys), 2), range(1, len(keys), 2)
    best = []
    for source in sources:
        scores = [-math.inf if target < prefix else float(unit[source] @ unit[target]) for target in targets]
        partner = max(range(len(scores)), key=scores.__getitem__)
        best.append((-math.inf if source < prefix else scores[partner], source, targets[partner]))
    chosen = {source: target for _, source, target in sorted(best, reverse=True)[:removed]}
    assert all(source >= prefix for source in chosen)
    stay = list(range(prefix))
    stay += [source for source in sources if source >= prefix and source not in chosen]
    stay += [target for target in targets if target >= prefix]
    return [(index, [index, *(source for source, target in chosen.items() if target == index)]) for index in stay]


@torch.no_grad()
def by_loop(model, x, numbers, proportional=True):
    """Run timm's ViT with ToMe: Bolya et al., 2023, section 3, row by row and group by group."""
    found, prefix = model.norm_pre(model._pos_embed(model.patch_embed(x))), model.num_prefix_tokens
    sizes = torch.ones(found.shape[:2]).double()
    for block, removed in zip(model.blocks, numbers, strict=True):
        attn, normed = block.attn, block.norm1(found)
        query, key, value = attn.qkv(normed).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        query, key = attn.q_norm(query), attn.k_norm(key)
        logits = query @ key.transpose(-1, -2) / math.sqrt(attn.head_dim)
        logits = logits + (sizes.log()[:, None, None] if proportional else 0)
        found = found + block.ls1(attn.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2)))
        rows, counts = [], []
        for tokens, count, keys in zip(found, sizes, key.mean(dim=1), strict=True):
            groups = (
                [members for _, members in tome(keys, removed, prefix)] if removed else [[i] for i in range(len(keys))]
            )
            counts.append(torch.stack([count[members].sum() for members in groups]))
            rows.append(torch.stack([(count[m, None] * tokens[m]).sum(0) / count[m].sum() for m in groups]))
        found, sizes = torch.stack(rows), torch.stack(counts)
        found = found + block.ls2(block.mlp(block.norm2(found)))
    found = model.norm(found)
    if model.global_pool == "avg":
        found = (found * sizes[..., None])[:, prefix:].sum(1) / sizes[:, prefix:].sum(1, keepdim=True)
        return model.head(model.fc_norm(found))
    return model.forward_head(found)


@pytest.mark.parametrize("form", ["class", "mean", "registers", "distilled"])
@pytest.mark.parametrize("numbers", [[4, 3, 2], [8, 0, 3], [5, 4, 3]], ids=str)
@torch.no_grad()
def test_progressive_merging_is_tome(tiny, images, form, numbers):
    model, x = tiny(form), images()
    plain = model(x)
    for proportional in (True, False):
        expected = by_loop(model, x, numbers, proportional)
        assert not torch.allclose(expected, plain, atol=1e-3)
        where = {"progressive": numbers, **({} if proportional else {"proportional": False})}
        with bigain.attach(model, TOME, placement=where):
            torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
        assert_same(model(x), plain)


@torch.no_grad()
def test_the_order_of_tokens_is_tomes(tiny, images):
    model, x, seen = tiny(), images(), []
    hook = model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    reference = copy.deepcopy(model)
    reference.forward_head = seen.append
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        model(x)
    hook.remove()
    by_loop(reference, x, [4, 3, 2])
    assert seen[0].shape == (3, 8, 32)
    torch.testing.assert_close(seen[0], seen[-1], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_blocks_that_merge_nothing_are_given_merged_tokens_all_the_same(tiny, images):
    model, x = tiny("mean"), images()
    for layers, numbers in (([1], [0, 5, 0]), ([0, 2], [5, 0, 5])):
        where, expected = {"progressive": 5, "layers": layers}, by_loop(model, x, numbers)
        with bigain.attach(model, TOME, placement=where) as report:
            torch.testing.assert_close(model(x), expected)
            assert [site.name for site in report.sites] == [f"blocks.{layer}" for layer in layers]


def test_gradients_are_those_of_the_loop(tiny, images):
    model, x = tiny("mean").train(), images()
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        model(x).pow(2).sum().backward()
        found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    other = tiny("mean")
    by_loop.__wrapped__(other, x, [4, 3, 2]).pow(2).sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tome_on_cells_of_two_merges_the_same_tokens_up_to_their_order(tiny, images):
    model, x = tiny("mean"), images()
    where = {"progressive": 5, "layers": [0]}
    with bigain.attach(model, TOME, placement=where):
        expected = model(x)
    with bigain.attach(model, {"name": "tome", "ratio": 0.5, "cell": 2, "randomize": False}, placement=where):
        torch.testing.assert_close(model(x), expected)


class Copies:
    """A model in which every token stays where it is, and those that merged are copies of one another.

    Its own attention and pooling then weight a merged token by how often it is there. What is
    put in: where the MLP begins, each token becomes the mean of its group; rotary
    positions are those of the group's token.

    Args:
        model: The model.
        blocks: Its blocks, each with its attention and the module before its MLP.
        run: Runs it.
        numbers: r of every block.
        prefix: Tokens before the grid.
    """

    def __init__(self, model, blocks, run, numbers, prefix):
        self.model, self.run, self.prefix = model, run, prefix
        self.groups, self.keys = None, None
        for (block, attn, second), removed in zip(blocks, numbers, strict=True):
            key = getattr(attn, "k_norm", None) or attn.k_proj
            key.register_forward_hook(self.keep_keys)
            attn.register_forward_pre_hook(self.turn, with_kwargs=True)
            second.register_forward_pre_hook(lambda _, args, removed=removed: self.merge(args[0], removed))
            # The residual that the library adds is of tokens that are no copies yet.
            block.register_forward_hook(lambda *given, removed=removed: given[2] - self.far)

    def keep_keys(self, module, args, output):
        heads_first = output.ndim == 4
        self.keys = output.mean(dim=1) if heads_first else output.unflatten(-1, (2, -1)).mean(dim=2)

    def turn(self, module, args, kwargs):
        table = kwargs.get("rope")
        if table is None or self.groups is None:
            return None
        table = (table if table.ndim == 3 else table[None]).repeat(len(self.groups), 1, 1, 1)
        for row, groups in enumerate(self.groups):
            for token, members in groups:
                if token >= self.prefix:
                    places = [member - self.prefix for member in members]
                    table[row, :, places] = table[row, :, token - self.prefix, None].clone()
        return args, {**kwargs, "rope": table}

    def merge(self, tokens, removed):
        if self.groups is None:
            self.groups = [[(index, [index]) for index in range(tokens.shape[1])] for _ in tokens]
        merged = tokens.clone()
        for row, groups in enumerate(self.groups):
            keys = self.keys[row, [token for token, _ in groups]]
            if removed:
                found = tome(keys, removed, self.prefix)
                groups = [(groups[i][0], [j for m in members for j in groups[m][1]]) for i, members in found]
                self.groups[row] = groups
            for _, members in groups:
                merged[row, members] = tokens[row, members].mean(dim=0)
        self.far = tokens - merged
        return (merged,)

    @torch.no_grad()
    def __call__(self, x):
        self.groups = None
        return self.run(self.model, x)


@pytest.mark.parametrize("form", [*IN_TIMM, *WITH_ROPE, *IN_TRANSFORMERS])
@torch.no_grad()
def test_a_merged_token_counts_as_often_as_it_stands_for_one(tiny, images, output_of, blocks_of, form):
    model, x, numbers = tiny(form), images(), [4, 3, 2]
    plain = output_of(model, x)
    with bigain.attach(model, TOME, placement={"progressive": numbers}) as report:
        found, prefix = output_of(model, x), report.sites[0].grid.prefix
    other = copy.deepcopy(model)
    expected = Copies(other, blocks_of(other), output_of, numbers, prefix)(x)
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(output_of(model, x), plain)
