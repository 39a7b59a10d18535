"""Algorithms by name: Stable-Baselines3's, sb3-contrib's and ours, with defaults that work on twelve-step episodes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from ..backbone.registry import Registry, unknown_name
from ..envs.config import EnvArguments
from ..envs.observation import ObservationLayout
from ..envs.sb3 import SkipVecEnv
from .dynavit import DynaViT
from .episodic import EpisodicAlgorithm
from .extraction import (
    extract_actor,
    extract_per_unit,
    extract_q_network,
    extract_quantile_network,
    extract_recurrent_actor,
)
from .policy import Policy
from .reinforce import Reinforce
from .supervised import Gumbel, Router

OPEN_BIAS = 1.0  # untrained, a policy that decides block by block runs one with odds exp(2) to 1: near run-all
TANH_64 = {"net_arch": [64, 64], "activation_fn": nn.Tanh}
COUNTS = {"batch_size", "buffer_size", "n_epochs", "rollouts_per_image", "target_update_interval", "train_freq"}
RESERVED = {
    "policy",
    "env",
    "policy_kwargs",
    "stats_window_size",
    "tensorboard_log",
    "seed",
    "device",
    "_init_setup_model",
    "common",
    "args",
    "kwargs",
}


@dataclass(frozen=True)
class Algorithm:
    """One algorithm and what it needs here.

    Attributes:
        make: the Stable-Baselines3 class.
        num_envs: images side by side.
        hyperparameters: further arguments of the class.
        episodes_per_update: episodes of each environment in a rollout, times L it is `n_steps`; None off policy.
        anneal: whether the learning rate falls linearly to zero.
        policy: name of the policy class.
        policy_kwargs: its arguments.
        extract: takes the deployable policy out of the trained one.
        env: arguments of the environment that the algorithm is published with; those of `TrainConfig.env` go before.
        plans: whether it can decide all units at once (`MultiBinary` actions).
        draws: whether it acts by drawing, so that its log-odds are of probabilities; of values they are differences of
            returns.
    """

    make: type[BaseAlgorithm]
    num_envs: int
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    episodes_per_update: int | None = 1
    anneal: bool = True
    policy: str = "MlpPolicy"
    policy_kwargs: dict[str, Any] = field(default_factory=lambda: dict(TANH_64))
    extract: Callable[[Any, ObservationLayout], Policy] = extract_actor
    env: EnvArguments = field(default_factory=EnvArguments)
    plans: bool = False
    draws: bool = True


_ON_POLICY = {"learning_rate": 2e-3, "gamma": 1.0, "gae_lambda": 0.95}
_PPO = {**_ON_POLICY, "batch_size": 3072, "n_epochs": 4, "ent_coef": 0.003}
_OFF_POLICY = {
    "learning_rate": 3e-3,
    "gamma": 1.0,
    "batch_size": 1024,
    "buffer_size": 300_000,
    "learning_starts": 20_000,
    "train_freq": 4,
    "gradient_steps": 4,
    "target_update_interval": 4_000,
    "exploration_fraction": 0.5,
    "exploration_final_eps": 0.02,
}
_PUBLISHED: EnvArguments = {"observation": "tokens", "reward": "dynavit", "cost_weight": 3.0}

ALGORITHMS: Registry[Algorithm] = Registry("algorithm")
ALGORITHMS.register(
    "a2c",
    Algorithm(
        A2C,
        128,
        {**_ON_POLICY, "ent_coef": 0.003, "use_rms_prop": False, "normalize_advantage": True},
        plans=True,
    ),
)
ALGORITHMS.register("ppo", Algorithm(PPO, 512, _PPO, episodes_per_update=2, plans=True))
ALGORITHMS.register(
    "trpo",
    Algorithm(TRPO, 512, {**_ON_POLICY, "batch_size": 3072, "target_kl": 0.02}, episodes_per_update=2, plans=True),
)
ALGORITHMS.register("maskable-ppo", Algorithm(MaskablePPO, 512, _PPO, episodes_per_update=2))
ALGORITHMS.register(
    "recurrent-ppo",
    Algorithm(
        RecurrentPPO,
        256,
        {**_PPO, "batch_size": 768},
        policy="MlpLstmPolicy",
        policy_kwargs={"net_arch": [], "lstm_hidden_size": 32},
        extract=extract_recurrent_actor,
    ),
)
_Q_LEARNING = Algorithm(DQN, 256, _OFF_POLICY, None, policy_kwargs=TANH_64, extract=extract_q_network, draws=False)
ALGORITHMS.register("dqn", _Q_LEARNING)
ALGORITHMS.register(
    "qrdqn",
    replace(_Q_LEARNING, make=QRDQN, policy_kwargs={**TANH_64, "n_quantiles": 25}, extract=extract_quantile_network),
)
ALGORITHMS.register("reinforce", Algorithm(Reinforce, 256, {"learning_rate": 3e-3}, plans=True))
ALGORITHMS.register(
    "self-critical",
    Algorithm(
        Reinforce,
        256,
        {"learning_rate": 3e-3, "baseline": "self-critical", "rollouts_per_image": 2},
        plans=True,
    ),
)
ALGORITHMS.register("gumbel", Algorithm(Gumbel, 256, {"learning_rate": 5e-4}))
ALGORITHMS.register("router", Algorithm(Router, 256, {"learning_rate": 2e-3}))
_DYNAVIT = Algorithm(DynaViT, 128, {"learning_rate": 3e-2}, policy_kwargs={}, extract=extract_per_unit, env=_PUBLISHED)
ALGORITHMS.register("dynavit", _DYNAVIT)
ALGORITHMS.register(
    "dynavit-repaired", replace(_DYNAVIT, hyperparameters={**_DYNAVIT.hyperparameters, "normalize_depth": False})
)


def make_agent(
    name: str,
    venv: VecEnv,
    *,
    seed: int = 0,
    tensorboard_log: str | None = None,
    device: str = "cpu",
    **hyperparameters: Any,
) -> BaseAlgorithm:
    """Build an agent on the native environment.

    Args:
        name: in `ALGORITHMS`, e.g. "ppo".
        venv: from `make_sb3_env`.
        seed: of weights and sampling.
        tensorboard_log: folder for event files.
        device: of the policy network; compact networks are fastest on the CPU.
        **hyperparameters: override the defaults, as the class names them.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, a value is no use, or `n_steps` would cut episodes.
    """
    algorithm = ALGORITHMS[name]
    check_hyperparameters(name, hyperparameters)
    if isinstance(native := venv.unwrapped, SkipVecEnv):
        native.rows_per_image = 1  # whatever an agent built before has asked for
    arguments = {**algorithm.hyperparameters, **hyperparameters}
    if algorithm.episodes_per_update is not None:
        length = episode_length(venv)
        arguments.setdefault("n_steps", algorithm.episodes_per_update * length)
        if arguments["n_steps"] < 1 or arguments["n_steps"] % length:
            raise ValueError(
                f"n_steps: expected a multiple of the {length} steps of an episode, got {arguments['n_steps']}"
            )
        if "batch_size" in algorithm.hyperparameters.keys() - hyperparameters.keys():
            rollout = arguments["n_steps"] * venv.num_envs
            arguments["batch_size"] = rollout // math.ceil(rollout / arguments["batch_size"])  # no odd one at the end
    if algorithm.anneal and isinstance(arguments["learning_rate"], float):
        arguments["learning_rate"] = _linear(arguments["learning_rate"])
    try:
        agent = algorithm.make(
            algorithm.policy,
            venv,
            seed=seed,
            device=device,
            tensorboard_log=tensorboard_log,
            stats_window_size=max(100, venv.num_envs),
            policy_kwargs=dict(algorithm.policy_kwargs),
            **arguments,
        )
    except (TypeError, AssertionError) as error:  # which SB3 raises for values that it cannot use
        raise ValueError(
            f"hyperparameters: expected those that {name} takes, got {hyperparameters}: {error}"
        ) from error
    _open(agent)
    return agent


def check_hyperparameters(name: str, hyperparameters: Mapping[str, Any]) -> None:
    """Refuse those that an algorithm does not take.

    Raises:
        ValueError: with the nearest right name, or for a value that is no number, integer or truth value where the
            default is one.
    """
    valid, algorithm = accepted_hyperparameters(ALGORITHMS[name].make), ALGORITHMS[name]
    numbers = {"n_steps", *(key for key, default in algorithm.hyperparameters.items() if _is_number(default))}
    for hyperparameter, value in hyperparameters.items():
        if hyperparameter not in valid:
            raise unknown_name("hyperparameter", hyperparameter, valid)
        if hyperparameter in numbers and not (_is_number(value) or callable(value)):
            raise ValueError(f"{hyperparameter}: expected a number, got {value!r}")
        default = valid[hyperparameter]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{hyperparameter}: expected true or false, got {value!r}")
        if isinstance(default, int) and isinstance(value, float):
            raise ValueError(f"{hyperparameter}: expected an integer, got {value!r}")
        if default is None and isinstance(value, str):
            raise ValueError(f"{hyperparameter}: expected a number or null, got {value!r}")
        if hyperparameter in COUNTS and isinstance(value, int | float) and value < 1:
            raise ValueError(f"{hyperparameter}: expected at least 1, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def accepted_hyperparameters(make: type[BaseAlgorithm]) -> dict[str, Any]:
    """What a class takes and its default, its bases' named arguments included, but for what `make_agent` sets."""
    found: dict[str, Any] = {}
    for base in make.__mro__:
        if base in (EpisodicAlgorithm, OnPolicyAlgorithm, BaseAlgorithm, object):
            break
        parameters = signature(base).parameters
        found = {name: parameter.default for name, parameter in parameters.items()} | found
        if not any(name in parameters for name in ("kwargs", "common")):
            break
    return {name: default for name, default in found.items() if name not in RESERVED}


def episode_length(venv: VecEnv) -> int:
    """Steps of an episode, one per unit; rollouts of a planner, whose episodes have one step, are as long."""
    return venv.get_attr("episode_length", 0)[0]


@torch.no_grad()
def _open(agent: BaseAlgorithm) -> None:
    """Start near run-all, where units are decided one by one."""
    output = getattr(agent.policy, "action_net", None)
    if isinstance(output, nn.Linear) and isinstance(agent.action_space, spaces.Discrete):
        output.bias.copy_(torch.tensor([-OPEN_BIAS, OPEN_BIAS]))


def _linear(start: float) -> Any:
    """Learning rate as SB3 wants it: a function of the remaining progress, from 1 to 0."""
    return lambda remaining: start * remaining
