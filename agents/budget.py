"""Compute budgets: a Lagrangian that holds them while learning, and a last correction on validation images."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import root_scalar
from stable_baselines3.common.callbacks import BaseCallback

from ..envs.core import SkipCore
from .callbacks import SkipStatistics
from .dynamic_vit import DynamicViT
from .image_runner import ImageRunner

INTEGRAL = 8.0  # how far the multiplier's logarithm goes in all of training if that spends twice the budget
PROPORTIONAL = 0.5  # and what it gets on top while rollouts do: damps the swing that comes of the agent's delay
PRECISION = 1e-4  # log-odds: Q-networks decide by small differences
FIRST_STEP = 0.25  # log-odds; after training most agents nearly hold their budget
CLOSE_ENOUGH = 3e-4  # to the budget; the next images will not be these
LEAN = 1024.0  # log-odds, the furthest; agents that learnt for long, or linearly, can be sure to some hundreds


class BudgetController(BaseCallback):
    """Raises a budget's cost weight when rollouts spend more than the budget, and lowers it when they spend less.

    The cost weight is the Lagrange multiplier of "mean MACs share <= budget"; a proportional-integral controller moves
    its logarithm (Stooke et al., 2020). It waits while a curriculum forces units to run.

    Args:
        core: whose `cost_weight` to steer; it must be positive.
        budgets: mean shares of the dense net's MACs, in (0, 1), one for each cost weight.
        statistics: of the same training run; it must come first in the list of callbacks.
    """

    def __init__(self, core: SkipCore, budgets: Sequence[float], statistics: SkipStatistics) -> None:
        super().__init__()
        self.core, self.budgets, self.statistics = core, np.array(budgets), statistics
        self._seen, self._since, self._log = 0, 0, np.log(core.cost_weight)

    def get_state(self) -> dict[str, Any]:
        return {"seen": self._seen, "since": self._since, "log": self._log.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._seen, self._since, self._log = state["seen"], state["since"], np.array(state["log"])

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        rollouts = len(self.statistics.curve["timesteps"])
        if rollouts == self._seen:
            return
        share = (self.num_timesteps - self._since) / self.model._total_timesteps
        self._seen, self._since = rollouts, self.num_timesteps
        if self.core.forced_units:
            return  # a curriculum spends what it does whatever the price
        keys = self.core.config.budgets or (None,)
        spent = np.array([self.statistics.spent.get(key, math.nan) for key in keys])
        violation = np.nan_to_num((spent / self.budgets - 1).clip(-1, 1))  # 0 for a budget that no episode had
        self._log += INTEGRAL * share * violation
        self.core.cost_weight = np.exp(self._log + PROPORTIONAL * violation)
        for budget, cost_weight in zip(self.budgets, self.core.cost_weight, strict=True):
            self.logger.record(f"skip/cost_weight_at_{100 * budget:g}", cost_weight)


def check_budget(budget: float | None) -> None:
    """Refuse what no network can be held to; None holds it to nothing.

    Raises:
        ValueError: for a budget outside (0, 1).
    """
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"budget: expected a share of the dense compute in (0, 1), got {budget}")


@torch.no_grad()
def calibrate(net: DynamicViT, run: ImageRunner, budget: float) -> float:
    """Make the deployed network spend the budget, policy included.

    All decisions are shifted alike. A policy that is shown budgets is shown this one, and `set_budget` knows of it from
    then on.

    Args:
        net: with a learnt rule; changed in place.
        run: runs networks over images of the validation part.
        budget: mean share of the dense net's MACs.

    Returns:
        The share it spends on these images now.
    """
    net.shown_budget = budget

    @functools.cache
    def spent(lean: float) -> float:
        net.lean_to(lean)
        return macs_fraction(net, run)

    def excess(lean: float) -> float:
        difference = spent(lean) - budget
        return 0.0 if abs(difference) < CLOSE_ENOUGH else difference

    lean = _root(excess)
    net.lean_to(lean)
    if net.policy.layout.shows_budget:
        net.budgets[budget] = lean
    return spent(lean)


def _root(excess: Callable[[float], float]) -> float:
    """Where a rising function of the lean is 0: steps away from 0 that double until they pass it, then Brent's method.

    The end of the range where it is 0 nowhere.
    """
    near, far = 0.0, 0.0
    while excess(far) and excess(near) * excess(far) > 0 and abs(far) < LEAN:
        near, far = far, max(-LEAN, min(2 * far or math.copysign(FIRST_STEP, -excess(0.0)), LEAN))
    crossed = excess(near) * excess(far) < 0
    return root_scalar(excess, bracket=(near, far), method="brentq", xtol=PRECISION).root if crossed else far


def macs_fraction(net: DynamicViT, run: ImageRunner) -> float:
    """Mean MACs over those of the dense network, policy included."""
    _, trace = run(net)
    return float(trace.macs.double().mean()) / net.backbone.macs.dense
