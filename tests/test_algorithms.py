"""Stable-Baselines3 agents by name: defaults, errors, and the policy taken out of them."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from toys import DEPTH, TINY

from vitskip.agents import make_agent
from vitskip.agents.algorithms import ALGORITHMS, extract_policy
from vitskip.envs import SkipVecEnv, make_sb3_env

NAMES = pytest.mark.parametrize("name", ["a2c", "ppo"])


@pytest.fixture(scope="module")
def venv() -> SkipVecEnv:
    return make_sb3_env(num_envs=8, seed=0, **TINY)


def agent_for(name: str, venv: SkipVecEnv, **hyperparameters) -> OnPolicyAlgorithm:
    if name == "ppo":
        hyperparameters = {"batch_size": 2 * DEPTH, **hyperparameters}  # SB3 warns unless it divides the rollout
    return make_agent(name, venv, **hyperparameters)


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
    assert sorted(ALGORITHMS) == ["a2c", "ppo"]
    assert (ALGORITHMS["a2c"].make, ALGORITHMS["ppo"].make) == (A2C, PPO)


def test_an_unknown_name_suggests_the_nearest(venv: SkipVecEnv) -> None:
    with pytest.raises(ValueError, match="unknown algorithm 'pppo': expected one of a2c, ppo; did you mean 'ppo'"):
        make_agent("pppo", venv)


@NAMES
def test_the_defaults_fit_the_episodes(venv: SkipVecEnv, name: str) -> None:
    agent = agent_for(name, venv)
    assert isinstance(agent, ALGORITHMS[name].make)
    assert agent.gamma == 1
    assert agent.n_steps == ALGORITHMS[name].episodes_per_update * DEPTH
    assert agent.lr_schedule(1.0) == pytest.approx(2e-3)
    assert agent.lr_schedule(0.25) == pytest.approx(5e-4)  # falls to zero


@NAMES
def test_defaults_can_be_overridden(venv: SkipVecEnv, name: str) -> None:
    agent = agent_for(name, venv, n_steps=5 * DEPTH, ent_coef=0.02, learning_rate=lambda remaining: 0.1)
    assert (agent.n_steps, agent.ent_coef) == (5 * DEPTH, 0.02)
    assert agent.lr_schedule(0.5) == 0.1


@NAMES
@pytest.mark.parametrize("n_steps", [1, 6, 2 * DEPTH + 1])
def test_rollouts_that_cut_episodes_are_refused(venv: SkipVecEnv, name: str, n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"n_steps: expected a multiple of the 4 steps of an episode, got {n_steps}"):
        agent_for(name, venv, n_steps=n_steps)


@NAMES
def test_an_unknown_hyperparameter_suggests_the_nearest(venv: SkipVecEnv, name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'ent_coeff': .*did you mean 'ent_coef'"):
        agent_for(name, venv, ent_coeff=0.1)


@NAMES
def test_hyperparameters_that_are_not_the_callers_are_refused(venv: SkipVecEnv, name: str) -> None:
    with pytest.raises(ValueError, match="unknown hyperparameter 'policy_kwargs'"):
        agent_for(name, venv, policy_kwargs={})


@NAMES
def test_statistics_cover_every_environment(name: str) -> None:
    many = make_sb3_env(num_envs=130, **TINY)
    assert agent_for(name, many)._stats_window_size == 130
    few = make_sb3_env(num_envs=8, **TINY)
    assert agent_for(name, few)._stats_window_size == 100


@NAMES
def test_the_untrained_agent_runs_nearly_everything(venv: SkipVecEnv, name: str) -> None:
    agent = agent_for(name, venv)
    observation = torch.from_numpy(venv.reset())
    probabilities = log_probabilities(agent, observation)[:, 1].exp()
    expected = 1 / (1 + np.exp(-2))
    assert probabilities.tolist() == pytest.approx([expected] * 8, abs=0.02)
    assert extract_policy(agent.policy, venv.core.layout).predict(observation.numpy())[0].all()


@NAMES
def test_the_extracted_policy_decides_as_the_agent(venv: SkipVecEnv, name: str) -> None:
    agent = agent_for(name, venv)
    shake(agent.policy)
    policy = extract_policy(agent.policy, venv.core.layout)
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
    agent = agent_for("a2c", venv)
    policy, observations = extract_policy(agent.policy, venv.core.layout), random_observations(venv)
    with torch.no_grad():
        before = policy.rule(observations)
        shake(agent.policy)
        assert torch.equal(policy.rule(observations), before)


@NAMES
def test_the_seed_decides_the_weights(venv: SkipVecEnv, name: str) -> None:
    first, again, other = (agent_for(name, venv, seed=seed).policy.state_dict() for seed in (0, 0, 1))
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
