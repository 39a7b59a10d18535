"""Deciding up front: a one-step environment that pays what the same decisions are paid one by one."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from toys import DEPTH, TINY

import vitskip  # noqa: F401 - registers the ids
from vitskip.envs import make_sb3_env
from vitskip.envs.plan import PlanVecEnv, make_plan_env

ENV = {**TINY, "cost_weight": 0.4}
UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])
LOOKS = pytest.mark.parametrize("look_after", [1, 3])


@pytest.mark.filterwarnings("ignore:.*not within the observation space.*")
def test_the_environment_checker_is_content() -> None:
    check_env(gym.make("ViTSkip-Plan-v0", **ENV).unwrapped, skip_render_check=True)


@UNITS
@LOOKS
def test_one_step_is_worth_the_whole_episode(action_unit: str, look_after: int) -> None:
    plan: Any = gym.make("ViTSkip-Plan-v0", action_unit=action_unit, look_after=look_after, **ENV)
    steps: Any = gym.make("ViTSkip-v0", action_unit=action_unit, **ENV)
    first = look_after * (1 if action_unit == "block" else 2)
    rng = np.random.default_rng(0)
    for index in range(6):
        decisions = rng.integers(0, 2, plan.action_space.n)
        observation, info = plan.reset(seed=0, options={"index": index})
        steps.reset(seed=0, options={"index": index})
        total, expected_info = 0.0, {}
        for unit in range(len(decisions)):
            expected, reward, *_, expected_info = steps.step(1 if unit < first else int(decisions[unit]))
            total += reward
            if unit == first - 1:
                np.testing.assert_array_equal(observation, expected)
        _, reward, terminated, truncated, info = plan.step(decisions)
        assert (terminated, truncated) == (True, False)
        assert reward == pytest.approx(total, abs=1e-6)
        assert info["keep_mask"].tolist() == expected_info["keep_mask"].tolist()
        assert info["macs"] == expected_info["macs"]


@UNITS
@LOOKS
def test_the_batch_equals_the_single_environment(action_unit: str, look_after: int) -> None:
    venv: Any = PlanVecEnv(make_sb3_env(num_envs=3, seed=5, action_unit=action_unit, **ENV), look_after)
    arguments = {"action_unit": action_unit, "look_after": look_after, **ENV}
    singles: list[Any] = [gym.make("ViTSkip-Plan-v0", **arguments) for _ in range(3)]
    observation = venv.reset()
    expected = np.stack([env.reset(seed=5 + i)[0] for i, env in enumerate(singles)])
    rng = np.random.default_rng(1)
    for _ in range(4):
        np.testing.assert_allclose(observation, expected, atol=1e-6)
        plans = rng.integers(0, 2, (3, venv.action_space.n))
        observation, rewards, terminated, infos = venv.step(plans)
        results = [env.step(plan) for env, plan in zip(singles, plans, strict=True)]
        np.testing.assert_allclose(rewards, [result[1] for result in results], atol=1e-6)
        assert terminated.all()
        for info, result in zip(infos, results, strict=True):
            assert info["keep_mask"].tolist() == result[4]["keep_mask"].tolist()
            assert info["episode"]["l"] == 1
            assert info["episode"]["r"] == pytest.approx(result[1], abs=1e-5)
        expected = np.stack([env.reset()[0] for env in singles])


def test_a_step_is_paid_for_at_the_cost_weight_of_its_time() -> None:
    """The first blocks ran before, when the weight may have been another one."""
    venv = PlanVecEnv(make_sb3_env(num_envs=3, seed=5, **ENV), 1)
    venv.reset()
    venv.core.cost_weight[:] = 2.0
    plans = np.zeros((3, DEPTH), np.int64)
    _, rewards, _, infos = venv.step(plans)
    correct = np.array([info["is_success"] for info in infos])
    np.testing.assert_allclose(rewards, correct - 2.0 * venv.core.cost_share[0], atol=1e-6)
    np.testing.assert_allclose([info["episode"]["r"] for info in infos], rewards, atol=1e-5)


def test_plans_that_are_none_are_refused() -> None:
    env = make_plan_env(**ENV)
    env.reset(seed=0)
    for plan in ([1, 0], [2] * DEPTH):
        with pytest.raises(ValueError, match=r"action: expected 0 \(SKIP\) or 1 \(RUN\) for each of 4 units"):
            env.step(np.array(plan))


@pytest.mark.parametrize("look_after", [0, DEPTH])
def test_a_look_before_any_block_or_after_all_is_refused(look_after: int) -> None:
    with pytest.raises(ValueError, match=f"look_after: expected 1..3 blocks, got {look_after}"):
        make_plan_env(look_after=look_after, **ENV)
