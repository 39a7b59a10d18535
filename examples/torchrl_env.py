"""TorchRL's PPO on the batched environment, which `GymWrapper` takes as it is.

python examples/torchrl_env.py

`GymWrapper(gym.make("ViTSkip-v0"))` and `GymEnv("ViTSkip-v0")` wrap a single environment alike.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import rich
import torch
import tyro
from tensordict import TensorDict  # pyright: ignore[reportMissingImports] - an extra, as all of TorchRL below
from tensordict.nn import TensorDictModule  # pyright: ignore[reportMissingImports]
from torch.distributions import Categorical
from torchrl.data import Unbounded  # pyright: ignore[reportMissingImports]
from torchrl.envs import GymWrapper, default_info_dict_reader  # pyright: ignore[reportMissingImports]
from torchrl.envs.utils import ExplorationType, set_exploration_type  # pyright: ignore[reportMissingImports]
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator  # pyright: ignore[reportMissingImports]
from torchrl.objectives import ClipPPOLoss  # pyright: ignore[reportMissingImports]
from torchrl.objectives.value import GAE  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

import vitskip  # noqa: F401 - registers the id

INFOS = ("is_success", "macs_fraction")


@dataclass(frozen=True)
class Arguments:
    """Train TorchRL's PPO to skip blocks, and print what it comes to."""

    total_timesteps: int = 150_000  # environment steps; an episode has one per block
    num_envs: int = 256  # images side by side
    num_episodes: int = 2  # of each environment in a rollout
    update_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 2e-3
    ent_coef: float = 0.003
    cost_weight: float = 0.1
    seed: int = 1
    dataset: str = "digits"
    data_root: str | None = None  # folder of the data set, where it lives in files
    backbone: str = ""  # the one shipped for the data set
    test_images: int = 8000


def make_env(num_envs: int, **arguments: Any) -> Any:
    """TorchRL's environment of batch size B, tensors in and out, with two infos beside the observation.

    With autoreset disabled TorchRL resets the rows that ended itself, and needs no transform for their last
    observations; `autoreset_mode="SAME_STEP"` works too.
    """
    envs = gym.make_vec("ViTSkip-v0", num_envs=num_envs, output="torch", autoreset_mode="DISABLED", **arguments)
    env = GymWrapper(envs, categorical_action_encoding=True)
    return env.set_info_dict_reader(default_info_dict_reader(INFOS, [Unbounded((num_envs,)) for _ in INFOS]))


def make_agent(observation_size: int) -> tuple[Any, Any]:
    """Actor and critic."""
    mlp = {"in_features": observation_size, "num_cells": [64, 64], "activation_class": torch.nn.Tanh}
    module = TensorDictModule(MLP(out_features=2, **mlp), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(module, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    return actor, ValueOperator(MLP(out_features=1, **mlp), in_keys=["observation"])


def describe(rollout: TensorDict) -> str:
    """Means over the episodes of a rollout [B, T]."""
    ends = rollout["next"][rollout["next", "done"][..., 0]]
    episode_return = rollout["next", "reward"].sum() / len(ends)
    accuracy, macs_fraction = (ends[name].float().mean() for name in INFOS)
    return f"return {episode_return:.3f}, accuracy {accuracy:.1%}, {macs_fraction:.1%} of the MACs"


def main(arguments: Arguments) -> None:
    """Learn, with a line on each tenth of the way."""
    torch.manual_seed(arguments.seed)
    shared = {name: getattr(arguments, name) for name in ("dataset", "data_root", "backbone", "cost_weight")}
    env = make_env(arguments.num_envs, **shared)
    env.set_seed(arguments.seed)
    actor, critic = make_agent(env.observation_spec["observation"].shape[-1])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=arguments.ent_coef, critic_coeff=0.5, normalize_advantage=True)
    gae = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=arguments.learning_rate)
    num_steps = arguments.num_episodes * env.core.num_units
    batch_size = arguments.num_envs * num_steps
    num_updates = max(1, arguments.total_timesteps // batch_size)
    for update in tqdm(range(num_updates), unit="update"):
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            rollout = env.rollout(num_steps, actor, break_when_any_done=False)
            data = gae(rollout).reshape(-1)
        for _ in range(arguments.update_epochs):
            for rows in torch.randperm(batch_size).chunk(arguments.num_minibatches):
                losses = loss(data[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        if update % max(1, num_updates // 10) == 0 or update == num_updates - 1:
            tqdm.write(f"{(update + 1) * batch_size:>9,} steps: {describe(rollout)}")
    test_env = make_env(min(arguments.test_images, 500), split="test", order="sequential", **shared)
    num_steps = arguments.test_images // test_env.batch_size[0] * env.core.num_units
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = test_env.rollout(num_steps, actor, break_when_any_done=False)
    rich.print(f"Test part, greedy decisions: {describe(rollout)}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
