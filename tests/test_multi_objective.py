"""`mo-ViTSkip-v0`: the two parts of `ViTSkip-v0`'s reward, and all else as there."""

import pickle
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import PassiveEnvChecker
from numpy.typing import NDArray
from toys import DEPTH, TINY, assert_same

import vitskip
from vitskip.envs.multi_objective import MultiObjectiveSkipEnv
from vitskip.envs.reward import TASK_REWARDS

KINDS = [
    {"reward": reward, "action_unit": unit}
    for reward, task in TASK_REWARDS.items()
    for unit in ("block", "half")
    if not task.includes_cost
]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))


def make(**arguments: Any) -> Any:
    return gym.make("mo-ViTSkip-v0", **{**TINY, **arguments})


def rollout(env: Any, n_episodes: int = 3, seed: int = 3) -> list[Any]:
    """All that resets and random actions give."""
    rng, results = np.random.default_rng(seed), []
    for episode in range(n_episodes):
        results.append(env.reset(seed=seed if episode == 0 else None))
        while len(results[-1]) == 2 or not results[-1][2]:
            results.append(env.step(int(rng.integers(2))))
    return results


@pytest.mark.parametrize("cost_weight", [0, 0.1, 2.5])
@EVERY_KIND
def test_weighed_it_is_the_other_environment(kind: dict[str, Any], cost_weight: float) -> None:
    scalar = rollout(gym.make("ViTSkip-v0", **TINY, **kind, cost_weight=cost_weight))
    for one, other in zip(rollout(make(**kind)), scalar, strict=True):
        assert_same(one[0], other[0], tolerance=0)
        assert_same(one[-1], other[-1], tolerance=0)
        if len(one) == 5:
            assert np.array([1, cost_weight]) @ one[1] == pytest.approx(other[1], abs=1e-6)
            assert one[2:4] == other[2:4]


@EVERY_KIND
def test_rewards_lie_in_their_space(kind: dict[str, Any]) -> None:
    env = make(**kind)
    space = env.unwrapped.reward_space
    assert isinstance(space, gym.spaces.Box)
    assert (space.shape, space.dtype, env.unwrapped.reward_dim) == ((2,), np.float32, 2)
    rewards = [result[1] for result in rollout(env) if len(result) == 5]
    assert all((reward.dtype, reward.shape) == (np.float32, (2,)) and reward in space for reward in rewards)
    zeros = np.stack(rewards)[np.stack(rewards) == 0]
    assert zeros.size and not np.signbit(zeros).any()


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_rewards_by_hand(action_unit: str) -> None:
    env = make(action_unit=action_unit)
    macs = np.array(env.unwrapped.core.backbone.macs.units(action_unit))
    env.reset(seed=1)
    for unit in range(len(macs)):
        _, reward, terminated, _, info = env.step(unit % 2)
        expected = [float(terminated and info["is_success"]), -(unit % 2) * macs[unit] / macs.sum()]
        assert reward.tolist() == pytest.approx(expected, abs=1e-6)
        assert terminated == (unit == len(macs) - 1)


def test_running_everything_costs_one() -> None:
    env = make()
    env.reset()
    assert sum(env.step(1)[1][1] for _ in range(DEPTH)) == pytest.approx(-1, abs=1e-6)


def test_rewards_are_not_overwritten() -> None:
    env = make()
    env.reset()
    first = env.step(1)[1]
    kept = first.copy()
    env.step(0)
    assert np.array_equal(first, kept)


class Weighed(MultiObjectiveSkipEnv):
    """One number per step, as `check_env` wants it."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward.sum()), *rest


@EVERY_KIND
def test_but_for_the_reward_gymnasium_finds_no_fault(kind: dict[str, Any]) -> None:
    env = Weighed(**TINY, **kind)
    env.spec = gym.spec("mo-ViTSkip-v0")
    check_env(env, skip_render_check=True)


def test_gym_make_complains_of_nothing_and_adds_no_checker() -> None:
    env = make(render_mode="ansi")
    rollout(env)
    assert "deciding" not in env.render()
    while isinstance(env, gym.Wrapper):
        assert not isinstance(env, PassiveEnvChecker)
        env = env.env
    assert type(env) is MultiObjectiveSkipEnv


@EVERY_KIND
def test_a_spec_survives_json_and_an_environment_pickling(kind: dict[str, Any]) -> None:
    env = make(**kind, split="validation")
    expected = rollout(env)
    again: Any
    for again in (gym.make(EnvSpec.from_json(env.spec.to_json())), pickle.loads(pickle.dumps(env))):
        assert again.spec == env.spec
        assert again.unwrapped.core.config == env.unwrapped.core.config
        assert_same(rollout(again), expected, tolerance=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost_weight": 0.1}, "cost_weight: expected none, as the rewards are not weighed here, got 0.1"),
        ({"reward": "blockdrop"}, "reward: expected one that holds no compute, got 'blockdrop'"),
        ({"reward": ["correct"]}, "unknown reward ['correct']: expected one of"),
        ({"rewards": "correct"}, "unknown environment argument 'rewards'"),
        ({"render_mode": "human"}, "render_mode: expected None, 'rgb_array' or 'ansi', got 'human'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiObjectiveSkipEnv(**{**TINY, **arguments})


def test_stable_baselines3_gets_a_clear_no() -> None:
    message = "unknown environment id 'mo-ViTSkip-v0': expected one of ViTSkip-v0; did you mean 'ViTSkip-v0'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        vitskip.make_sb3_env("mo-ViTSkip-v0")


@pytest.fixture
def mo_gymnasium() -> Any:
    return pytest.importorskip("mo_gymnasium")


def scalar_rewards(weight: NDArray[np.float32], seed: int, actions: list[int]) -> list[Any]:
    env = gym.make("ViTSkip-v0", **TINY, cost_weight=float(weight[1] / weight[0]))
    env.reset(seed=seed)
    return [pytest.approx(weight[0] * env.step(action)[1], abs=1e-6) for action in actions]


def test_mo_gymnasium_makes_and_weighs_it(mo_gymnasium: Any) -> None:
    weight = np.array([0.8, 0.2], np.float32)
    env = mo_gymnasium.wrappers.LinearReward(mo_gymnasium.make("mo-ViTSkip-v0", **TINY), weight=weight)
    env.reset(seed=5)
    actions = [1, 0, 1, 1]
    results = [env.step(action) for action in actions]
    assert [result[1] for result in results] == scalar_rewards(weight, 5, actions)
    assert results[0][4]["vector_reward"].shape == (2,)


def test_mo_gymnasium_keeps_vector_returns(mo_gymnasium: Any) -> None:
    env = mo_gymnasium.wrappers.MORecordEpisodeStatistics(mo_gymnasium.make("mo-ViTSkip-v0", **TINY))
    env.reset(seed=5)
    info = [env.step(1)[4] for _ in range(DEPTH)][-1]
    assert info["episode"]["r"].tolist() == pytest.approx([float(info["is_success"]), -1], abs=1e-6)


def test_mo_gymnasium_puts_them_side_by_side(mo_gymnasium: Any) -> None:
    pytest.importorskip("mo_gymnasium.wrappers.vector")
    envs = mo_gymnasium.wrappers.vector.MOSyncVectorEnv([make] * 3)
    envs.reset(seed=5)
    actions = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [1, 0, 0]])
    rewards = np.stack([envs.step(row)[1] for row in actions])
    assert rewards.shape == (DEPTH, 3, 2)
    for row in range(3):
        weighed = (rewards[:, row] @ [1, 0.1]).tolist()
        assert weighed == scalar_rewards(np.array([1, 0.1], np.float32), 5 + row, actions[:, row].tolist())
