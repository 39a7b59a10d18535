"""Rewards: a task term at the end of the episode, minus a price for every block that runs.

With share_u the cost share of unit u (the shares sum to 1), the return of an episode is

    task(logits, label, ...) - cost_weight * sum_u a_u share_u

`blockdrop` and `dynavit` are the exceptions: their formulas hold the compute, so their blocks cost nothing on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The end of B episodes.

    Attributes:
        logits: of the path taken, float32 [B, K].
        labels: int64 [B].
        full_logits: of the full net on the same images, float32 [B, K]; None unless the reward asks for it.
        keep_mask: units that ran, bool [B, U].
        cost_weight: as in the environment, float32 [B] or the same for all.
    """

    logits: Float[Tensor, "B K"]
    labels: Int64[Tensor, " B"]
    full_logits: Float[Tensor, "B K"] | None
    keep_mask: Bool[Tensor, "B U"]
    cost_weight: Float[Tensor, " B"] | float


@dataclass(frozen=True)
class TaskReward:
    """A task term by name.

    Attributes:
        compute: maps outcomes to rewards [B].
        needs_full_logits: whether the full net must run on the image too.
        includes_cost: whether the formula prices the compute, so that steps do not.
    """

    compute: Callable[[Outcome], Float[Tensor, " B"]]
    needs_full_logits: bool = False
    includes_cost: bool = False


def correct(outcome: Outcome) -> Float[Tensor, " B"]:
    """1 if the prediction is the label, else 0."""
    return (outcome.logits.argmax(1) == outcome.labels).float()


def gain(outcome: Outcome) -> Float[Tensor, " B"]:
    """`correct` minus the same of the full net: 1 or -1 where only one of them is right, else 0.

    What is taken away does not depend on the actions, so the best policy is that of `correct`. But images that are
    right or wrong whatever is skipped add no noise any more, and a mean of 0 is "no accuracy lost".
    """
    return correct(outcome) - (_full_logits(outcome, "gain").argmax(1) == outcome.labels).float()


def margin(outcome: Outcome) -> Float[Tensor, " B"]:
    """Probability of the label minus the largest other probability, in [-1, 1]."""
    probabilities = outcome.logits.softmax(1)
    labels = outcome.labels[:, None]
    rivals = probabilities.scatter(1, labels, -1.0).amax(1)
    return probabilities.gather(1, labels)[:, 0] - rivals


def logprob(outcome: Outcome) -> Float[Tensor, " B"]:
    """Log-probability of the label [nats], at most 0."""
    return outcome.logits.log_softmax(1).gather(1, outcome.labels[:, None])[:, 0]


def kl(outcome: Outcome) -> Float[Tensor, " B"]:
    """Minus the Kullback-Leibler divergence KL(full net || path taken) [nats], at most 0 up to rounding."""
    full = _full_logits(outcome, "kl").log_softmax(1)
    return -(full.exp() * (full - outcome.logits.log_softmax(1))).sum(1)


def blockdrop(outcome: Outcome) -> Float[Tensor, " B"]:
    """1 - (blocks run / blocks)^2 if correct, else minus a penalty (BlockDrop, Wu et al., 2018, equation 2).

    The penalty is 1 / cost_weight, so that a larger `cost_weight` means fewer blocks here too.
    """
    penalty = 1 / outcome.cost_weight
    return torch.where(correct(outcome) > 0, 1 - outcome.keep_mask.float().mean(1) ** 2, -penalty)


def dynavit(outcome: Outcome) -> Float[Tensor, " B"]:
    """1[correct] - cost_weight * sum_u a_u w_u (Mersha and Assefa, 2022, as their code has it, with cost_weight 3).

    w is the softmax of a geometric schedule from 0.1 to 0.9 over U + 1 depths, of which the first U are used: late
    units are dearer.
    """
    units = outcome.keep_mask.shape[1]
    schedule = 0.1 * 9 ** (torch.arange(units + 1, device=outcome.logits.device) / units)
    return correct(outcome) - outcome.cost_weight * (outcome.keep_mask.float() @ schedule.softmax(0)[:units])


TASK_REWARDS: dict[str, TaskReward] = {
    "correct": TaskReward(correct),
    "gain": TaskReward(gain, needs_full_logits=True),
    "margin": TaskReward(margin),
    "logprob": TaskReward(logprob),
    "kl": TaskReward(kl, needs_full_logits=True),
    "blockdrop": TaskReward(blockdrop, includes_cost=True),
    "dynavit": TaskReward(dynavit, includes_cost=True),
}


def _full_logits(outcome: Outcome, reward: str) -> Float[Tensor, "B K"]:
    if outcome.full_logits is None:
        raise ValueError(f"full_logits: expected the full net's logits for the reward {reward!r}, got None")
    return outcome.full_logits
