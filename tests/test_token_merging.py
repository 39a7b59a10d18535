"""Token merging: exact where nothing is merged or lost, against a plain loop, row by row, MACs against the counter."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import gymnasium as gym
import numpy as np
import pytest
import torch
import toys  # noqa: F401 - registers the tiny names
from nets import make_net
from test_macs import count_macs
from torch import Tensor
from torch.nn import functional as F

from vitskip.agents import DynamicViT
from vitskip.backbone import Backbone, ViT, load_backbone, run_masked
from vitskip.backbone.protocol import unit_runner
from vitskip.backbone.token_merging import TokenMergingViT, attend, merge_in_stem, merge_tokens, merging_ladder
from vitskip.backbone.vit import Block

DEPTH = 4


@pytest.fixture
def vit() -> ViT:
    """Four blocks, seventeen tokens; random weights large enough for every part to matter."""
    torch.manual_seed(0)
    vit = ViT(image_size=32, patch_size=8, embed_dim=16, depth=DEPTH, num_heads=2, num_classes=10)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def in_every_block(vit: ViT, count: int) -> TokenMergingViT:
    return TokenMergingViT(vit, (count,) * vit.depth).eval()


def tokens_sizes_and_keys(rows: int = 3, count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens [B, N, 5], sizes 1, 2 or 3 [B, N, 1], and keys [B, N, 4]."""
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randn(rows, count, 5, generator=generator)
    sizes = torch.randint(1, 4, (rows, count, 1), generator=generator).float()
    return tokens, sizes, torch.randn(rows, count, 4, generator=generator)


def merge_one_by_one(tokens: Tensor, sizes: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What `merge_tokens` does to one image, [N, D] and [N, 1], token by token."""
    proposals = []
    for index in range(2, len(tokens), 2):
        similarities = [float(F.cosine_similarity(keys[index], keys[other], 0)) for other in range(1, len(tokens), 2)]
        proposals.append((max(similarities), index, 1 + 2 * int(np.argmax(similarities))))
    merged = sorted(proposals, reverse=True)[:count]
    groups = {index: [index] for index in range(len(tokens))}
    for _, index, partner in merged:
        groups[partner] += groups.pop(index)
    rows = [*sorted(index for index in groups if index % 2 == 0), *range(1, len(tokens), 2)]
    members = [groups[index] for index in rows]
    means = [(tokens[group] * sizes[group]).sum(0) / sizes[group].sum() for group in members]
    return torch.stack(means), torch.stack([sizes[group].sum(0) for group in members])


@pytest.mark.parametrize("stem_blocks", [0, 1])
@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_nothing_merged_is_the_plain_vit(vit: ViT, tiny_images: Tensor, stem_blocks: int, action_unit: str) -> None:
    net = TokenMergingViT(vit, (0,) * DEPTH, stem_blocks=stem_blocks)
    assert isinstance(net, Backbone)
    assert torch.equal(net(tiny_images), vit(tiny_images))
    keep_mask = torch.rand(6, len(net.macs.units(action_unit)), generator=torch.Generator().manual_seed(2)) < 0.5
    stem = torch.ones(6, len(vit.macs.units(action_unit)) - keep_mask.shape[1], dtype=torch.bool)
    expected = run_masked(vit, tiny_images, torch.cat([stem, keep_mask], 1), action_unit)
    assert torch.equal(run_masked(net, tiny_images, keep_mask, action_unit), expected)
    assert net.macs.total == vit.macs.total


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("num_tokens", [9, 10])
@pytest.mark.parametrize("sized", [True, False])
def test_merging_is_that_of_a_plain_loop(count: int, num_tokens: int, sized: bool) -> None:
    tokens, sizes, keys = tokens_sizes_and_keys(count=num_tokens)
    before = tokens.clone()
    sizes = sizes if sized else torch.ones_like(sizes)
    merged = merge_tokens(tokens, sizes if sized else None, keys, count)
    rows = [merge_one_by_one(*row, count) for row in zip(tokens, sizes, keys, strict=True)]
    for part, expected in zip(merged, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(expected))
    assert merged[0].shape == (3, num_tokens - count, 5)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_weighted_mean_is_kept(count: int) -> None:
    tokens, sizes, keys = tokens_sizes_and_keys()
    merged, merged_sizes = merge_tokens(tokens, sizes, keys, count)
    assert torch.equal(merged_sizes.sum(1), sizes.sum(1))  # patches are neither lost nor counted twice
    torch.testing.assert_close((merged * merged_sizes).sum(1), (tokens * sizes).sum(1))
    torch.testing.assert_close(merged[:, 0], tokens[:, 0])  # the class token
    assert not torch.allclose(merged.mean(1), tokens.mean(1))  # the plain mean is not


def test_the_most_similar_pair_goes_first() -> None:
    tokens, sizes, keys = tokens_sizes_and_keys(rows=1)
    keys[0, 6] = 3 * keys[0, 3]  # of the same direction, not of the same length
    merged, merged_sizes = merge_tokens(tokens, sizes, keys, 1)
    assert merged_sizes[0, 4 + 1] == sizes[0, 6] + sizes[0, 3]  # class token, 2, 4, 8, then 1, 3, 5, 7
    keys[0, 0] = keys[0, 1]
    assert torch.equal(merge_tokens(tokens, sizes, keys, 1)[0], merged)  # not the class token


def test_a_token_of_size_two_weighs_as_two_equal_ones(vit: ViT) -> None:
    attention = cast(Block, vit.blocks[0]).attention
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0])[None, :, None].expand(2, -1, -1)
    repeated = tokens.repeat_interleave(torch.tensor([1, 2, 1, 3, 1]), 1)
    expected, keys = attend(attention, repeated, None)
    actual, _ = attend(attention, tokens, sizes)
    torch.testing.assert_close(actual, expected[:, [0, 1, 3, 4, 7]])
    torch.testing.assert_close(expected, attention(repeated))
    projected = F.linear(repeated, attention.qkv.weight[16:32], attention.qkv.bias[16:32])
    torch.testing.assert_close(keys, projected.unflatten(2, (2, 8)).transpose(1, 2))


@pytest.mark.parametrize("build", [in_every_block, merge_in_stem])
def test_merging_equal_patches_loses_nothing(vit: ViT, build: Callable[[ViT, int], TokenMergingViT]) -> None:
    """All patches of an image of one colour are alike, but for their position."""
    vit.pos_embed.data[:, 1:] = vit.pos_embed.data[:, 1:2]
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 32, 32)
    torch.testing.assert_close(build(vit, 4)(images), vit(images), rtol=1e-4, atol=1e-4)


def test_tokens_become_fewer_from_block_to_block(vit: ViT, tiny_images: Tensor) -> None:
    net = in_every_block(vit, 5)
    tokens, counts = net.embed(tiny_images), []
    for index in range(DEPTH):
        halfway = net.run_half_block(2 * index, tokens)
        tokens = net.run_block(index, tokens)
        counts.append((halfway.shape[1], tokens.shape[1]))
        torch.testing.assert_close(tokens[:, :, -1].sum(1), torch.full((6,), 17.0))
    assert counts == [(12, 12), (7, 7), (4, 4), (3, 3)]  # five less, but never more than every other patch
    assert torch.equal(net.classify(tokens), net(tiny_images))
    assert not torch.allclose(net(tiny_images), vit(tiny_images), atol=0.01)


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_each_row_skips_for_itself(vit: ViT, tiny_images: Tensor, action_unit: str) -> None:
    net = merge_in_stem(vit, 6)
    assert (net.depth, net.num_tokens, net.embed_dim) == (3, 11, 17)
    run, units = unit_runner(net, action_unit), len(net.macs.units(action_unit))
    keep_mask = torch.rand(6, units, generator=torch.Generator().manual_seed(1)) < 0.5
    garbage = tiny_images.clone()
    garbage[1:] = torch.nan
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            together = run_masked(net, tiny_images, keep_mask, action_unit)
            for row, kept in enumerate(keep_mask):
                tokens = net.embed(tiny_images[row][None])
                for unit in kept.nonzero()[:, 0].tolist():
                    tokens = run(unit, tokens)
                torch.testing.assert_close(net.classify(tokens)[0], together[row], rtol=1e-4, atol=1e-4)
            alone = run_masked(net, garbage, keep_mask, action_unit)
            torch.testing.assert_close(alone[0], together[0], rtol=1e-5, atol=1e-5)
            assert alone[1:].isnan().all()


@pytest.mark.parametrize("build", [in_every_block, merge_in_stem])
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_every_part_costs_what_the_counter_says(
    vit: ViT, build: Callable[[ViT, int], TokenMergingViT], count: int
) -> None:
    net = build(vit, count)
    images = torch.rand(3, 3, 32, 32)
    assert count_macs(lambda: net.embed(images)) == 3 * net.macs.stem
    for action_unit in ("block", "half"):
        tokens, run = net.embed(images), unit_runner(net, action_unit)
        for index, macs in enumerate(net.macs.units(action_unit)):
            assert count_macs(lambda run=run, index=index, tokens=tokens: run(index, tokens)) == 3 * macs > 0
            tokens = run(index, tokens)
        assert count_macs(lambda tokens=tokens: net.classify(tokens)) == 3 * net.macs.head
    assert count_macs(lambda: net(images)) == 3 * net.macs.total
    assert (net.macs.total < vit.macs.total) == (count > 0)


@pytest.mark.parametrize("rule", ["mlp", "early-exit", "mask"])
@pytest.mark.parametrize("kind", ["belief", "tokens"])
def test_an_agent_skips_on_it(vit: ViT, tiny_images: Tensor, rule: str, kind: str) -> None:
    net = make_net(rule, "half", kind, backbone=merge_in_stem(vit, 4))
    logits, trace = net(tiny_images), net.last_trace
    expected = run_masked(net.backbone, tiny_images, trace.keep_mask, "half")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert trace.macs.min() >= net.backbone.macs.stem


def test_by_name_it_is_an_environment_and_a_run(tmp_path: Path, tiny_images: Tensor) -> None:
    name = "tome:1:tiny-vit4"
    env = gym.make("ViTSkip-v0", backbone=name, dataset="tiny-digits", observation="tokens")
    env.reset(seed=0)
    steps = [env.step(index % 2)[2:4] for index in range(3)]
    assert steps == [(False, False), (False, False), (True, False)]  # block 0 is not decided on
    net = make_net(backbone=load_backbone(name))
    net.save(tmp_path, backbone_name=name)
    assert torch.equal(DynamicViT.load(tmp_path)(tiny_images), net(tiny_images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tome:tiny-vit4", "expected tome:COUNT:NAME, got 'tome:tiny-vit4'"),
        ("tome:-1:tiny-vit4", "expected tome:COUNT:NAME"),
        ("tome:1:", "expected tome:COUNT:NAME"),
        ("tome:1:tiny-vit5", "unknown backbone 'tiny-vit5'"),
        ("tome:1:tome:1:tiny-vit4", "expected tome:COUNT:NAME, got 'tome:1:tome:1:tiny-vit4'"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(name)


def test_the_ladder_spans_the_compute(vit: ViT) -> None:
    macs = [network.macs.total for network in merging_ladder(vit)]
    assert len(macs) >= 4 and macs == sorted(macs, reverse=True)
    assert vit.macs.total > macs[0] > 0.6 * vit.macs.total > macs[-1]
    deep = ViT(image_size=32, patch_size=8, embed_dim=8, depth=12, num_heads=2)
    counts = [network._counts for network in merging_ladder(deep)]
    assert counts[1] == tuple(range(17, 4, -1))
    assert counts[2] == (17, 15, 14, 13, 11, 10, 9, 7, 6, 5, 3, 2, 2)  # a rate of 4 / 3
    assert len(set(counts)) == len(counts)


def test_gradients_reach_every_parameter(vit: ViT, tiny_images: Tensor) -> None:
    in_every_block(vit, 3)(tiny_images).square().sum().backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_skipping_between_merges_is_refused(vit: ViT, tiny_images: Tensor) -> None:
    net = in_every_block(vit, 2)
    with pytest.raises(
        ValueError, match=r"tokens: expected 15 per image before half-block 2, got 17.*merge in the stem"
    ):
        net.run_block(1, net.embed(tiny_images))


@pytest.mark.parametrize(
    ("merges", "stem_blocks", "message"),
    [
        ((1, 1, 1), 0, r"merges: expected 4 integers of at least 0, one per block, got \(1, 1, 1\)"),
        ((1, 1, 1, -1), 0, "merges: expected 4 integers of at least 0"),
        ((1, 1, 1, 0.5), 0, "merges: expected 4 integers of at least 0"),
        ((1, 1, 1, 1), 4, r"stem_blocks: expected 0\.\.3, got 4"),
        ((1, 1, 1, 1), -1, r"stem_blocks: expected 0\.\.3, got -1"),
    ],
)
def test_wrong_arguments(vit: ViT, unchecked: None, merges: object, stem_blocks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenMergingViT(vit, merges, stem_blocks=stem_blocks)
