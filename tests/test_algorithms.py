"""Stable-Baselines3 agents by name: defaults, errors, and the policy taken out of them."""

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecFrameStack
from torch import Tensor
from toys import DEPTH, TINY

from vitskip.agents import make_agent
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.extraction import extract_actor, extract_q_network, extract_recurrent_actor
from vitskip.agents.reinforce import Reinforce
from vitskip.envs import SkipVecEnv, make_sb3_env
from vitskip.envs.plan import PlanVecEnv

NAMES = pytest.mark.parametrize("name", ["a2c", "ppo"])
EVERY_NAME = pytest.mark.parametrize("name", sorted(ALGORITHMS))


@pytest.fixture(scope="module")
def venv() -> SkipVecEnv:
    return make_sb3_env(num_envs=8, seed=0, **TINY)


def random_observations(venv: SkipVecEnv, rows: int = 500) -> Tensor:
    generator = np.random.default_rng(0)
    size = venv.core.layout.size
    return torch.from_numpy(generator.uniform(-1, 1, (rows, size)).astype(np.float32))


def shake(policy: ActorCriticPolicy) -> None:
    """Large random weights, so that decisions differ."""
    generator = torch.Generator().manual_seed(2)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)


def log_probabilities(agent: OnPolicyAlgorithm, observations: Tensor) -> Tensor:
    """Of SKIP and RUN, [B, 2], by the agent's own distribution."""
    distribution = agent.policy.get_distribution(observations)
    rows = len(observations)
    with torch.no_grad():
        return torch.stack([distribution.log_prob(torch.full((rows,), action)) for action in (0, 1)], 1)


def test_the_names() -> None:
    theirs = {"a2c": A2C, "ppo": PPO, "dqn": DQN, "trpo": TRPO, "qrdqn": QRDQN}
    assert {name: ALGORITHMS[name].make for name in theirs} == theirs
    others = {"maskable-ppo", "recurrent-ppo", "reinforce", "self-critical", "gumbel", "router"}
    assert set(ALGORITHMS) == {*theirs, *others, "dynavit", "dynavit-repaired"}


def test_an_unknown_name_suggests_the_nearest(venv: SkipVecEnv) -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'pppo': expected one of a2c, .*; did you mean 'ppo'"):
        make_agent("pppo", venv)


@NAMES
def test_the_defaults_fit_the_episodes(venv: SkipVecEnv, name: str) -> None:
    agent: Any = make_agent(name, venv)
    assert type(agent).__name__ == ALGORITHMS[name].make.__name__
    assert agent.gamma == 1
    assert agent.n_steps == (ALGORITHMS[name].episodes_per_update or 0) * DEPTH
    assert agent.lr_schedule(1.0) == pytest.approx(2e-3)
    assert agent.lr_schedule(0.25) == pytest.approx(5e-4)  # falls to zero


@pytest.mark.parametrize(("num_envs", "expected"), [(2, 16), (512, 2048), (640, 2560), (576, 2304)])
def test_default_minibatches_divide_the_rollout(num_envs: int, expected: int) -> None:
    """The default of 3072 is met or fallen short of; SB3 warns of an odd one at the end."""
    venv = make_sb3_env(num_envs=num_envs, seed=0, **TINY)
    agent, other = (make_agent("ppo", venv, **given) for given in ({}, {"batch_size": 8}))
    assert isinstance(agent, PPO) and isinstance(other, PPO)
    assert (agent.batch_size, other.batch_size) == (expected, 8)
    assert agent.n_steps * num_envs % expected == 0


@NAMES
def test_defaults_can_be_overridden(venv: SkipVecEnv, name: str) -> None:
    agent: Any = make_agent(name, venv, n_steps=5 * DEPTH, ent_coef=0.02, learning_rate=lambda remaining: 0.1)
    assert (agent.n_steps, agent.ent_coef) == (5 * DEPTH, 0.02)
    assert agent.lr_schedule(0.5) == 0.1


@NAMES
@pytest.mark.parametrize("n_steps", [1, 6, 2 * DEPTH + 1])
def test_rollouts_that_cut_episodes_are_refused(venv: SkipVecEnv, name: str, n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"n_steps: expected a multiple of the 4 steps of an episode, got {n_steps}"):
        make_agent(name, venv, n_steps=n_steps)


@NAMES
def test_an_unknown_hyperparameter_suggests_the_nearest(venv: SkipVecEnv, name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'ent_coeff': .*did you mean 'ent_coef'"):
        make_agent(name, venv, ent_coeff=0.1)


@NAMES
def test_hyperparameters_that_are_not_the_callers_are_refused(venv: SkipVecEnv, name: str) -> None:
    with pytest.raises(ValueError, match="unknown hyperparameter 'policy_kwargs'"):
        make_agent(name, venv, policy_kwargs={})


@NAMES
def test_statistics_cover_every_environment(name: str) -> None:
    many = make_sb3_env(num_envs=130, **TINY)
    assert make_agent(name, many)._stats_window_size == 130
    few = make_sb3_env(num_envs=8, **TINY)
    assert make_agent(name, few)._stats_window_size == 100


@NAMES
def test_the_untrained_agent_runs_nearly_everything(venv: SkipVecEnv, name: str) -> None:
    agent = make_agent(name, venv)
    observation = torch.from_numpy(venv.reset())
    probabilities = log_probabilities(agent, observation)[:, 1].exp()
    expected = 1 / (1 + np.exp(-2))
    assert probabilities.tolist() == pytest.approx([expected] * 8, abs=0.02)
    assert extract_actor(agent.policy, venv.core.layout).predict(observation.numpy())[0].all()


def venv_for(name: str, num_envs: int = 8) -> SkipVecEnv:
    """With the arguments that the algorithm was published with."""
    return make_sb3_env(num_envs=num_envs, seed=0, **TINY, **ALGORITHMS[name].env)


def small(name: str) -> dict[str, Any]:
    """Hyperparameters for a few steps."""
    if name in ("dqn", "qrdqn"):
        return {"learning_starts": 8, "buffer_size": 500, "batch_size": 8}
    return {"batch_size": 8, "n_epochs": 1} if "ppo" in name else {"batch_size": 8} if name == "trpo" else {}


@EVERY_NAME
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_every_algorithm_learns_and_its_policy_decides_as_the_agent(name: str) -> None:
    """Along whole episodes, so that a memory is carried; what draws its decisions is asked for the likelier one."""
    venv = venv_for(name)
    agent = make_agent(name, venv, **small(name))
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(4 * 8 * DEPTH)
    assert any(not torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True))
    shake(agent.policy)
    policy = ALGORITHMS[name].extract(agent.policy, venv.core.layout)
    policy.rule.samples = False
    observation, state, ours, starts = venv.reset(), None, None, np.ones(8, bool)
    seen = []
    for _ in range(3 * DEPTH):
        actions, state = agent.predict(observation, state, starts, deterministic=True)
        decided, ours = policy.predict(observation, ours, starts)
        assert np.array_equal(decided, actions)
        observation, _, starts, _ = venv.step(actions)
        seen.append(actions)
    assert 0.05 < np.mean(seen) < 0.95


@EVERY_NAME
def test_an_unknown_hyperparameter_suggests_the_nearest_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'learning_rat'.*did you mean 'learning_rate'"):
        make_agent(name, venv_for(name), learning_rat=0.1)


@NAMES
def test_the_extracted_policy_decides_as_the_agent(venv: SkipVecEnv, name: str) -> None:
    agent = make_agent(name, venv)
    shake(agent.policy)
    policy = extract_actor(agent.policy, venv.core.layout)
    observations = random_observations(venv)
    logits = log_probabilities(agent, observations)
    with torch.no_grad():
        log_odds = policy.rule(observations)
    torch.testing.assert_close(log_odds, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)
    rows = observations.numpy()
    actions, _ = agent.predict(rows, deterministic=True)
    assert np.array_equal(policy.predict(rows)[0], actions)
    assert 0.1 < actions.mean() < 0.9
    assert policy.rule.arguments == {"widths": [64, 64]}
    assert not policy.training


def test_the_extracted_weights_are_a_copy(venv: SkipVecEnv) -> None:
    agent = make_agent("a2c", venv)
    policy, observations = extract_actor(agent.policy, venv.core.layout), random_observations(venv)
    with torch.no_grad():
        before = policy.rule(observations)
        shake(agent.policy)
        assert torch.equal(policy.rule(observations), before)


@NAMES
def test_the_seed_decides_the_weights(venv: SkipVecEnv, name: str) -> None:
    first, again, other = (make_agent(name, venv, seed=seed).policy.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_another_algorithm_of_stable_baselines3_just_runs() -> None:
    """An off-policy one, so that replay buffer and terminal observations are used."""
    venv = make_sb3_env(num_envs=4, seed=0, **TINY)
    agent = DQN("MlpPolicy", venv, learning_starts=32, batch_size=16, buffer_size=200, gamma=1.0, seed=0)
    agent.learn(128, log_interval=1)
    assert agent.num_timesteps == 128
    assert len(agent.ep_info_buffer or []) == 32
    assert {episode["l"] for episode in agent.ep_info_buffer or []} == {DEPTH}
    assert agent.replay_buffer.dones[:32].sum() == 32 and agent.replay_buffer.dones[3].all()
    actions, _ = agent.predict(venv.reset(), deterministic=True)
    assert set(actions.tolist()) <= {0, 1}


def test_episodes_are_not_cut_where_the_class_is_used_directly(venv: SkipVecEnv) -> None:
    with pytest.raises(ValueError, match="n_steps: expected a multiple of the 4 steps of an episode, got 6"):
        Reinforce("MlpPolicy", venv, n_steps=6)


def test_an_agent_leaves_no_wish_of_its_own_to_the_next(venv: SkipVecEnv) -> None:
    """REINFORCE wants several rows of each image."""
    make_agent("reinforce", venv)
    assert venv.rows_per_image == 4
    make_agent("ppo", venv)
    assert venv.rows_per_image == 1


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("ppo", {"n_epochs": 0}, "n_epochs: expected at least 1, got 0"),
        ("ppo", {"target_kl": "x"}, "target_kl: expected a number or null, got 'x'"),
        ("dqn", {"train_freq": 0}, "train_freq: expected at least 1, got 0"),
        ("gumbel", {"temperature": 0.0}, "temperature: expected more than 0, got 0.0"),
        ("gumbel", {"ent_coef": 0.1}, "unknown hyperparameter 'ent_coef'"),
    ],
)
def test_values_that_are_no_use_are_refused(name: str, hyperparameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(name, venv_for(name), **hyperparameters)


class Doubled(FlattenExtractor):
    """Features of the caller's own."""

    def forward(self, observations: Tensor) -> Tensor:
        return 2 * super().forward(observations)


@pytest.mark.parametrize(
    ("make", "options", "extract", "message"),
    [
        (PPO, {"activation_fn": torch.nn.ReLU}, extract_actor, "expected tanh between linear layers on the flat"),
        (PPO, {"features_extractor_class": Doubled}, extract_actor, "expected tanh between linear layers on the flat"),
        (DQN, {}, extract_q_network, "expected tanh between linear layers on the flat"),  # SB3's default is ReLU
        (DQN, {}, extract_actor, "extract_actor expected an actor-critic without a memory, got DQNPolicy"),
        (RecurrentPPO, {}, extract_actor, "extract_actor expected an actor-critic without a memory, got Recurrent"),
        (RecurrentPPO, {}, extract_recurrent_actor, r"expected one LSTM layer on the observation .* \(net_arch=\[\]\)"),
        (PPO, {}, extract_recurrent_actor, "extract_recurrent_actor expected an actor-critic with an LSTM"),
    ],
)
def test_what_would_decide_otherwise_is_not_extracted(
    venv: SkipVecEnv, make: Any, options: dict, extract: Any, message: str
) -> None:
    policy = "MlpLstmPolicy" if make is RecurrentPPO else "MlpPolicy"
    agent = make(policy, venv, policy_kwargs=options, seed=0, device="cpu")
    if hasattr(agent.policy, "action_net"):
        shake(agent.policy)
    with pytest.raises(ValueError, match=message):
        extract(agent.policy, venv.core.layout)


def test_an_agent_of_other_observations_or_actions_is_not_extracted(venv: SkipVecEnv) -> None:
    stacked = PPO("MlpPolicy", VecFrameStack(venv, 2), device="cpu")
    size = venv.core.layout.size
    with pytest.raises(ValueError, match=rf"observations \[{size}\], got \[{2 * size}\]"):
        extract_actor(stacked.policy, venv.core.layout)
    planner = PPO("MlpPolicy", PlanVecEnv(venv), device="cpu")
    with pytest.raises(ValueError, match=r"expected one of 2 outputs, got the action space MultiBinary\(4\)"):
        extract_actor(planner.policy, venv.core.layout)
