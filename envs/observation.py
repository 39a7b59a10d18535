"""What the agent sees: the belief of the classifier head, the depth, compute spent and wanted. No Gymnasium here."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..backbone.protocol import ActionUnit, Backbone, num_units

ObservationKind = Literal["belief", "confidence", "tokens"]

MAX_CLASSES = 10  # beyond this many classes the belief holds the sorted top-k
CONFIDENCES = 3  # columns of the belief that follow its probabilities
LOGIT_SCALE = 10.0  # the top probability's logit is divided by this and clipped to [-1, 1]


@dataclass(frozen=True)
class ObservationLayout:
    """Where everything stands in the flat observation [O], in this order.

    probabilities, but not with "confidence" (P) | scaled logit of the top one, entropy / log K, top-two margin (3) |
    one-hot of the next unit, all zero at the end (U) | share of the units' MACs spent (1) | with budgets: the episode's
    (1) | with "tokens": layer-normed class token (D) and layer-normed mean patch token (D).

    Attributes:
        kind: "belief", "confidence" or "tokens".
        num_classes: classes K.
        num_units: decisions U per episode.
        embed_dim: token width D.
        num_prefix_tokens: leading tokens that are not patches.
        shows_budget: whether it holds the share of the dense compute that is to be spent.
    """

    kind: ObservationKind
    num_classes: int
    num_units: int
    embed_dim: int
    num_prefix_tokens: int
    shows_budget: bool = False

    @classmethod
    def of(
        cls, backbone: Backbone, kind: ObservationKind, action_unit: ActionUnit, shows_budget: bool = False
    ) -> "ObservationLayout":
        """The layout for a backbone."""
        units = num_units(backbone, action_unit)
        return cls(kind, backbone.num_classes, units, backbone.embed_dim, backbone.num_prefix_tokens, shows_budget)

    @property
    def probabilities(self) -> slice:
        """Empty with "confidence", which does not tell the classes apart."""
        return slice(0, 0 if self.kind == "confidence" else min(self.num_classes, MAX_CLASSES))

    @property
    def depth(self) -> slice:
        start = self.probabilities.stop + CONFIDENCES
        return slice(start, start + self.num_units)

    @property
    def budget(self) -> slice:
        """Empty where no budget is shown."""
        start = self.depth.stop + 1
        return slice(start, start + self.shows_budget)

    @property
    def progress(self) -> slice:
        """What does not depend on the tokens: depth, compute spent, budget."""
        return slice(self.depth.start, self.budget.stop)

    @property
    def cls_token(self) -> slice:
        """The layer-normed class token, with "tokens" only."""
        start = self.progress.stop
        return slice(start, start + self.embed_dim)

    @property
    def size(self) -> int:
        """Length O of the observation."""
        return self.progress.stop + (2 * self.embed_dim if self.kind == "tokens" else 0)

    @property
    def bound(self) -> float:
        """Largest absolute value an observation can have: a layer-normed vector is at most sqrt(D) long."""
        return math.sqrt(self.embed_dim) if self.kind == "tokens" else 1.0

    def observe(
        self, logits: Float[Tensor, "B K"], progress: Float[Tensor, "B P"], tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B O"]:
        """Assemble the observation.

        Args:
            logits: what the head says of the tokens now.
            progress: one-hot of the next unit, share of MACs spent, and the budget if it is shown.
            tokens: the current tokens; read with "tokens" only.
        """
        parts = [*_belief(logits, shows_probabilities=self.kind != "confidence"), progress]
        if self.kind == "tokens":
            patches = tokens[:, self.num_prefix_tokens :].mean(1)
            parts += [F.layer_norm(summary, (self.embed_dim,)) for summary in (tokens[:, 0], patches)]
        return torch.cat(parts, 1)


def belief(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B P3"]:
    """Probabilities (sorted top ten beyond ten classes), scaled top logit, entropy / log K, top-two margin.

    Returns:
        float32 in [-1, 1], min(K, 10) + 3 columns.
    """
    return torch.cat(_belief(logits), 1)


def _belief(logits: Float[Tensor, "B K"], shows_probabilities: bool = True) -> list[Tensor]:
    """Its parts; in few operations, as on a few rows each costs more than its arithmetic."""
    num_classes = logits.shape[1]
    log_probabilities = logits.float().log_softmax(1)
    probabilities = log_probabilities.exp()
    shown_sorted = shows_probabilities and num_classes > MAX_CLASSES
    top = probabilities.topk(MAX_CLASSES if shown_sorted else 2, 1).values
    first, second = top.split(1, 1)[:2]
    scaled_logit = (first.logit(1e-6) / LOGIT_SCALE).clamp(-1, 1)
    entropy = (probabilities * log_probabilities).sum(1, keepdim=True) / -math.log(num_classes)
    shown = [top if shown_sorted else probabilities] if shows_probabilities else []
    return [*shown, scaled_logit, entropy.clamp(0, 1), first - second]
