"""Rules that nobody trained: fixed masks, chance, and the head's own confidence.

A rule is a plain torch module that gives the log-odds of RUN for each row of a batch of observations.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..envs.observation import ObservationLayout

CERTAIN = 1e4  # log-odds of a decision without doubt; finite, so that products with zero stay zero


@runtime_checkable
class PlanningRule(Protocol):
    """A rule that needs no observation: it can say the whole path before the image is seen."""

    def plan(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B U"]: ...


class FixedMaskRule(nn.Module):
    """Runs the same units on every image: run-all, skip-all, first-k and every other static mask.

    Args:
        layout: of the observations.
        keep: one truth value per unit.
    """

    samples = False
    macs = 0
    keep: Tensor  # bool [U]

    def __init__(self, layout: ObservationLayout, keep: Sequence[bool]) -> None:
        super().__init__()
        if len(keep) != layout.num_units:
            raise ValueError(f"keep: expected {layout.num_units} truth values, one per unit, got {len(keep)}")
        if not all(kept in (False, True) for kept in keep):
            raise ValueError(f"keep: expected truth values, got {keep!r}")
        self.arguments = {"keep": [bool(kept) for kept in keep]}
        self.depth = layout.depth
        self.register_buffer("keep", torch.tensor(self.arguments["keep"]), persistent=False)

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        return observation[:, self.depth] @ torch.where(self.keep, CERTAIN, -CERTAIN)

    def plan(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B U"]:
        del generator
        return self.keep.cpu().expand(batch_size, -1).clone()


class RandomRule(nn.Module):
    """Runs unit 0 always and every other one with the same probability.

    Args:
        layout: of the observations.
        rate: probability of RUN, in [0, 1].
    """

    samples = True
    macs = 0

    def __init__(self, layout: ObservationLayout, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected a probability in [0, 1], got {rate}")
        self.arguments = {"rate": rate}
        self.depth, self.rate = layout.depth, rate

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        odds = torch.full((len(observation),), _log_odds(self.rate), device=observation.device)
        return torch.where(observation[:, self.depth.start] > 0, CERTAIN, odds)

    def plan(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B U"]:
        units = self.depth.stop - self.depth.start
        keep_mask = torch.rand(batch_size, units, generator=generator) < self.rate
        keep_mask[:, 0] = True
        return keep_mask


class EarlyExitRule(nn.Module):
    """Runs units until the head's top probability reaches a threshold.

    Args:
        layout: of the observations.
        threshold: at least 0; unit 0 always runs, 0 runs nothing else, more than 1 everything. Or one before each of
            the U units, none above the one before, so that whoever has left does not come back.

    Raises:
        ValueError: for other thresholds, or a layout that does not hold the classes' probabilities.
    """

    samples = False
    macs = 0
    thresholds: Tensor  # before each unit [U]

    def __init__(self, layout: ObservationLayout, threshold: float | Sequence[float]) -> None:
        super().__init__()
        units = layout.num_units
        if isinstance(threshold, int | float):
            self.arguments: dict[str, Any] = {"threshold": threshold}
            before = torch.tensor([torch.inf, *[threshold] * (units - 1)])
        else:
            self.arguments = {"threshold": list(threshold)}
            before = torch.tensor(threshold)
        if len(before) != units:
            raise ValueError(f"threshold: expected a number, or one for each of {units} units, got {threshold}")
        if not (before >= 0).all() or (before.diff() > 0).any():
            raise ValueError(f"threshold: expected numbers of at least 0 that do not rise, got {threshold}")
        if layout.kind == "confidence":
            raise ValueError(
                f'observation: expected "belief" or "tokens", which hold probabilities, got {layout.kind!r}'
            )
        self.depth, self.probabilities = layout.depth, layout.probabilities
        self.register_buffer("thresholds", before, persistent=False)

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        confident = observation[:, self.probabilities].amax(1) >= self.thresholds[observation[:, self.depth].argmax(1)]
        return torch.where(confident, -CERTAIN, CERTAIN)


def _log_odds(probability: float) -> float:
    if probability in (0, 1):
        return CERTAIN if probability else -CERTAIN
    return math.log(probability / (1 - probability))
