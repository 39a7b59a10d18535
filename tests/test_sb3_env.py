"""The Stable-Baselines3 face: the numbers of the native vector face, and everything SB3 asks of a `VecEnv`."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from toys import DEPTH, TINY, assert_same

from vitskip.envs import SkipVecEnv, make_sb3_env
from vitskip.envs.viewer import HEIGHT, WIDTH

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
INFO_KEYS = {"index", "block_index", "macs", "macs_fraction", "is_success", "prediction", "label", "difficulty"}
INFO_KEYS |= {"keep_mask", "episode", "terminal_observation", "TimeLimit.truncated"}


def make(num_envs: int = 4, **arguments: Any) -> SkipVecEnv:
    return make_sb3_env("ViTSkip-v0", num_envs=num_envs, **{"seed": 0, **TINY, **arguments})


@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize(
    "kind", [{}, {"action_unit": "half", "observation": "tokens", "reward": "kl"}], ids=["block-belief", "half-tokens"]
)
def test_it_equals_the_native_vector_face(num_envs: int, kind: dict[str, Any]) -> None:
    venv = make(num_envs, seed=11, **kind)
    native: Any = gym.make_vec("ViTSkip-v0", num_envs=num_envs, **TINY, **kind)
    assert isinstance(venv, VecEnv)
    assert (venv.observation_space, venv.action_space) == (native.single_observation_space, gym.spaces.Discrete(2))
    assert_same(venv.reset(), native.reset(seed=11)[0], tolerance=0)
    rng = np.random.default_rng(0)
    for _ in range(3 * venv.core.num_units):
        actions = rng.integers(2, size=num_envs)
        observation, rewards, dones, infos = venv.step(actions)
        expected = native.step(actions)
        assert_same(observation, expected[0], tolerance=0)
        assert_same(rewards.astype(np.float64), expected[1], tolerance=0)
        assert_same(dones, expected[2])
        for row, info in enumerate(infos):
            assert bool(info) == dones[row]
            if info:
                final = expected[4]["final_info"]
                assert_same(info["terminal_observation"], expected[4]["final_obs"][row], tolerance=0)
                assert all(np.array_equal(info[key], final[key][row]) for key in final if key[0] != "_")


def test_infos_are_filled_where_an_episode_ends_as_a_monitor_does() -> None:
    venv = make()
    venv.reset()
    returns, lengths, rng, ended = np.zeros(4), np.zeros(4, int), np.random.default_rng(0), []
    for step in range(1, 3 * DEPTH + 1):
        _, rewards, dones, infos = venv.step(rng.integers(2, size=4))
        returns, lengths = returns + rewards, lengths + 1
        assert dones.tolist() == [step % DEPTH == 0] * 4
        if not dones.all():
            assert infos == [{}] * 4
            continue
        for row, info in enumerate(infos):
            assert info.keys() == INFO_KEYS
            assert info["episode"].keys() == {"r", "l", "t"}
            assert info["episode"]["r"] == pytest.approx(returns[row], abs=1e-5)
            assert info["episode"]["l"] == lengths[row] == DEPTH
            assert info["is_success"] is (info["prediction"] == info["label"])
            assert info["TimeLimit.truncated"] is False
            assert info["terminal_observation"] in venv.observation_space
            assert info["block_index"] == DEPTH
            ended.append(info["episode"]["t"])
        returns[:], lengths[:] = 0, 0
    assert ended == sorted(ended) and ended[0] > 0


def test_a_reset_forgets_the_return_so_far() -> None:
    venv = make(2, reward="kl", cost_weight=1)
    venv.reset()
    venv.step(np.ones(2, np.int64))
    venv.reset()
    infos = [venv.step(np.ones(2, np.int64))[3] for _ in range(DEPTH)][-1]
    assert [info["episode"]["r"] for info in infos] == pytest.approx([-1, -1], abs=1e-5)


def rollout(venv: SkipVecEnv, n_steps: int = 2 * DEPTH + 1) -> list[Any]:
    """Everything but the clock."""
    rng, results = np.random.default_rng(0), [venv.reset()]
    for _ in range(n_steps):
        observation, rewards, dones, infos = venv.step(rng.integers(2, size=venv.num_envs))
        for info in infos:
            info.get("episode", {}).pop("t", None)
        results.append((observation, rewards, dones, infos))
    return results


def test_seed_then_reset_begins_anew() -> None:
    venv = make()
    first = rollout(venv)
    assert not np.array_equal(rollout(venv)[-1][0], first[-1][0])  # other images
    assert venv.seed(0) == [0, 1, 2, 3]
    assert_same(rollout(venv), first, tolerance=0)
    assert_same(rollout(make()), first, tolerance=0)


def test_without_a_seed_it_starts_too() -> None:
    images = [make(8, seed=None) for _ in range(2)]
    for venv in images:
        venv.reset()
    assert not np.array_equal(images[0].core.image_index, images[1].core.image_index)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_plain_sb3_learns_on_it_and_logs_success(algorithm: type[PPO | A2C], tmp_path: Path) -> None:
    batches = {"batch_size": 16, "n_epochs": 1} if algorithm is PPO else {}
    model: Any = algorithm("MlpPolicy", make(), n_steps=2 * DEPTH, **batches, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, log_interval=1)
    model.logger.close()
    assert len(model.ep_info_buffer) == 16
    assert len(model.ep_success_buffer) == 16
    assert all(episode["l"] == DEPTH for episode in model.ep_info_buffer)
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert 0 <= float(rows[-1]["rollout/success_rate"]) <= 1
    assert float(rows[-1]["rollout/success_rate"]) == pytest.approx(np.mean(model.ep_success_buffer))
    assert float(rows[-1]["rollout/ep_len_mean"]) == DEPTH
    expected = np.mean([episode["r"] for episode in model.ep_info_buffer])
    assert float(rows[-1]["rollout/ep_rew_mean"]) == pytest.approx(expected, abs=1e-4)


def test_off_policy_learning_sees_the_last_observation() -> None:
    """DQN stores `terminal_observation` as the next one; at the end no unit is next."""
    model = DQN("MlpPolicy", make(), learning_starts=8, batch_size=8, buffer_size=100, **SMALL)
    model.learn(40)
    buffer, depth = model.replay_buffer, make().core.layout.depth
    for step in range(10):
        ended = (step + 1) % DEPTH == 0
        assert buffer.dones[step].tolist() == [ended] * 4
        assert (buffer.next_observations[step][:, depth].sum(1) == (0 if ended else 1)).all()
    assert not buffer.timeouts.any()


def test_a_policy_is_evaluated_without_a_warning() -> None:
    model = PPO("MlpPolicy", make(), n_steps=DEPTH, batch_size=16, **SMALL)
    returns, lengths = evaluate_policy(model, make(), n_eval_episodes=8, return_episode_rewards=True)
    assert lengths == [DEPTH] * 8
    assert len(returns) == 8


def test_sb3s_wrappers_go_around_it() -> None:
    venv: Any = VecNormalize(make(), norm_reward=False)
    assert venv.reset().shape == (4, *venv.observation_space.shape)
    assert venv.step(np.ones(4, np.int64))[0].dtype == np.float32


def test_only_monitor_is_said_to_wrap_it() -> None:
    venv = make(3)
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert venv.env_is_wrapped(TimeLimit) == [False] * 3
    assert venv.env_is_wrapped(Monitor, indices=[0]) == [True]


def test_attributes_and_methods_answer_once_per_row() -> None:
    venv = make(3)
    assert venv.get_attr("num_envs") == [3, 3, 3]
    assert venv.get_attr("render_mode", indices=1) == [None]
    assert venv.has_attr("action_masks")
    assert not venv.has_attr("no_such_attribute")
    assert np.stack(venv.env_method("action_masks")).tolist() == [[True, True]] * 3
    assert len(venv.env_method("action_masks", indices=[0, 2])) == 2
    with pytest.raises(AttributeError, match="rows of SkipVecEnv have no attribute 'cost_weight' to set"):
        venv.set_attr("cost_weight", 0.5)


def test_frames_are_tiled() -> None:
    venv = make(4, render_mode="rgb_array")
    venv.reset()
    venv.step(np.array([0, 1, 0, 1]))
    frames, picture = venv.get_images(), venv.render()
    assert [(frame.dtype, frame.shape) for frame in frames] == [(np.uint8, (HEIGHT, WIDTH, 3))] * 4
    assert picture.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    assert np.array_equal(picture[:HEIGHT, WIDTH:], frames[1])
    assert venv.get_attr("render_mode") == ["rgb_array"] * 4


def test_text_is_rendered_one_row_under_another() -> None:
    venv = make(3, render_mode="ansi")
    venv.reset()
    assert venv.render() == "\n".join(venv.get_images())
    assert venv.render().count("deciding block 1 of 4") == 3


def test_without_a_render_mode_sb3_says_so() -> None:
    venv = make(2)
    venv.reset()
    with pytest.warns(UserWarning, match="no `render_mode` was passed"):
        assert venv.render() is None


def test_results_are_not_overwritten() -> None:
    venv = make(2)
    kept = rollout(venv, DEPTH)
    copies = [np.copy(kept[0]), *(tuple(map(np.copy, result[:3])) for result in kept[1:])]
    final = kept[-1][3][0]
    terminal, keep_mask = final["terminal_observation"].copy(), final["keep_mask"].copy()
    rollout(venv, DEPTH)
    assert_same([kept[0], *(result[:3] for result in kept[1:])], copies, tolerance=0)
    assert np.array_equal(final["terminal_observation"], terminal)
    assert np.array_equal(final["keep_mask"], keep_mask)


def test_arguments_of_a_registered_variant_are_defaults() -> None:
    gym.register("TinySkip-v0", entry_point="vitskip.envs.single:SkipEnv", kwargs={**TINY, "cost_weight": 0.7})
    try:
        assert make_sb3_env("TinySkip-v0", num_envs=2).core.config.cost_weight == 0.7
        assert make_sb3_env("TinySkip-v0", num_envs=2, cost_weight=0.2).core.config.cost_weight == 0.2
    finally:
        del gym.registry["TinySkip-v0"]


def test_the_images_can_be_chosen() -> None:
    """As on the other faces; for one reset."""
    venv = make()
    venv.set_options([{"index": index} for index in (7, 3, 9, 3)])
    venv.reset()
    assert venv.core.image_index.tolist() == [7, 3, 9, 3]
    venv.set_options({"index": 5})
    venv.reset()
    assert venv.core.image_index.tolist() == [5] * 4
    venv.reset()
    assert venv.core.image_index.tolist() != [5] * 4
    for options, message in (
        ({"indx": 5}, "unknown reset option 'indx'"),
        ([{"index": 1}, {}, {}, {}], r"index: expected integers \[4\]"),
    ):
        venv.set_options(options)
        with pytest.raises(ValueError, match=message):
            venv.reset()


def test_a_planner_wraps_the_environment() -> None:
    with pytest.raises(ValueError, match="env_id: expected one that decides unit by unit, got 'ViTSkip-Plan-v0'"):
        make_sb3_env("ViTSkip-Plan-v0")
