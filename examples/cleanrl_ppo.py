"""PPO in one file, in the manner of CleanRL, on the batched environment with tensors in and out.

python examples/cleanrl_ppo.py --cost-weight 0.1
tensorboard --logdir runs/cleanrl_ppo
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import rich
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import vitskip  # noqa: F401 - registers the id


@dataclass(frozen=True)
class Arguments:
    """Train PPO to skip blocks, and compare it with random skipping on the test part."""

    total_timesteps: int = 300_000  # environment steps; an episode has one per block
    num_envs: int = 256  # images side by side
    num_episodes: int = 2  # of each environment in a rollout
    learning_rate: float = 2e-3  # falls linearly to zero
    gamma: float = 1.0  # compute is not worth less late
    gae_lambda: float = 0.95
    update_epochs: int = 4
    num_minibatches: int = 4
    clip_coef: float = 0.2
    ent_coef: float = 0.003
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    seed: int = 1
    device: str = "cpu"  # of backbone and agent
    dataset: str = "digits"
    data_root: str | None = None  # folder of the data set, where it lives in files
    backbone: str = ""  # the one shipped for the data set
    cost_weight: float = 0.1  # what running every block costs; a right answer is worth 1
    test_images: int = 8000
    log_dir: str = "runs/cleanrl_ppo"


class Agent(nn.Module):
    """Actor (logits of SKIP and RUN) and critic, apart."""

    def __init__(self, observation_size: int) -> None:
        super().__init__()
        self.actor = mlp(observation_size, 2, last_gain=0.01)
        self.critic = mlp(observation_size, 1, last_gain=1)

    def forward(self, observation: Tensor) -> tuple[Categorical, Tensor]:
        return Categorical(logits=self.actor(observation)), self.critic(observation)[..., 0]


def mlp(inputs: int, outputs: int, last_gain: float, width: int = 64) -> nn.Sequential:
    """Two hidden layers, orthogonal weights."""
    layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def make_envs(arguments: Arguments, num_envs: int, **others: Any) -> Any:
    """The vector environment that hands out tensors."""
    shared = {name: getattr(arguments, name) for name in ("dataset", "data_root", "backbone", "cost_weight", "device")}
    return gym.make_vec("ViTSkip-v0", num_envs=num_envs, output="torch", **shared, **others)


@torch.no_grad()
def evaluate(arguments: Arguments, decide: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Means over the first images of the test part, 500 side by side."""
    num_envs = min(arguments.test_images, 500)
    envs = make_envs(arguments, num_envs, split="test", order="sequential")
    observation, _ = envs.reset(seed=0)
    rewards, ends = [], []
    while len(ends) < arguments.test_images // num_envs:
        observation, reward, *_, infos = envs.step(decide(observation))
        rewards.append(reward)
        if "final_info" in infos:  # all episodes end together
            ends.append(infos["final_info"])
    return summary(torch.stack(rewards), ends)


def summary(rewards: Tensor, ends: list[dict[str, Any]]) -> dict[str, float]:
    """Means over whole episodes: rewards [T, B], and the infos of each end, [B]."""
    return {
        "episodic_return": rewards.sum().item() / (rewards.shape[1] * len(ends)),
        "accuracy": torch.stack([end["is_success"] for end in ends]).float().mean().item(),
        "macs_fraction": float(np.mean([end["macs_fraction"] for end in ends])),
        "blocks": float(np.mean([end["keep_mask"].sum(1) for end in ends])),
    }


def describe(who: str, numbers: dict[str, float]) -> str:
    """A line for people."""
    return (
        f"{who:>15}: return {numbers['episodic_return']:.3f}, accuracy {numbers['accuracy']:.1%}, "
        f"{numbers['blocks']:.2f} blocks, {numbers['macs_fraction']:.1%} of the MACs"
    )


def advantages_of(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, arguments: Arguments
) -> Tensor:
    """Generalised advantage estimation (Schulman et al., 2016), all [T, B]."""
    goes_on = arguments.gamma * ~terminated
    deltas = rewards + goes_on * next_values - values
    advantages, advantage = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        advantages[t] = advantage = deltas[t] + goes_on[t] * arguments.gae_lambda * advantage
    return advantages


def losses_of(agent: Agent, batch: list[Tensor], arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Minus the clipped surrogate, squared error of the value, entropy; each averaged over a minibatch."""
    observation, action, log_prob, advantage, target = batch
    policy, value = agent(observation)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = (policy.log_prob(action) - log_prob).exp()
    clipped = ratio.clamp(1 - arguments.clip_coef, 1 + arguments.clip_coef)
    surrogate = torch.min(ratio * advantage, clipped * advantage).mean()
    return -surrogate, 0.5 * (value - target).square().mean(), policy.entropy().mean()


def train(arguments: Arguments) -> Agent:
    """Learn, with curves in TensorBoard and a progress bar."""
    torch.manual_seed(arguments.seed)
    envs = make_envs(arguments, arguments.num_envs)
    num_steps = arguments.num_episodes * envs.core.num_units
    batch_size = arguments.num_envs * num_steps
    num_updates = max(1, arguments.total_timesteps // batch_size)
    agent = Agent(envs.single_observation_space.shape[0]).to(arguments.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=arguments.learning_rate, eps=1e-5)
    observation, _ = envs.reset(seed=arguments.seed)
    progress = tqdm(total=num_updates * batch_size, unit="step", unit_scale=True)
    with SummaryWriter(arguments.log_dir) as writer, progress:
        for update in range(num_updates):
            optimizer.param_groups[0]["lr"] = arguments.learning_rate * (1 - update / num_updates)
            steps, ends, losses = [], [], []
            for _ in range(num_steps):
                with torch.no_grad():
                    policy, value = agent(observation)
                    action = policy.sample()
                next_observation, reward, terminated, _, infos = envs.step(action)
                terminated = torch.from_numpy(terminated).to(arguments.device)
                steps.append((observation, action, policy.log_prob(action), value, reward, terminated))
                observation = next_observation
                if "final_info" in infos:
                    ends.append(infos["final_info"])
            observations, actions, log_probs, values, rewards, terminations = map(torch.stack, zip(*steps, strict=True))
            with torch.no_grad():
                next_values = torch.cat([values[1:], agent(observation)[1][None]])
            advantages = advantages_of(rewards, values, next_values, terminations, arguments)
            data = [observations, actions, log_probs, advantages, advantages + values]
            data = [tensor.flatten(0, 1) for tensor in data]
            for _ in range(arguments.update_epochs):
                for rows in torch.randperm(batch_size, device=arguments.device).chunk(arguments.num_minibatches):
                    losses = losses_of(agent, [tensor[rows] for tensor in data], arguments)
                    optimizer.zero_grad()
                    (losses[0] + arguments.vf_coef * losses[1] - arguments.ent_coef * losses[2]).backward()
                    nn.utils.clip_grad_norm_(agent.parameters(), arguments.max_grad_norm)
                    optimizer.step()
            progress.update(batch_size)
            numbers = summary(rewards, ends)
            curves = {f"charts/{name}": number for name, number in numbers.items()}
            curves |= dict(zip(("losses/policy", "losses/value", "losses/entropy"), losses, strict=True))
            for name, number in curves.items():
                writer.add_scalar(name, number, progress.n)
            if update % max(1, num_updates // 10) == 0 or update == num_updates - 1:
                progress.write(describe(f"{progress.n:,} steps", numbers))
    return agent


def main(arguments: Arguments) -> None:
    """Train, then decide greedily on the test part, beside random skipping and running everything."""
    agent = train(arguments)
    learnt = evaluate(arguments, lambda observation: agent.actor(observation).argmax(1))
    depth = make_envs(arguments, 1).core.layout.depth  # one-hot of the next block
    rate = (learnt["blocks"] - 1) / (depth.stop - depth.start - 1)  # block 0 always runs
    torch.manual_seed(arguments.seed)

    def skip_at_random(observation: Tensor) -> Tensor:
        runs = torch.rand(len(observation), device=observation.device) < rate
        return (runs | (observation[:, depth.start] == 1)).long()

    rich.print("Test part, greedy decisions:")
    rich.print(describe("PPO", learnt))
    rich.print(describe("random skipping", evaluate(arguments, skip_at_random)))
    rich.print(describe("run all", evaluate(arguments, lambda observation: torch.ones(len(observation)).long())))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
