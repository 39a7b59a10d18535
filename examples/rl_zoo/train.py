"""RL Zoo's training on the batched environment: the same options and files, many times as fast.

python examples/rl_zoo/train.py --algo ppo --env ViTSkip-v0 --gym-packages vitskip -conf examples/rl_zoo/ppo.yml -P
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager  # pyright: ignore[reportMissingImports] - an extra
from rl_zoo3.train import train  # pyright: ignore[reportMissingImports]

from vitskip.envs import SkipCore, SkipEnv, SkipVecEnv


class BatchedVecEnv(SkipVecEnv):
    """Built as SB3 builds a `DummyVecEnv`: a row for each environment that the functions would make."""

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        env = env_fns[0]().unwrapped
        assert isinstance(env, SkipEnv)
        super().__init__(SkipCore(env.core.backbone, env.core.dataset, env.core.config, len(env_fns)))


if __name__ == "__main__":
    ExperimentManager.default_vec_env_cls = BatchedVecEnv
    train()
