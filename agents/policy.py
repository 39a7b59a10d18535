"""Decision makers as plain torch modules: a rule gives the log-odds of RUN, and a policy decides by it.

Neither Stable-Baselines3 nor Gymnasium is needed to run them, so the deployed network uses the same objects that are
compared in the environment.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbone.registry import Registry
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
    """Runs blocks until the head's top probability reaches a threshold; unit 0 always runs.

    Args:
        layout: of the observations.
        threshold: at least 0; 0 runs unit 0 only, more than 1 everything.
    """

    samples = False
    macs = 0

    def __init__(self, layout: ObservationLayout, threshold: float) -> None:
        super().__init__()
        if not threshold >= 0:
            raise ValueError(f"threshold: expected a number of at least 0, got {threshold}")
        self.arguments = {"threshold": threshold}
        self.depth, self.probabilities, self.threshold = layout.depth, layout.probabilities, threshold

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        confident = observation[:, self.probabilities].amax(1) >= self.threshold
        run = ~confident | (observation[:, self.depth.start] > 0)
        return torch.where(run, CERTAIN, -CERTAIN)


class MlpRule(nn.Module):
    """A small tanh network on the observation: what reinforcement learning trains.

    Args:
        layout: of the observations.
        widths: hidden units of each layer.
    """

    samples = False

    def __init__(self, layout: ObservationLayout, widths: Sequence[int]) -> None:
        super().__init__()
        if not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"widths: expected positive integers, got {widths!r}")
        self.arguments = {"widths": list(widths)}
        sizes = [layout.size, *widths]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.macs = sum(layer.weight.numel() for layer in self.network if isinstance(layer, nn.Linear))

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        return self.network(observation)[:, 0]


RULES: Registry[type[FixedMaskRule] | type[RandomRule] | type[EarlyExitRule] | type[MlpRule]] = Registry("rule")
for _name, _rule in {"mask": FixedMaskRule, "random": RandomRule, "early-exit": EarlyExitRule, "mlp": MlpRule}.items():
    RULES.register(_name, _rule)

Rule = FixedMaskRule | RandomRule | EarlyExitRule | MlpRule


class Policy(nn.Module):
    """Decides by a rule; `predict` is Stable-Baselines3's, so agents and baselines are interchangeable.

    Args:
        rule_name: name in `RULES`.
        layout: of the observations.
        seed: of drawn decisions.
        **arguments: of the rule, JSON values.

    Attributes:
        rule: the rule.
        macs: multiply-accumulates of one decision, the classifier head's not included.
    """

    def __init__(self, rule_name: str, layout: ObservationLayout, *, seed: int = 0, **arguments: Any) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.rule_name, self.layout = rule_name, layout
        self.rule: Rule = RULES[rule_name](layout, **arguments)

    @property
    def macs(self) -> int:
        return self.rule.macs

    def decide(self, observation: Float[Tensor, "B O"]) -> Bool[Tensor, " B"]:
        """True where the unit shall run: the likelier decision, or a drawn one if the rule is a random one."""
        log_odds = self.rule(observation)
        return self._draw(log_odds) if self.rule.samples else log_odds > 0

    def plan(self, batch_size: int) -> Bool[Tensor, "B U"] | None:
        """The whole path of each image where the rule needs no observation, on the CPU; None where it does."""
        return self.rule.plan(batch_size, self.generator) if isinstance(self.rule, PlanningRule) else None

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """Actions for one observation [O] or a batch [B, O], as Stable-Baselines3's `predict`.

        Args:
            observation: from the environment.
            state: passed through.
            episode_start: not used.
            deterministic: False draws from the policy's distribution.

        Returns:
            Actions, int64 [] or [B], and the state.
        """
        del episode_start
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        batch = torch.as_tensor(np.atleast_2d(observation), device=device)
        run = self.decide(batch) if deterministic else self._draw(self.rule(batch))
        return run.long().cpu().numpy().reshape(observation.shape[:-1]), state

    def _draw(self, log_odds: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        uniform = torch.rand(len(log_odds), generator=self.generator)
        return uniform.to(log_odds.device) < log_odds.sigmoid()


def _log_odds(probability: float) -> float:
    if probability in (0, 1):
        return CERTAIN if probability else -CERTAIN
    return math.log(probability / (1 - probability))
