"""`mo-ViTSkip-v0`: accuracy and compute as two rewards, in MO-Gymnasium's form."""

from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from .config import EnvArguments, EnvConfig
from .reward import TASK_REWARDS
from .single import SkipEnv

TASK_BOUNDS = {  # without bounds elsewhere
    "correct": (0.0, 1.0),
    "gain": (-1.0, 1.0),
    "margin": (-1.0, 1.0),
    "logprob": (-np.inf, 0.0),
}


class MultiObjectiveSkipEnv(SkipEnv):
    """`ViTSkip-v0` with the reward's two parts apart, for agents that learn the whole front of accuracy over compute.

    Description, spaces of actions and observations, starting state, end and information are those of `SkipEnv`.

    ## Reward Space
    A float32 `Box` of two: the task reward (0 before the end), and minus the block's share of the cost of all blocks
    (0 when it is skipped). `np.array([1, cost_weight]) @ reward` is `ViTSkip-v0`'s reward with that `cost_weight`.

    Gymnasium's `check_env` and its passive checker require a scalar reward, so the id is registered without the
    checker; `gym.make` and `mo_gymnasium.make` build it alike. For one number per step wrap it in
    `mo_gymnasium.wrappers.LinearReward`; many side by side go into `mo_gymnasium.wrappers.vector.MOSyncVectorEnv`.

    ## Arguments
    As for `SkipEnv`, but no `cost_weight`, as nothing is weighed, and no `reward="blockdrop"`, which holds the compute.

    ## Version History
    * v0: first version.

    Attributes:
        reward_space: bounds of the two rewards.
        reward_dim: 2.

    Raises:
        ValueError: for arguments outside these.
    """

    def __init__(self, *, render_mode: str | None = None, **arguments: Unpack[EnvArguments]) -> None:
        if "cost_weight" in arguments:
            raise ValueError(
                f"cost_weight: expected none, as the rewards are not weighed here, got {arguments['cost_weight']!r}"
            )
        config = EnvConfig.from_arguments(arguments, "render_mode")
        if TASK_REWARDS[config.reward].includes_cost:
            raise ValueError(f"reward: expected one that holds no compute, got {config.reward!r}")
        super().__init__(render_mode=render_mode, **{**arguments, "cost_weight": 0.0})  # leaves the task reward
        EzPickle.__init__(self, render_mode=render_mode, **arguments)
        least, most = TASK_BOUNDS.get(config.reward, (-np.inf, np.inf))
        low, high = (np.array(bounds, np.float32) for bounds in ((least, -self.core.cost_share.max()), (most, 0)))
        self.reward_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.reward_dim = 2

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - the reward is a vector
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], bool, bool, dict[str, Any]]:
        """Skip (0) or run (1) the next block.

        Returns:
            As `SkipEnv.step`, but for the reward: float32 [2], the task reward and minus the cost share.
        """
        unit = int(self.core.unit_index[0])
        observation, task_reward, terminated, truncated, info = super().step(action)
        cost = self.core.keep_mask[0, unit] * self.core.cost_share[unit]
        reward = np.array([task_reward, -cost], np.float32) + np.float32(0)  # no negative zeros
        return observation, reward, terminated, truncated, info
