"""Deciding up front: one look at the image after its first blocks, then all blocks at once (BlockDrop's setting)."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ..backbone.paths import units_of_block_0
from .core import Action, SkipCore
from .sb3 import SkipVecEnv
from .single import SkipEnv


class PlanEnv(gym.Wrapper[Any, Any, Any, Any]):
    """`ViTSkip-v0` as a one-step problem.

    ## Description
    The first blocks always run; the agent then sees the usual observation once and decides all units together.

    ## Action Space
    `MultiBinary(U)`: 1 runs a unit, 0 skips it. The units of the first blocks run whatever is said of them.

    ## Observation Space
    That of `ViTSkip-v0`, after the first blocks, and at the end.

    ## Rewards
    The sum of the episode's rewards in `ViTSkip-v0`.

    ## Starting State
    An image, embedded and through the first blocks.

    ## Episode End
    `terminated` after the only step.

    ## Information
    That of `ViTSkip-v0`.

    ## Arguments
    Those of `ViTSkip-v0`, and `look_after`: how many blocks run before the look; 1 by default.

    ## Version History
    v0: first version.
    """

    def __init__(self, env: SkipEnv, look_after: int = 1) -> None:
        super().__init__(env)
        self._first = first_units(env.core, look_after)
        self._units = env.core.num_units
        self._spent = 0.0
        self.action_space = gym.spaces.MultiBinary(self._units)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._spent = 0.0
        for _ in range(self._first):
            observation, reward, *_, info = self.env.step(Action.RUN)
            self._spent += float(reward)
        return observation, info

    def step(self, action: NDArray[np.integer]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        plan = check_plans(np.asarray(action)[None], 1, self._units)[0]
        total = self._spent
        observation, terminated, info = None, False, {}
        for run in plan[self._first :]:
            observation, reward, terminated, _, info = self.env.step(int(run))
            total += float(reward)
        return observation, total, terminated, False, info


class PlanVecEnv(VecEnvWrapper):
    """`PlanEnv`, batched, for Stable-Baselines3.

    Args:
        venv: from `make_sb3_env`.
        look_after: blocks that run before the look.

    Raises:
        ValueError: unless that is at least one, and fewer than all.
    """

    def __init__(self, venv: SkipVecEnv, look_after: int = 1) -> None:
        self.core, self._streams = venv.core, venv
        self._first = first_units(venv.core, look_after)
        self._plans = np.zeros((venv.num_envs, venv.core.num_units), np.int64)
        super().__init__(venv, action_space=gym.spaces.MultiBinary(venv.core.num_units))

    def reset(self) -> VecEnvObs:
        self.venv.reset()
        return self._run_first()

    def get_state(self) -> dict[str, Any]:
        """As `SkipVecEnv.get_state`."""
        return self._streams.get_state()

    def set_state(self, state: Mapping[str, Any]) -> VecEnvObs:
        """As `SkipVecEnv.set_state`."""
        self._streams.set_state(state)
        return self._run_first()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._plans = check_plans(actions, self.num_envs, self.core.num_units)

    def step_wait(self) -> VecEnvStepReturn:
        total, terminated = -self.core.cost_of_first(self._first), np.zeros(self.num_envs, bool)
        infos: list[dict[str, Any]] = []
        for unit in range(self._first, self.core.num_units):
            _, reward, terminated, infos = self.venv.step(self._plans[:, unit])
            total = total + reward
        for info, reward in zip(infos, total.tolist(), strict=True):
            info["episode"] |= {"r": round(reward, 6), "l": 1}
        return self._run_first(), total, terminated, infos

    def _run_first(self) -> Any:
        """What the agent sees; these units are paid for in the step, as the cost weight may change before it."""
        observation: Any = None
        for _ in range(self._first):
            observation, *_ = self.venv.step(np.full(self.num_envs, int(Action.RUN)))
        return observation


def first_units(core: SkipCore, look_after: int) -> int:
    """Units of the first blocks; ValueError unless there is at least one such block, and another after them."""
    if not 1 <= look_after < core.backbone.depth:
        raise ValueError(f"look_after: expected 1..{core.backbone.depth - 1} blocks, got {look_after}")
    return look_after * units_of_block_0(core.config.action_unit)


def check_plans(plans: Any, rows: int, units: int) -> NDArray[np.int64]:
    """Plans as int64 [B, U]; ValueError for another shape or for anything but 0 and 1."""
    array = np.asarray(plans)
    if array.shape != (rows, units) or not np.isin(array, (0, 1)).all():
        raise ValueError(f"action: expected 0 (SKIP) or 1 (RUN) for each of {units} units, got {plans!r}")
    return array.astype(np.int64)


def make_plan_env(*, look_after: int = 1, **arguments: Any) -> PlanEnv:
    """Build `ViTSkip-Plan-v0`; see there for `look_after`, other arguments as for `ViTSkip-v0`."""
    return PlanEnv(SkipEnv(**arguments), look_after)
