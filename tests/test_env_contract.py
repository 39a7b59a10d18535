"""What the faces promise to Gymnasium and Stable-Baselines3. Every warning is an error here."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from toys import DEPTH, SIZE, TINY, assert_same

import vitskip  # noqa: F401 - registers the id
from vitskip.envs import make_sb3_env, single
from vitskip.envs.episodes import to_host
from vitskip.envs.viewer import HEIGHT, WIDTH

KINDS = [
    {"action_unit": "block", "observation": "belief"},
    {"action_unit": "half", "observation": "confidence", "reward": "margin"},
    {"action_unit": "block", "observation": "tokens", "reward": "kl"},
    {"action_unit": "half", "observation": "tokens", "order": "sequential", "cost_weight": 0, "split": "test"},
]
EVERY_KIND = pytest.mark.parametrize(
    "kind", KINDS, ids=["block-belief", "half-confidence", "block-tokens", "half-tokens"]
)
BOTH_UNITS = pytest.mark.parametrize(("action_unit", "units"), [("block", DEPTH), ("half", 2 * DEPTH)])
BOTH_FACES = pytest.mark.parametrize("num_envs", [None, 3], ids=["single", "vector"])
INFO_TYPES = {
    "index": int,
    "block_index": int,
    "macs": int,
    "macs_fraction": float,
    "is_success": bool,
    "prediction": int,
    "label": int,
    "difficulty": float,
    "keep_mask": np.ndarray,
}


def make(num_envs: int | None = None, **arguments: Any) -> Any:
    """One of the two faces of Gymnasium."""
    arguments = {**TINY, **arguments}
    if num_envs is None:
        return gym.make("ViTSkip-v0", **arguments)
    return gym.make_vec("ViTSkip-v0", num_envs=num_envs, **arguments)


def rollout(env: Any, seed: int = 3, n_steps: int = 10) -> list[Any]:
    """All that reset and random actions give."""
    env.action_space.seed(seed)
    results = [env.reset(seed=seed)]
    for _ in range(n_steps):
        results.append(env.step(env.action_space.sample()))
        if results[-1][2] is True:  # the vector face begins anew by itself
            results.append(env.reset())
    return results


@EVERY_KIND
def test_gymnasium_finds_no_fault(kind: dict[str, Any]) -> None:
    check_env(make(**kind).unwrapped)


@EVERY_KIND
def test_stable_baselines3_finds_no_fault(kind: dict[str, Any]) -> None:
    check_env_of_sb3(make(**kind, render_mode="rgb_array").unwrapped, skip_render_check=False)


@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_gym_make_wraps_as_usual_and_nothing_is_complained_of(render_mode: str) -> None:
    env = make(render_mode=render_mode)
    assert isinstance(env, OrderEnforcing)
    assert isinstance(env.env, PassiveEnvChecker)
    assert env.spec.max_episode_steps is None
    assert not env.spec.nondeterministic
    rollout(env)
    env.render()
    env.close()


@EVERY_KIND
def test_a_spec_survives_json(kind: dict[str, Any]) -> None:
    env = make(**kind)
    again: Any = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    assert again.spec.kwargs == {**TINY, **kind}
    assert again.unwrapped.core.config == env.unwrapped.core.config
    assert_same(rollout(again), rollout(env), tolerance=0)


def test_the_vector_faces_spec_survives_json() -> None:
    envs = make(3, **KINDS[1], output="numpy", autoreset_mode="NEXT_STEP")
    again: Any = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert again.spec == envs.spec
    assert (type(again), again.num_envs, again.autoreset_mode) == (type(envs), 3, envs.autoreset_mode)
    assert_same(rollout(again), rollout(envs), tolerance=0)


@BOTH_FACES
@EVERY_KIND
def test_pickled_and_back_it_behaves_alike(num_envs: int | None, kind: dict[str, Any]) -> None:
    env = make(num_envs, **kind)
    expected = rollout(env)
    again = pickle.loads(pickle.dumps(env))
    assert again.unwrapped.core.config == env.unwrapped.core.config
    assert_same(rollout(again), expected, tolerance=0)


def test_the_vector_faces_own_arguments_survive_pickling() -> None:
    envs = make(3, output="torch", autoreset_mode="DISABLED", render_mode="ansi")
    again = pickle.loads(pickle.dumps(envs))
    for name in ("num_envs", "output", "autoreset_mode", "render_mode", "metadata"):
        assert getattr(again, name) == getattr(envs, name), name


@BOTH_FACES
@EVERY_KIND
def test_a_seed_determines_everything(num_envs: int | None, kind: dict[str, Any]) -> None:
    env = make(num_envs, **kind)
    first = rollout(env)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert_same(rollout(env), first, tolerance=0)
    assert_same(rollout(make(num_envs, **kind)), first, tolerance=0)


@BOTH_FACES
def test_global_generators_are_left_alone(num_envs: int | None) -> None:
    env = make(num_envs)
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - only looked at
    rollout(env)
    env.reset()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002 - only looked at


def test_seeds_lead_to_different_images() -> None:
    envs = make(50)
    images = [envs.reset(seed=seed)[1]["index"] for seed in (0, 1, 1000)]
    assert np.array_equal(images[0][1:], images[1][:-1])  # row i gets seed + i
    assert (images[0] == images[2]).mean() < 0.2
    assert len(np.unique(images[0])) > 25


@BOTH_FACES
def test_without_a_seed_it_starts_too(num_envs: int | None) -> None:
    fresh = [np.ravel([make(num_envs).reset()[1]["index"] for _ in range(12)]) for _ in range(2)]
    assert not np.array_equal(*fresh)
    assert np.concatenate(fresh).max() < SIZE


def test_images_are_drawn_from_np_random() -> None:
    env, rng = make().unwrapped, np.random.default_rng(5)
    env.reset(seed=0)
    env.np_random = np.random.default_rng(5)
    assert [env.reset()[1]["index"] for _ in range(5)] == [rng.integers(SIZE) for _ in range(5)]
    assert env.np_random.bit_generator.state == rng.bit_generator.state


def test_sequential_order_goes_through_the_split() -> None:
    env = make(order="sequential")
    assert [env.reset()[1]["index"] for _ in range(SIZE + 2)] == [*range(SIZE), 0, 1]


def test_the_sequence_skips_no_image_where_rows_share_one() -> None:
    venv = make_sb3_env(num_envs=6, order="sequential", **TINY)
    venv.rows_per_image = 3
    venv.reset()
    seen = [venv.core.image_index.tolist()]
    for _ in range(3 * DEPTH):
        venv.step(np.zeros(6, np.int64))
        seen.append(venv.core.image_index.tolist())
    assert seen[::DEPTH] == [[2 * n] * 3 + [2 * n + 1] * 3 for n in range(4)]


def test_a_seed_begins_the_sequence_anew() -> None:
    for env in (make(order="sequential"), make(3, order="sequential")):
        first = [np.array(env.reset(seed=seed)[1]["index"]) for seed in (0, None)]
        again = [np.array(env.reset(seed=seed)[1]["index"]) for seed in (0, None)]
        assert_same(again, first)
        assert not np.array_equal(*first)


@pytest.mark.parametrize("autoreset_mode", ["SAME_STEP", "NEXT_STEP"])
def test_sequential_order_of_the_vector_face_covers_the_split(autoreset_mode: str) -> None:
    envs = make(5, order="sequential", autoreset_mode=autoreset_mode)
    _, infos = envs.reset()
    images = [infos["index"]]
    for _ in range(13 * (DEPTH + 1)):
        *_, infos = envs.step(np.zeros(5, np.int64))
        if (infos["block_index"] == 0).all():
            images.append(infos["index"])
    assert np.concatenate(images)[: SIZE + 6].tolist() == [*range(SIZE), *range(6)]


@BOTH_FACES
def test_an_image_can_be_chosen(num_envs: int | None) -> None:
    env = make(num_envs)
    dataset = env.unwrapped.core.dataset
    for chosen in (0, 17, SIZE - 1):
        index = np.array([chosen] if num_envs is None else [chosen, 3, 4])
        _, info = env.reset(options={"index": chosen if num_envs is None else index})
        assert np.atleast_1d(info["index"]).tolist() == index.tolist()
        assert np.atleast_1d(info["label"]).tolist() == dataset.labels[index].tolist()
        assert np.atleast_1d(info["difficulty"]).tolist() == dataset.difficulty[index].tolist()


def test_a_chosen_image_leaves_the_stream_of_images_alone() -> None:
    env, other = make(), make()
    env.reset(seed=0)
    other.reset(seed=0)
    env.reset(options={"index": 5})
    assert env.reset()[1]["index"] == other.reset()[1]["index"]


@BOTH_UNITS
def test_episodes_end_after_the_last_unit_and_are_never_truncated(action_unit: str, units: int) -> None:
    env = make(action_unit=action_unit)
    for _ in range(2):
        env.reset()
        flags = [env.step(env.action_space.sample())[2:4] for _ in range(units)]
        assert flags == [(False, False)] * (units - 1) + [(True, False)]
        assert {type(flag) for pair in flags for flag in pair} == {bool}


@BOTH_UNITS
def test_the_single_faces_infos_are_alike_at_every_step(action_unit: str, units: int) -> None:
    env = make(action_unit=action_unit)
    for step, (*_, info) in enumerate(rollout(env, n_steps=units)[: units + 1]):
        assert {key: type(value) for key, value in info.items()} == INFO_TYPES
        assert (info["keep_mask"].dtype, info["keep_mask"].shape) == (bool, (units,))
        assert info["block_index"] == step
        assert 0 <= info["index"] < SIZE
        assert 0 <= info["difficulty"] <= 1
        assert info["is_success"] == (info["prediction"] == info["label"])


@BOTH_UNITS
def test_the_vector_faces_infos_are_alike_at_every_step(action_unit: str, units: int) -> None:
    dtypes = {key: np.dtype(kind) for key, kind in INFO_TYPES.items() if key != "keep_mask"}
    dtypes["keep_mask"] = np.dtype(bool)
    for step, (*_, infos) in enumerate(rollout(make(3, action_unit=action_unit), n_steps=2 * units)):
        ends = {"final_obs", "final_info"} if step and step % units == 0 else set()
        assert infos.keys() == {name for key in {*dtypes, *ends} for name in (key, f"_{key}")}
        for part in (infos, infos["final_info"]) if ends else (infos,):
            assert {key: part[key].dtype for key in dtypes} == dtypes
            assert {part[key].shape for key in dtypes} == {(3,), (3, units)}
            assert all(part[f"_{key}"].tolist() == [True] * 3 for key in dtypes)
            assert np.array_equal(part["is_success"], part["prediction"] == part["label"])
        assert infos["block_index"].tolist() == [step % units] * 3


@EVERY_KIND
def test_observations_stay_in_their_space(kind: dict[str, Any]) -> None:
    env, envs = make(**kind), make(3, **kind)
    assert env.observation_space == envs.single_observation_space
    assert env.observation_space.dtype == np.float32
    assert np.isfinite(env.observation_space.low).all() and np.isfinite(env.observation_space.high).all()
    assert all(observation in env.observation_space for observation, *_ in rollout(env, n_steps=20))
    for observation, *_, infos in rollout(envs, n_steps=20):
        assert observation in envs.observation_space
        assert all(final in envs.single_observation_space for final in infos.get("final_obs", ()))


@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
@BOTH_FACES
@BOTH_UNITS
def test_every_stage_is_rendered(num_envs: int | None, render_mode: str, action_unit: str, units: int) -> None:
    disabled = {} if num_envs is None else {"autoreset_mode": "DISABLED"}
    env = make(num_envs, render_mode=render_mode, action_unit=action_unit, **disabled)
    env.reset(seed=0)
    frames = [env.render()]
    for step in range(units):
        env.step(step % 2 if num_envs is None else np.array([1, step % 2, 0]))
        if step in (0, units - 1):
            frames.append(env.render())
    if num_envs is not None:
        assert {(type(rows), len(rows)) for rows in frames} == {(tuple, 3)}
        frames = [frame for rows in frames for frame in rows]
    for frame in frames:
        if render_mode == "ansi":
            assert isinstance(frame, str) and frame
        else:
            assert (frame.dtype, frame.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    assert len({str(frame) if isinstance(frame, str) else frame.tobytes() for frame in frames}) == len(frames)


def test_the_vector_faces_rows_are_drawn_as_the_single_face_draws_them() -> None:
    env, envs = (make(num_envs, render_mode="ansi") for num_envs in (None, 3))
    env.reset(seed=1)
    envs.reset(seed=0)
    env.step(0)
    envs.step(np.array([1, 0, 1]))
    assert envs.render()[1] == env.render()


@BOTH_FACES
def test_without_a_render_mode_there_is_nothing_to_see(num_envs: int | None) -> None:
    env = make(num_envs).unwrapped
    env.reset()
    assert env.render() == (None if num_envs is None else (None,) * 3)


def test_every_action_is_allowed() -> None:
    assert make().unwrapped.action_masks().tolist() == [True, True]
    assert make(3).action_masks().tolist() == [[True, True]] * 3


def test_a_step_of_the_single_face_reads_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gym.make("ViTSkip-v0", **TINY)
    env.reset(seed=0)
    reads = []
    monkeypatch.setattr(single, "to_host", lambda *tensors: reads.append(len(tensors)) or to_host(*tensors))
    *_, info = env.step(1)
    assert reads == [3] and info["block_index"] == 1  # observation, prediction and reward
