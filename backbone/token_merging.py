"""Token merging (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461) on our own ViT.

After the attention of a block its most similar tokens become one, so that what follows runs on fewer. Written from
the paper's section 3; no training is needed.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from .macs import Macs, vit_macs
from .protocol import Backbone
from .vit import Attention, Block, ViT, scaled_dot_product

Sizes = Float[Tensor, "B N 1"] | None  # patches that a token stands for; None: each for one
Merged = tuple[Float[Tensor, "B M D"], Float[Tensor, "B M 1"] | None]  # tokens and their sizes


class TokenMergingViT(nn.Module):
    """A ViT that merges tokens after the attention of its blocks; implements `Backbone`.

    A token's size, the number of patches that it stands for, is the last channel of the tokens [B, N, D + 1]. So it
    travels wherever tokens do (gathered, written back, selected), and nothing else needs to know of it. Attention is
    proportional: the logarithm of a key's size is added to its scores.

    **With skipping, merge in the stem.** The rows of a batch skip different blocks, but must have equally many tokens.
    So all merging belongs into blocks that every image runs: the first `stem_blocks` are part of `embed`, no agent
    decides on them, and `depth` counts the others, which run on the fewer tokens. Where later blocks merge too, the
    network is to be run whole, as a static one.

    Args:
        vit: the network, not copied.
        merges: tokens to merge in each of its blocks; of N tokens at most (N - 1) // 2 can.
        stem_blocks: blocks that are part of `embed`.

    Raises:
        ValueError: if there is not one number of at least 0 for each block, or not one block is left to decide on.
    """

    num_prefix_tokens = 1

    def __init__(self, vit: ViT, merges: Sequence[int], *, stem_blocks: int = 0) -> None:
        super().__init__()
        if len(merges) != vit.depth or not all(isinstance(merged, int) and merged >= 0 for merged in merges):
            raise ValueError(f"merges: expected {vit.depth} integers of at least 0, one per block, got {merges!r}")
        if not 0 <= stem_blocks < vit.depth:
            raise ValueError(f"stem_blocks: expected 0..{vit.depth - 1}, got {stem_blocks}")
        self.vit, self.stem_blocks = vit, stem_blocks
        counts = [vit.num_tokens]  # tokens before each block, and at the end
        for merged in merges:
            counts.append(counts[-1] - min(merged, (counts[-1] - 1) // 2))
        self._counts = tuple(counts)
        self._merges = tuple(before - after for before, after in pairwise(counts))
        self.depth, self.embed_dim = vit.depth - stem_blocks, vit.embed_dim + 1
        self.num_tokens, self.num_classes = counts[stem_blocks], vit.num_classes
        self.image_size = vit.image_size

    @property
    def macs(self) -> Macs:
        """The matching of tokens counts as a part of the attention."""
        attention, mlp = [], []
        for before, after in pairwise(self._counts):
            attention.append(self._block_macs(before).attention[0] + self._matching_macs(before, after))
            mlp.append(self._block_macs(after).mlp[0])
        first, whole = self.stem_blocks, self.vit.macs
        stem = whole.stem + sum(attention[:first]) + sum(mlp[:first])
        return Macs(stem, tuple(attention[first:]), tuple(mlp[first:]), whole.head, unmerged=whole.total)

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        features, sizes = self.vit.embed(images), None
        for index in range(2 * self.stem_blocks):
            features, sizes = self._run_half(index, features, sizes)
        return _pack(features, sizes)

    def run_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        first = 2 * (index + self.stem_blocks)
        return self._run(range(first, first + 2), tokens)

    def run_half_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        first = index + 2 * self.stem_blocks
        return self._run(range(first, first + 1), tokens)

    def classify(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        return self.vit.classify(tokens[:, :, :-1])

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        tokens = self.embed(images)
        for index in range(self.depth):
            tokens = self.run_block(index, tokens)
        return self.classify(tokens)

    def _run(self, halves: range, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Half-blocks of the whole ViT."""
        expected = self._counts[(halves.start + 1) // 2]
        if tokens.shape[1] != expected:
            raise ValueError(
                f"tokens: expected {expected} per image before half-block {halves.start}, got {tokens.shape[1]}: where "
                "blocks merge that can be skipped, only the whole network can be run; merge in the stem"
            )
        features = tokens[:, :, :-1]
        sizes = None if expected == self.vit.num_tokens else tokens[:, :, -1:]
        for index in halves:
            features, sizes = self._run_half(index, features, sizes)
        return _pack(features, sizes)

    def _run_half(self, index: int, features: Float[Tensor, "B N D"], sizes: Sizes) -> Merged:
        """A half-block of the whole ViT; after an attention tokens are merged."""
        block, merged = cast(Block, self.vit.blocks[index // 2]), self._merges[index // 2]
        if index % 2:
            return block.mlp_half(features), sizes
        update, keys = attend(block.attention, block.attention_norm(features), sizes)
        features = features + update
        return merge_tokens(features, sizes, keys.mean(1), merged) if merged else (features, sizes)

    def _block_macs(self, num_tokens: int) -> Macs:
        vit = self.vit
        sizes = {"embed_dim": vit.embed_dim, "mlp_dim": vit.mlp_dim, "num_tokens": num_tokens}
        return vit_macs(depth=1, stem=0, num_classes=0, **sizes)

    def _matching_macs(self, before: int, after: int) -> int:
        """Similarities of the proposing tokens with the others, by keys averaged over the heads."""
        head_dim = self.vit.embed_dim // cast(Block, self.vit.blocks[0]).attention.num_heads
        return (before - 1) // 2 * (before // 2) * head_dim if after < before else 0


def merge_in_stem(vit: ViT, count: int) -> TokenMergingViT:
    """The same network for agents to skip on: block 0 always runs and merges `count` tokens, the others none."""
    return TokenMergingViT(vit, (count, *(0,) * (vit.depth - 1)), stem_blocks=1)


def unmerged(backbone: Backbone) -> Backbone:
    """The dense network that a backbone stands beside: itself, or the one that does not merge its tokens."""
    return backbone.vit if isinstance(backbone, TokenMergingViT) else backbone


def merging_ladder(vit: ViT) -> list[TokenMergingViT]:
    """The same network merging ever more tokens in each block: without training, a static rival at any compute.

    The rates, in tokens per block, are half to almost six times that of all patches over all blocks, in steps of the
    square root of two. A rate that is no integer alternates between its neighbours, the larger one first.
    """
    rates = [(vit.num_tokens - 1) / vit.depth * 2 ** (step / 2) for step in range(-2, 6)]
    totals = [[math.ceil(rate * blocks) for blocks in range(vit.depth + 1)] for rate in rates]
    schedules = [tuple(after - before for before, after in pairwise(total)) for total in totals]
    networks = [TokenMergingViT(vit, merges) for merges in schedules]
    return list({network.macs: network for network in networks}.values())


def attend(
    attention: Attention, tokens: Float[Tensor, "B N D"], sizes: Sizes
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B heads N E"]]:
    """Proportional attention: softmax(QK / sqrt(E) + log sizes) V (the paper's equation 1).

    Args:
        attention: whose weights to use.
        tokens: normalised.
        sizes: patches per token; None where all are 1, which is plain attention.

    Returns:
        The attention's output, and the keys; tokens are compared by their mean over the heads.
    """
    qkv = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, E]
    bias = None if sizes is None else sizes.log().transpose(1, 2)[:, None]  # [B, 1, 1, N]
    mixed = scaled_dot_product(query, key, value, bias)
    return attention.projection(mixed.transpose(1, 2).flatten(2)), key


def merge_tokens(
    tokens: Float[Tensor, "B N D"], sizes: Sizes, keys: Float[Tensor, "B N E"], count: int
) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M 1"]]:
    """Bipartite soft matching (section 3), each row by itself.

    Every other token, from the first on, proposes itself to the most similar (cosine of the keys) of the others; the
    `count` most similar pairs become one token each, the mean weighted by size. The first token, the class token,
    proposes itself to none, so it stays first and whole.

    Args:
        tokens: without their sizes.
        sizes: patches per token; None where all are 1.
        keys: by which tokens are compared.
        count: tokens to merge away, at most (N - 1) // 2.

    Returns:
        N - `count` tokens, those that proposed themselves and stay, in order, then the others; and their sizes.
    """
    keys = F.normalize(keys, dim=2)
    similarity, partner = (keys[:, 2::2] @ keys[:, 1::2].mT).max(2)  # each [B, P], by proposing token
    ranking = similarity.argsort(dim=1, descending=True, stable=True)
    leaving, staying = ranking[:, :count], ranking[:, count:].sort(dim=1).values
    first, receiving = torch.zeros_like(leaving[:, :1]), torch.arange(1, tokens.shape[1], 2, device=tokens.device)
    kept = torch.cat([first, 2 + 2 * staying, receiving.expand(len(tokens), -1)], 1)
    target = 1 + staying.shape[1] + partner.gather(1, leaving)  # where a leaving token's partner comes to stand

    def merge(values: Tensor) -> Tensor:
        rows = torch.arange(len(values), device=values.device)[:, None]
        left = values[rows, 2 + 2 * leaving]
        return values[rows, kept].scatter_add_(1, target[:, :, None].expand_as(left), left)

    weighted = tokens if sizes is None else tokens * sizes
    merged_sizes = merge(torch.ones_like(tokens[:, :, :1]) if sizes is None else sizes)
    return merge(weighted).div_(merged_sizes), merged_sizes


def _pack(features: Float[Tensor, "B N D"], sizes: Sizes) -> Float[Tensor, "B N D1"]:
    """Tokens as they travel, the size as the last channel."""
    return torch.cat([features, torch.ones_like(features[:, :, :1]) if sizes is None else sizes], 2)
