"""The native vector face equals single environments side by side, in every autoreset mode, row by row."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from torch import Tensor
from toys import DEPTH, TINY, assert_same

from vitskip.envs import SkipVectorEnv

MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
SIZES = pytest.mark.parametrize("num_envs", [1, 5])
KINDS = pytest.mark.parametrize(
    "kind",
    [
        {},
        {"action_unit": "half", "observation": "tokens", "reward": "kl", "split": "validation"},
        {"budgets": [0.3, 0.6, 0.9]},
    ],
    ids=["block-belief", "half-tokens", "budgets"],
)


def make_native(num_envs: int, mode: AutoresetMode | str = AutoresetMode.SAME_STEP, **arguments: Any) -> SkipVectorEnv:
    envs = gym.make_vec("ViTSkip-v0", num_envs=num_envs, autoreset_mode=mode, **TINY, **arguments)
    assert isinstance(envs, SkipVectorEnv)
    return envs


def make_pair(num_envs: int, mode: AutoresetMode, **arguments: Any) -> tuple[SkipVectorEnv, SyncVectorEnv]:
    singles = [lambda: gym.make("ViTSkip-v0", **TINY, **arguments)] * num_envs
    return make_native(num_envs, mode, **arguments), SyncVectorEnv(singles, autoreset_mode=mode)


def random_actions(num_envs: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(2, size=num_envs)


def arrays_in(result: Any) -> Iterator[NDArray[Any]]:
    """Every array in what a call returned."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, np.ndarray) and result.dtype == object:
        result = tuple(result)
    if isinstance(result, tuple):
        for part in result:
            yield from arrays_in(part)
    elif isinstance(result, np.ndarray):
        yield result


@KINDS
@SIZES
@MODES
def test_it_equals_single_environments_side_by_side(num_envs: int, mode: AutoresetMode, kind: dict[str, Any]) -> None:
    native, sync = make_pair(num_envs, mode, **kind)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert_same(native.reset(seed=7), sync.reset(seed=7))
    actions, ends = random_actions(num_envs), 0
    for step in range(3 * (native.core.num_units + 1)):
        action = next(actions)
        result, expected = native.step(action), sync.step(action)
        assert_same(result, expected, f"step {step}")
        ends += int(result[2].sum())
        if mode is AutoresetMode.DISABLED and result[2].all():
            assert_same(native.reset(), sync.reset())
    assert ends >= 3 * num_envs


@MODES
def test_rows_at_different_depths_equal_single_environments(mode: AutoresetMode) -> None:
    """Partial resets break the lockstep; the rows then end one by one."""
    native, sync = make_pair(5, mode)
    native.reset(seed=7)
    sync.reset(seed=7)
    rng, actions, terminated, depths = np.random.default_rng(1), random_actions(5), np.zeros(5, bool), set()
    for step in range(8 * DEPTH):
        mask = rng.random(5) < 0.15
        if mode is AutoresetMode.DISABLED:
            mask |= terminated
        if mask.any():
            seed = None if step % 3 else step
            results = [envs.reset(seed=seed, options={"reset_mask": mask.copy()}) for envs in (native, sync)]
            assert_same(results[0], results[1], f"reset {step}")
        action = next(actions)
        result = native.step(action)
        assert_same(result, sync.step(action), f"step {step}")
        terminated = result[2]
        depths.add(tuple(result[4]["block_index"]))
    assert any(len(set(rows)) > 2 for rows in depths)


@MODES
def test_a_mask_of_all_rows_is_a_reset(mode: AutoresetMode) -> None:
    one, other = make_native(3, mode), make_native(3, mode)
    options = {"reset_mask": np.ones(3, bool)}
    assert_same(one.reset(seed=1, options=options), other.reset(seed=1))
    assert options["reset_mask"].all()


def test_a_partial_reset_leaves_the_other_rows_alone() -> None:
    envs = make_native(3, "DISABLED")
    envs.reset(seed=0)
    observation, *_, before = envs.step(np.array([1, 0, 1]))
    mask, index = np.array([False, True, False]), np.array([60, 61, 62])
    after, infos = envs.reset(options={"reset_mask": mask, "index": index})
    assert_same(after[~mask], observation[~mask], tolerance=0)
    assert envs.core.image_index.tolist() == [before["index"][0], 61, before["index"][2]]
    assert infos["index"].tolist() == [0, 61, 0]  # Gymnasium's form: zero where a row has no info
    assert infos["_index"].tolist() == mask.tolist()


@pytest.mark.parametrize("row", [0, 3])
def test_a_row_equals_the_single_environment_with_its_seed(row: int) -> None:
    native, env = make_native(5), gym.make("ViTSkip-v0", **TINY)
    observations, infos = native.reset(seed=100)
    observation, info = env.reset(seed=100 + row)
    actions = random_actions(5)
    for _ in range(3 * DEPTH):
        np.testing.assert_allclose(observations[row], observation, atol=1e-5)
        assert [infos[key][row] for key in ("index", "macs", "prediction")] == [
            info[key] for key in ("index", "macs", "prediction")
        ]
        action = next(actions)
        observations, rewards, terminated, _, infos = native.step(action)
        observation, reward, ended, _, info = env.step(action[row])
        assert rewards[row] == pytest.approx(float(reward), abs=1e-6)
        assert terminated[row] == ended
        if ended:
            np.testing.assert_allclose(infos["final_obs"][row], observation, atol=1e-5)
            observation, info = env.reset()


def row_of(result: Any, row: int) -> Any:
    """One row of all that a call returned."""
    if isinstance(result, dict):
        return {key: row_of(value, row) for key, value in result.items()}
    return tuple(row_of(part, row) for part in result) if isinstance(result, tuple) else result[row]


@pytest.mark.parametrize("row", range(5))
def test_other_rows_cannot_change_a_row(row: int) -> None:
    """Neither what they do, nor which images they show."""
    one, other = make_native(5), make_native(5)
    seeds = [seed if seed == row else seed + 1000 for seed in range(5)]
    assert_same(row_of(other.reset(seed=seeds), row), row_of(one.reset(seed=list(range(5))), row))
    actions = random_actions(5)
    for step in range(2 * DEPTH + 1):
        action = next(actions)
        changed = np.where(np.arange(5) == row, action, 1 - action)
        assert_same(row_of(other.step(changed), row), row_of(one.step(action), row), f"step {step}")
    assert not np.array_equal(one.core.image_index, other.core.image_index)


def as_arrays(result: Any) -> Any:
    """What a torch face returned, as the NumPy face returns it but for the rewards' dtype."""
    if isinstance(result, dict):
        return {key: as_arrays(value) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(map(as_arrays, result))
    if isinstance(result, np.ndarray) and result.dtype == object:
        rows = np.full(len(result), None, object)
        rows[:] = [as_arrays(part) for part in result]
        return rows
    return result.numpy() if isinstance(result, Tensor) else result


@MODES
def test_tensors_hold_what_arrays_hold(mode: AutoresetMode) -> None:
    arrays, tensors = (make_native(3, mode, output=output) for output in ("numpy", "torch"))
    assert_same(as_arrays(tensors.reset(seed=2)), arrays.reset(seed=2), tolerance=0)
    actions = random_actions(3)
    for step in range(3 * DEPTH):
        if mode is AutoresetMode.DISABLED and step % DEPTH == 0:
            assert_same(as_arrays(tensors.reset()), arrays.reset(), tolerance=0)
        if mode is not AutoresetMode.DISABLED and step == DEPTH + 2:  # from here on rows end one by one
            options = {"reset_mask": np.array([True, False, True])}
            assert_same(as_arrays(tensors.reset(options=options)), arrays.reset(options=options), tolerance=0)
        action = next(actions)
        observation, rewards, *others, infos = tensors.step(torch.from_numpy(action))
        in_torch = [observation, rewards, infos["prediction"], infos["is_success"]]
        assert [part.dtype for part in in_torch] == [torch.float32, torch.float32, torch.int64, torch.bool]
        actual = as_arrays((observation, rewards.double(), *others, infos))
        assert_same(actual, arrays.step(action), f"step {step}", tolerance=0)


def test_final_observations_of_the_torch_face_are_tensors() -> None:
    envs = make_native(2, output="torch")
    envs.reset(seed=0)
    infos = [envs.step(torch.ones(2, dtype=torch.int64))[4] for _ in range(DEPTH)][-1]
    assert all(isinstance(final, Tensor) for final in infos["final_obs"])
    assert isinstance(infos["final_info"]["prediction"], Tensor)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_tensors_and_arrays_are_both_taken_as_actions(output: str) -> None:
    one, other = make_native(2, output=output), make_native(2, output=output)
    one.reset(seed=0)
    other.reset(seed=0)
    assert_same(one.step(np.array([1, 0])), other.step(torch.tensor([1, 0])), tolerance=0)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_autoreset_mode_is_declared_under_every_name(mode: AutoresetMode) -> None:
    for name in (mode, mode.name, mode.name.lower(), mode.value):
        envs = make_native(1, name)
        assert envs.autoreset_mode is mode
        assert envs.metadata["autoreset_mode"] is mode


def test_same_step_is_the_default_and_metadata_is_not_shared() -> None:
    envs = SkipVectorEnv(2, **TINY)
    assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert make_native(2, "DISABLED").metadata is not envs.metadata
    assert envs.autoreset_mode is AutoresetMode.SAME_STEP
    assert "torch" not in envs.metadata  # Gymnasium would look for a wrapper that does not exist


@MODES
def test_overwritten_results_do_not_change_the_environment(mode: AutoresetMode) -> None:
    envs, reference = make_native(3, mode), make_native(3, mode)
    result, actions = envs.reset(seed=4), random_actions(3)
    assert_same(result, reference.reset(seed=4), tolerance=0)
    for step in range(2 * DEPTH + 1):
        for array in arrays_in(result):
            array[...] = 77
        if mode is AutoresetMode.DISABLED and step and step % DEPTH == 0:
            assert_same(envs.reset(), reference.reset(), f"reset {step}", tolerance=0)
        action = next(actions)
        result = envs.step(action)
        assert_same(result, reference.step(action), f"step {step}", tolerance=0)


@MODES
def test_arrays_of_different_calls_do_not_overlap(mode: AutoresetMode) -> None:
    envs = make_native(3, mode)
    calls = [envs.reset(seed=0)] + [envs.step(np.array([1, 0, 1])) for _ in range(DEPTH)] + [envs.reset()]
    arrays = [list(arrays_in(call)) for call in calls]
    for place, earlier in enumerate(arrays):
        for later in arrays[place + 1 :]:
            assert not any(np.shares_memory(one, other) for one in earlier for other in later)


def test_a_list_of_seeds_gives_each_row_its_own() -> None:
    native, sync = make_pair(3, AutoresetMode.SAME_STEP)
    assert_same(native.reset(seed=[5, 9, 5]), sync.reset(seed=[5, 9, 5]))
    assert_same(native.reset(seed=[5, None, 6]), sync.reset(seed=[5, None, 6]))
    assert_same(native.reset(), sync.reset())


def test_gymnasiums_statistics_wrapper_counts_right() -> None:
    plain, envs = make_native(3), RecordEpisodeStatistics(make_native(3))
    plain.reset(seed=0)
    envs.reset(seed=0)
    returns, actions = np.zeros(3), random_actions(3)
    for step in range(1, 3 * DEPTH + 1):
        action = next(actions)
        returns += plain.step(action)[1]
        *_, infos = envs.step(action)
        assert ("episode" in infos) == (step % DEPTH == 0)
        if "episode" in infos:
            np.testing.assert_allclose(infos["episode"]["r"], returns)
            assert infos["episode"]["l"].tolist() == [DEPTH] * 3
            returns[:] = 0
    assert envs.episode_count == 9
