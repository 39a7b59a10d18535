"""Train one agent on one frozen backbone and leave a run directory."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy

from ..backbone.weights import save_weights
from ..envs.config import EnvArguments, EnvConfig
from ..envs.sb3 import make_sb3_env
from .algorithms import ALGORITHMS, RESERVED, extract_policy, make_agent
from .callbacks import SkipStatistics
from .dynamic_vit import DynamicViT


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        algorithm: "a2c" or "ppo".
        total_timesteps: environment steps; an episode has L of them.
        seed: of images, weights and sampling.
        num_envs: images side by side; the algorithm's default where None.
        hyperparameters: override the algorithm's, as the SB3 class names them.
        env: arguments of the environment.
    """

    algorithm: str = "ppo"
    total_timesteps: int = 1_000_000
    seed: int = 0
    num_envs: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    env: EnvArguments = field(default_factory=EnvArguments)


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        path: the run directory.
        net: the deployable network with the agent's most likely decisions.
        curve: (environment steps, mean episode return, success rate, MACs fraction) after each rollout, columns.
        seconds: wall time of learning.
    """

    path: Path
    net: DynamicViT
    curve: dict[str, list[float]]
    seconds: float


def train(config: TrainConfig, path: str | Path, *, progress_bar: bool = True) -> TrainResult:
    """Train an agent by Stable-Baselines3 and write a run directory.

    The directory holds what `DynamicViT.load` needs, and besides `agent.safetensors` (actor and critic), the
    learning curve, and TensorBoard events under `tensorboard/`.

    Args:
        config: what to train.
        path: run directory to write.
        progress_bar: show one.

    Raises:
        ValueError: for unknown names or arguments, before anything is written.
    """
    path = Path(path)
    env_config = EnvConfig.from_arguments(config.env)
    if config.total_timesteps < 1:
        raise ValueError(f"total_timesteps: expected at least 1, got {config.total_timesteps}")
    reserved = RESERVED & config.hyperparameters.keys()
    if reserved:
        raise ValueError(f"hyperparameters: expected none of {', '.join(sorted(RESERVED))}, got {sorted(reserved)}")
    num_envs = ALGORITHMS[config.algorithm].num_envs if config.num_envs is None else config.num_envs
    venv = make_sb3_env(num_envs=num_envs, seed=config.seed, **config.env)
    agent = make_agent(
        config.algorithm, venv, seed=config.seed, tensorboard_log=str(path / "tensorboard"), **config.hyperparameters
    )
    statistics = SkipStatistics()
    start = time.perf_counter()
    agent.learn(config.total_timesteps, callback=statistics, log_interval=1, progress_bar=progress_bar)
    seconds = time.perf_counter() - start
    assert isinstance(agent.policy, ActorCriticPolicy)
    net = DynamicViT(
        venv.core.backbone, extract_policy(agent.policy, venv.core.layout), action_unit=env_config.action_unit
    )
    record = {
        "train": {**asdict(config), "num_envs": num_envs, "env": asdict(env_config)},
        "seconds": seconds,
        "curve": statistics.curve,
    }
    save_weights(path / "agent.safetensors", agent.policy)
    net.save(path, backbone_name=env_config.backbone, record=record)
    return TrainResult(path, net.eval(), statistics.curve, seconds)
