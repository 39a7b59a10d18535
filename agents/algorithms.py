"""Stable-Baselines3 algorithms by name, with defaults that work on twelve-step episodes."""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from ..backbone.registry import Registry, unknown_name
from ..envs.observation import ObservationLayout
from ..envs.sb3 import SkipVecEnv
from .policy import MlpRule, Policy

WIDTHS = (64, 64)
OPEN_BIAS = 1.0  # the untrained policy runs a block with odds exp(2) to 1: near run-all, from where skipping is learnt
RESERVED = {
    "policy",
    "env",
    "policy_kwargs",
    "stats_window_size",
    "tensorboard_log",
    "seed",
    "device",
    "_init_setup_model",
}


@dataclass(frozen=True)
class Algorithm:
    """One algorithm and what it needs here.

    Attributes:
        make: the Stable-Baselines3 class.
        num_envs: images side by side.
        episodes_per_update: episodes of each environment in a rollout; times L it is `n_steps`.
        hyperparameters: further arguments of the class.
        anneal: whether the learning rate falls linearly to zero.
    """

    make: type[OnPolicyAlgorithm]
    num_envs: int
    episodes_per_update: int
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    anneal: bool = True


ALGORITHMS: Registry[Algorithm] = Registry("algorithm")
ALGORITHMS.register(
    "ppo",
    Algorithm(
        PPO,
        num_envs=512,
        episodes_per_update=2,
        hyperparameters={
            "batch_size": 3072,
            "n_epochs": 4,
            "learning_rate": 2e-3,
            "ent_coef": 0.003,
            "gamma": 1.0,
            "gae_lambda": 0.95,
        },
    ),
)
ALGORITHMS.register(
    "a2c",
    Algorithm(
        A2C,
        num_envs=128,
        episodes_per_update=1,
        hyperparameters={
            "learning_rate": 2e-3,
            "ent_coef": 0.003,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "use_rms_prop": False,
            "normalize_advantage": True,
        },
    ),
)


def make_agent(
    name: str,
    venv: SkipVecEnv,
    *,
    seed: int = 0,
    tensorboard_log: str | None = None,
    device: str = "cpu",
    **hyperparameters: Any,
) -> OnPolicyAlgorithm:
    """Build an SB3 agent on the native environment.

    Args:
        name: "a2c" or "ppo".
        venv: from `make_sb3_env`.
        seed: of weights and sampling.
        tensorboard_log: folder for event files.
        device: of the policy network; compact networks are fastest on the CPU.
        **hyperparameters: override the defaults, as the SB3 class names them.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, or `n_steps` would cut episodes.
    """
    algorithm = ALGORITHMS[name]
    depth = venv.core.num_units
    valid = set(signature(algorithm.make).parameters) - RESERVED
    for hyperparameter in hyperparameters:
        if hyperparameter not in valid:
            raise unknown_name("hyperparameter", hyperparameter, valid)
    arguments = {"n_steps": algorithm.episodes_per_update * depth, **algorithm.hyperparameters, **hyperparameters}
    if arguments["n_steps"] % depth:
        raise ValueError(f"n_steps: expected a multiple of the {depth} steps of an episode, got {arguments['n_steps']}")
    if algorithm.anneal and isinstance(arguments["learning_rate"], float):
        arguments["learning_rate"] = _linear(arguments["learning_rate"])
    agent = algorithm.make(
        "MlpPolicy",
        venv,
        seed=seed,
        device=device,
        tensorboard_log=tensorboard_log,
        stats_window_size=max(100, venv.num_envs),
        policy_kwargs={"net_arch": list(WIDTHS), "activation_fn": nn.Tanh},
        **arguments,
    )
    assert isinstance(agent.policy, ActorCriticPolicy)
    with torch.no_grad():
        agent.policy.action_net.bias.copy_(torch.tensor([-OPEN_BIAS, OPEN_BIAS]))  # pyright: ignore[reportArgumentType,reportCallIssue]
    return agent


def extract_policy(policy: ActorCriticPolicy, layout: ObservationLayout) -> Policy:
    """The actor as a plain torch module: its weights are copied, the two logits become one log-odds."""
    hidden = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    extracted = Policy("mlp", layout, widths=[layer.out_features for layer in hidden])
    assert isinstance(extracted.rule, MlpRule) and isinstance(policy.action_net, nn.Linear)
    linears = [layer for layer in extracted.rule.network if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for target, source in zip(linears[:-1], hidden, strict=True):
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
        weight, bias = policy.action_net.weight, policy.action_net.bias  # rows: SKIP, RUN
        linears[-1].weight.copy_(weight[1:] - weight[:1])
        linears[-1].bias.copy_(bias[1:] - bias[:1])
    return extracted.eval()


def _linear(start: float) -> Any:
    """Learning rate as SB3 wants it: a function of the remaining progress, from 1 to 0."""
    return lambda remaining: start * remaining
