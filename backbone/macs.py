"""Analytic multiply-accumulates of a Vision Transformer (1 MAC = 2 FLOPs).

Matrix products and convolutions are counted, as `torch.utils.flop_counter` does; norms, biases, activations
and softmax are not.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Macs:
    """MACs of one image, by part.

    Attributes:
        stem: patch embedding.
        attention: attention half of each block.
        mlp: MLP half of each block.
        head: classifier on one class token.
        unmerged: of a network that merges tokens, the total of the one that does not; None of others.
    """

    stem: int
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    head: int
    unmerged: int | None = None

    def units(self, action_unit: Literal["block", "half"]) -> tuple[int, ...]:
        """MACs of each unit of decision, in order of execution."""
        pairs = zip(self.attention, self.mlp, strict=True)
        return tuple(map(sum, pairs)) if action_unit == "block" else tuple(half for pair in pairs for half in pair)

    @property
    def total(self) -> int:
        """With every block."""
        return self.stem + sum(self.attention) + sum(self.mlp) + self.head

    @property
    def dense(self) -> int:
        """The dense network, of which all shares of compute are: every block on every token."""
        return self.total if self.unmerged is None else self.unmerged


def vit_macs(*, depth: int, embed_dim: int, mlp_dim: int, num_tokens: int, stem: int, num_classes: int) -> Macs:
    """MACs of a plain pre-norm ViT whose blocks are all alike.

    Args:
        depth: blocks.
        embed_dim: token width D.
        mlp_dim: hidden width of the MLP.
        num_tokens: tokens N, prefix included.
        stem: MACs of the patch embedding.
        num_classes: classes K.
    """
    projections = 4 * num_tokens * embed_dim**2  # query, key, value, output
    scores_and_mixing = 2 * num_tokens**2 * embed_dim
    mlp = 2 * num_tokens * embed_dim * mlp_dim
    return Macs(
        stem=stem,
        attention=(projections + scores_and_mixing,) * depth,
        mlp=(mlp,) * depth,
        head=embed_dim * num_classes,
    )
