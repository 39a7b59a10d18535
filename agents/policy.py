"""Decision makers as plain torch modules: a rule gives the log-odds of RUN, and a policy decides by it.

Neither Stable-Baselines3 nor Gymnasium is needed to run them, so the deployed network uses the same objects that are
compared in the environment.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbone.registry import Registry
from ..envs.observation import ObservationLayout
from .networks import LstmRule, LstmState, MlpRule, PerUnitRule, PlanRule
from .rules import EarlyExitRule, FixedMaskRule, PlanningRule, RandomRule

Rule = FixedMaskRule | RandomRule | EarlyExitRule | MlpRule | LstmRule | PerUnitRule | PlanRule

RULES: Registry[type[Rule]] = Registry("rule")
RULES.register("mask", FixedMaskRule)
RULES.register("random", RandomRule)
RULES.register("early-exit", EarlyExitRule)
RULES.register("mlp", MlpRule)
RULES.register("lstm", LstmRule)
RULES.register("per-unit", PerUnitRule)
RULES.register("plan", PlanRule)


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

    @property
    def is_blind(self) -> bool:
        """Whether the rule says the whole path before it sees the image."""
        return isinstance(self.rule, PlanningRule)

    @property
    def look_after(self) -> int:
        """Blocks after which the rule sees the image once, and then decides all units; 0 if it decides one by one."""
        return self.rule.look_after if isinstance(self.rule, PlanRule) else 0

    @property
    def remembers(self) -> bool:
        """Whether a decision depends on the steps before, so that it takes each step, skipped or not."""
        return isinstance(self.rule, LstmRule)

    def step(
        self, observation: Float[Tensor, "B O"], state: LstmState | None = None
    ) -> tuple[Bool[Tensor, " *decisions"], LstmState | None]:
        """Decide: the likelier way, or a drawn one if the rule is a random one.

        Args:
            observation: before the next unit.
            state: of a rule with a memory, from the step before; None begins an episode.

        Returns:
            True where the unit shall run, [B], or for an upfront rule [B, U]; and the state for the next step.
        """
        if isinstance(self.rule, PlanRule) and (len(self.rule.codebook) or not self.rule.samples):
            return self.rule.choose(observation), state
        log_odds, state = self.log_odds(observation, state)
        return self._draw(log_odds) if self.rule.samples else log_odds > 0, state

    def decide(self, observation: Float[Tensor, "B O"]) -> Bool[Tensor, " *decisions"]:
        """`step` for a rule without a memory, or at the beginning."""
        return self.step(observation)[0]

    def log_odds(
        self, observation: Float[Tensor, "B O"], state: LstmState | None = None
    ) -> tuple[Float[Tensor, " *decisions"], LstmState | None]:
        """Log-odds of RUN, and the state for the next step."""
        if isinstance(self.rule, LstmRule):
            return self.rule(observation, state)
        return self.rule(observation), state

    @torch.no_grad()
    def lean(self, amount: float) -> None:
        """Shift every decision towards RUN by an amount of log-odds, which may be negative.

        Raises:
            ValueError: if the rule was not learnt.
        """
        if not isinstance(self.rule, MlpRule | LstmRule | PerUnitRule | PlanRule):
            raise ValueError(f"policy: expected a learnt rule to lean, got {self.rule_name!r}")
        self.rule.lean(amount)

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
            state: of a rule with a memory, from the call before; passed through by the others.
            episode_start: bool [B], rows whose memory begins anew.
            deterministic: False draws from the policy's distribution (of an upfront rule without a codebook).

        Returns:
            Actions, int64 [] or [B], of an upfront rule [U] or [B, U]; and the state.
        """
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        batch = torch.as_tensor(np.atleast_2d(observation), device=device)
        memory = self._memory(state, episode_start, device) if isinstance(self.rule, LstmRule) else None
        if deterministic or (isinstance(self.rule, PlanRule) and len(self.rule.codebook)):
            run, memory = self.step(batch, memory)
        else:
            log_odds, memory = self.log_odds(batch, memory)
            run = self._draw(log_odds)
        actions = run.long().cpu().numpy().reshape((*observation.shape[:-1], *run.shape[1:]))
        return actions, state if memory is None else memory

    @staticmethod
    def _memory(
        state: LstmState | None, episode_start: NDArray[np.bool_] | None, device: torch.device | None
    ) -> LstmState | None:
        """The state of the rows whose episode goes on, zero for the others."""
        if state is None or episode_start is None:
            return state
        goes_on = torch.as_tensor(~episode_start, device=device)[:, None]
        return state[0] * goes_on, state[1] * goes_on

    def _draw(self, log_odds: Float[Tensor, " *decisions"]) -> Bool[Tensor, " *decisions"]:
        uniform = torch.rand(log_odds.shape, generator=self.generator)
        return uniform.to(log_odds.device) < log_odds.sigmoid()
