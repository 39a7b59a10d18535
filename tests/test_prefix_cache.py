"""The prefix cache changes nothing but the work: same states, bounded memory, nothing computed twice while it fits."""

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from toys import DEPTH, TINY, assert_same, tiny_core

from vitskip.backbone import ViT
from vitskip.envs import EnvConfig, SkipCore, SkipEnv, SkipVectorEnv, make_sb3_env, prefix_cache
from vitskip.envs.prefix_cache import WAYS, PrefixCache, StateTable

TOLERANCE = 1e-4  # a row's rounding depends on how many rows run beside it
UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])
ENTRY = 8 + 4 * 3  # bytes of a key and a row of three numbers
AMPLE, SCANT, NOTHING = 2.0, 0.02, 1e-5  # megabytes; the tiny task has 16 states of each image in whole blocks


def pair(megabytes: float, num_envs: int = 6, **arguments: Any) -> tuple[SkipCore, SkipCore]:
    """The same environment with and without a cache."""
    return tiny_core(num_envs, prefix_cache=megabytes, **arguments), tiny_core(num_envs, **arguments)


def cache_of(core: SkipCore) -> PrefixCache:
    assert core.prefix_cache is not None
    return core.prefix_cache


def play(core: SkipCore, keep_mask: NDArray[np.bool_], images: NDArray[np.int64]) -> list[Tensor]:
    """One episode on all rows; what was observed and paid."""
    core.reset(np.arange(core.num_envs), images)
    seen = [core.observe()]
    for column in keep_mask.T:
        seen += [core.step(column.astype(np.int64)), core.observe()]
    return seen


def assert_alike(cached: SkipCore, plain: SkipCore) -> None:
    """Same observations and logits to rounding; masks, MACs and everything else on the host the very same."""
    assert_same(cached.info(), plain.info(), tolerance=0)
    torch.testing.assert_close(cached.logits, plain.logits, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(cached.observe(), plain.observe(), rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(cached.logits.argmax(1), plain.logits.argmax(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the backbones compute from now on: method and number of rows."""
    seen: list[tuple[str, int]] = []

    def count(name: str) -> None:
        method = getattr(ViT, name)

        def counted(*arguments: Any) -> Tensor:
            seen.append((name, len(arguments[-1])))
            return method(*arguments)

        monkeypatch.setattr(ViT, name, counted)

    for name in ("embed", "run_block", "run_half_block", "classify"):
        count(name)
    return seen


@pytest.fixture
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory for answers: tokens are always made again."""
    monkeypatch.setattr(prefix_cache, "ANSWERS_SHARE", 1.0)


def random_episodes(cached: SkipCore, plain: SkipCore, steps: int = 80) -> None:
    """Rows begin, wait and step at random, on few images; both cores are compared after each step."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        begins = (rng.random(6) < 0.1) | cached.ended
        rows = rng.permutation(np.flatnonzero(begins))
        images = rng.integers(8, size=len(rows))
        active = rng.random(6) < 0.8
        actions = (rng.random(6) < 0.6).astype(np.int64)
        rewards = []
        for core in (cached, plain):
            if rows.size:
                core.reset(rows, images)
            rewards.append(core.step(actions, active))
        torch.testing.assert_close(rewards[0], rewards[1], rtol=0, atol=TOLERANCE)
        assert_alike(cached, plain)


@UNITS
@pytest.mark.parametrize("observation", ["belief", "tokens"])
def test_random_episodes_with_partial_resets(action_unit: str, observation: str) -> None:
    cached, plain = pair(AMPLE, action_unit=action_unit, observation=observation, reward="margin")
    random_episodes(cached, plain)
    cache = cache_of(cached)
    assert len(cache.answers) == len(cache.tokens) == cache.visits - cache.hits  # nothing was computed twice
    assert cache.hits > 0.3 * cache.visits and cache.replays == 0


@UNITS
@pytest.mark.parametrize("observation", ["belief", "tokens"])
def test_a_cache_that_overflows(action_unit: str, observation: str) -> None:
    cached, plain = pair(SCANT, action_unit=action_unit, observation=observation, reward="margin")
    random_episodes(cached, plain)
    cache = cache_of(cached)
    for table in (cache.answers, cache.tokens):
        assert 0 < len(table) <= len(table._keys) * WAYS < cache.visits - cache.hits
    assert cache.hits > 0


@UNITS
@pytest.mark.usefixtures("no_tokens")
def test_a_cache_without_tokens(action_unit: str) -> None:
    cached, plain = pair(AMPLE, action_unit=action_unit)
    random_episodes(cached, plain)
    assert cache_of(cached).tokens.nbytes == 0
    assert cache_of(cached).hits > 0 and cache_of(cached).replays > 0


def test_a_cache_that_holds_nothing() -> None:
    cached, plain = pair(NOTHING)
    random_episodes(cached, plain)
    cache = cache_of(cached)
    assert (len(cache.answers), len(cache.tokens), cache.nbytes) == (0, 0, 0)


@UNITS
def test_a_cold_cache_is_equal_bit_by_bit(action_unit: str) -> None:
    cached, plain = pair(AMPLE, action_unit=action_unit)
    keep_mask = np.random.default_rng(1).random((6, cached.num_units)) < 0.5
    images = np.array([5, 3, 8, 1, 0, 9])
    for one, other in zip(play(cached, keep_mask, images), play(plain, keep_mask, images), strict=True):
        assert torch.equal(one, other)


@UNITS
def test_what_was_visited_is_not_computed_again(action_unit: str, calls: list[tuple[str, int]]) -> None:
    core = tiny_core(6, prefix_cache=AMPLE, action_unit=action_unit)
    keep_mask = np.random.default_rng(1).random((6, core.num_units)) < 0.5
    images = np.array([5, 3, 8, 1, 0, 9])
    first = play(core, keep_mask, images)
    assert sum(rows for name, rows in calls if name.startswith("run")) == keep_mask.sum()
    calls.clear()
    again = play(core, keep_mask, images)
    assert calls == []
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    order = np.array([3, 1, 4, 0, 5, 2])  # on other rows too
    play(core, keep_mask[order], images[order])
    assert calls == []
    assert cache_of(core).hits == 2 * cache_of(core).visits // 3


def test_equal_states_of_one_step_are_computed_once(calls: list[tuple[str, int]]) -> None:
    cached, plain = pair(AMPLE)
    images, actions = np.array([7, 7, 7, 2, 2, 7]), np.array([1, 1, 0, 1, 0, 1])
    for core in (plain, cached):
        calls.clear()
        core.reset(np.arange(6), images)
        core.step(actions)
    assert calls == [("embed", 2), ("classify", 2), ("run_block", 2), ("classify", 2)]
    assert_alike(cached, plain)
    calls.clear()
    for core in (cached, plain):
        core.step(np.array([0, 1, 1, 0, 0, 1]))  # the third row's state is another one
    assert calls[:2] == [("run_block", 2), ("classify", 2)]
    assert_alike(cached, plain)


KNOWN = np.array([[True, False, True, False]] * 2)
OTHER = np.array([[True, False, True, True]] * 2)


def leave_the_known_path(calls: list[tuple[str, int]]) -> tuple[PrefixCache, list[tuple[str, int]]]:
    """Two images on a known path, and then, each on the other's row, on a path that leaves it at the last unit."""
    cached, plain = pair(AMPLE, num_envs=2)
    images = np.array([4, 6])
    play(cached, KNOWN, images)
    play(plain, OTHER, images[::-1].copy())
    calls.clear()
    play(cached, OTHER, images[::-1].copy())
    computed = calls.copy()
    assert_alike(cached, plain)
    return cache_of(cached), computed


def test_leaving_the_known_paths_runs_one_unit(calls: list[tuple[str, int]]) -> None:
    cache, computed = leave_the_known_path(calls)
    assert computed == [("run_block", 2), ("classify", 2)]
    assert cache.replays == 0


@pytest.mark.usefixtures("no_tokens")
def test_leaving_them_without_tokens_runs_the_path_again(calls: list[tuple[str, int]]) -> None:
    cache, computed = leave_the_known_path(calls)
    assert computed == [("embed", 2), *[("run_block", 2)] * 3, ("classify", 2)]
    assert cache.replays == 4


@pytest.mark.usefixtures("no_tokens")
def test_a_row_goes_on_from_its_own_tokens_where_it_can(calls: list[tuple[str, int]]) -> None:
    """Row 1 is looked up after unit 0 and makes 0 again to run 1; row 0 is looked up after 1 and makes that again."""
    cached, plain = pair(AMPLE, num_envs=2)
    first, second, both = np.array([True, False]), np.array([False, True]), np.ones(2, np.int64)
    for core in (plain, cached):
        calls.clear()
        core.reset(np.arange(2), np.array([3, 4]))
        core.step(both)
        core.reset(np.array([1]), np.array([3]))
        for active in (second, second, first, first):
            core.step(both, active)
    assert [rows for name, rows in calls if name == "run_block"] == [2, 1, 1, 1, 1]
    assert [rows for name, rows in calls if name == "embed"] == [2, 1]
    assert cache_of(cached).replays == 2
    assert_alike(cached, plain)


@pytest.mark.parametrize("announced", [True, False])
def test_changed_weights_empty_the_cache(announced: bool) -> None:
    core = tiny_core(6, prefix_cache=AMPLE)
    keep_mask, images = np.ones((6, DEPTH), bool), np.arange(6)
    before = play(core, keep_mask, images)[-1]
    with torch.no_grad():
        for parameter in core.backbone.parameters():
            parameter.mul_(0.9)
    if announced:
        core.weights_changed()
        assert len(cache_of(core).answers) == len(cache_of(core).tokens) == 0
    after = play(core, keep_mask, images)[-1]
    assert not torch.allclose(before, after, atol=0.01)
    assert torch.equal(core.logits, core.backbone(core.dataset.images[images]))


def test_changed_weights_leave_no_mixed_states() -> None:
    """Weights that change within an episode: what is stored then is of the new ones throughout."""
    core = tiny_core(6, prefix_cache=AMPLE)
    everything, images = np.ones((6, DEPTH), bool), np.arange(6)
    core.reset(np.arange(6), images)
    core.step(np.ones(6, np.int64))
    with torch.no_grad():
        for parameter in core.backbone.parameters():
            parameter.mul_(0.9)
    core.weights_changed()
    core.step(np.ones(6, np.int64))
    play(core, everything, images)
    torch.testing.assert_close(core.logits, core.backbone(core.dataset.images[images]))


@pytest.mark.parametrize("megabytes", [0.001, 0.005, 0.0123, 0.1, 1])
@UNITS
def test_the_memory_is_bounded(megabytes: float, action_unit: str) -> None:
    core = tiny_core(6, prefix_cache=megabytes, observation="tokens", action_unit=action_unit)
    rng = np.random.default_rng(0)
    for _ in range(30):
        play(core, rng.random((6, core.num_units)) < 0.5, rng.integers(64, size=6))
        assert cache_of(core).nbytes <= megabytes * 10**6
    if megabytes >= 0.1:
        assert cache_of(core).nbytes > 0.95 * megabytes * 10**6
        tables = cache_of(core).answers, cache_of(core).tokens
        arrays = [array for table in tables for array in (table._keys, table._eldest, *(table._values or ()))]
        assert sum(array.nbytes for array in arrays) == cache_of(core).nbytes


def test_a_table_gives_back_what_was_put_in() -> None:
    table = StateTable(100 * ENTRY)
    every = np.random.default_rng(0).permutation(np.arange(0, 1000 * 10**9, 10**9)).reshape(200, 5)
    for keys in every:
        table.insert(keys, torch.from_numpy(keys % 9973).float()[:, None].expand(-1, 3))
        assert table.nbytes <= 100 * ENTRY
    slots = table.find(every)
    there = slots >= 0
    assert slots.shape == every.shape and 80 < there.sum() == len(table) <= 100
    assert len(np.unique(slots[there])) == len(table)
    assert table.rows(slots[there])[0].tolist() == [[key % 9973] * 3 for key in every[there]]
    assert there[-5:].mean() > 0.8 and not there[:-50].any()  # the youngest are there, the eldest are gone
    table.clear()
    assert len(table) == 0 and (table.find(every) == -1).all() and table.nbytes == 0
    table.insert(every[0], torch.ones(5, 3))
    assert len(table) == 5


def test_the_eldest_of_a_bucket_makes_room() -> None:
    table = StateTable(WAYS * ENTRY + 1)
    for key in range(WAYS + 3):
        table.insert(np.array([key]), torch.full((1, 3), float(key)))
    assert np.flatnonzero(table.find(np.arange(20)) >= 0).tolist() == list(range(3, WAYS + 3))
    table.insert(np.array([50, 50, 51]), torch.ones(3, 3))  # one bucket, one newcomer
    assert (table.find(np.array([50, 51])) >= 0).tolist() == [True, False]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda core: pickle.loads(pickle.dumps(core))])
def test_a_copy_begins_empty(copied: Any) -> None:
    cached, plain = pair(AMPLE)
    keep_mask, images = np.random.default_rng(2).random((6, DEPTH)) < 0.5, np.arange(6)
    play(cached, keep_mask, images)
    cached.reset(np.arange(6), images)
    cached.step(keep_mask[:, 0].astype(np.int64))
    other = copied(cached)
    assert len(cache_of(other).answers) == 0 and cache_of(other).nbytes == 0
    assert len(cache_of(cached).answers) > 6
    plain.reset(np.arange(6), images)
    plain.step(keep_mask[:, 0].astype(np.int64))
    for column in keep_mask.T[1:]:
        for core in (other, plain):
            core.step(column.astype(np.int64))
        assert_alike(other, plain)


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_the_vector_face(mode: str) -> None:
    arguments: dict[str, Any] = {**TINY, "autoreset_mode": mode, "order": "sequential"}
    envs = [SkipVectorEnv(3, prefix_cache=megabytes, **arguments) for megabytes in (0.0, 0.5)]
    rng = np.random.default_rng(0)
    observations = [env.reset(seed=3)[0] for env in envs]
    for _ in range(130):
        np.testing.assert_allclose(*observations, rtol=0, atol=TOLERANCE)
        actions = rng.integers(2, size=3)
        steps = [env.step(actions) for env in envs]
        observations = [step[0] for step in steps]
        assert_same(steps[0][1:], steps[1][1:], tolerance=TOLERANCE)
        ended, restarts = steps[0][2], rng.random(3) < 0.7
        if mode == "DISABLED" and ended.any():
            options = (
                {"reset_mask": ended, "index": (7 * np.arange(3)) % 5} if restarts.any() else {"reset_mask": ended}
            )
            observations = [env.reset(options=options)[0] for env in envs]
    cache = cache_of(envs[1].core)
    assert cache.visits > cache.hits > 0


def test_the_other_faces_take_the_argument() -> None:
    env = SkipEnv(prefix_cache=1, **TINY)
    venv = make_sb3_env(num_envs=2, seed=0, prefix_cache=1.5, **TINY)
    env.reset(seed=0)
    venv.reset()
    for _ in range(160):
        if env.step(np.int64(1))[2]:
            env.reset(options={"index": 3})
        venv.step(np.array([0, 1]))
    for core in (env.core, venv.core):
        assert cache_of(core).hits > 0
    assert tiny_core(1).prefix_cache is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "prefix_cache: expected a finite number of at least 0, got -1"),
        (float("inf"), "prefix_cache: expected a finite number of at least 0, got inf"),
        ("64", "prefix_cache: expected a number of at least 0, got '64'"),
        (True, "prefix_cache: expected a number of at least 0, got True"),
        (None, "prefix_cache: expected a number of at least 0, got None"),
    ],
)
def test_a_bad_size(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        EnvConfig(prefix_cache=value)


def test_more_memory_than_there_is() -> None:
    core = tiny_core(1, prefix_cache=1e9)  # a petabyte
    with pytest.raises(ValueError, match="prefix_cache: expected no more memory than there is on cpu, got: "):
        core.reset(np.arange(1), np.arange(1))


def test_too_many_states() -> None:
    core = tiny_core(1)
    sizes: dict[str, Any] = {"action_unit": "block", "num_envs": 1}
    PrefixCache(1.0, core.backbone, core.dataset.images, num_units=57, **sizes)  # 64 images
    with pytest.raises(ValueError, match=re.escape("at most 2^63 states, got 64 images of 58 units")):
        PrefixCache(1.0, core.backbone, core.dataset.images, num_units=58, **sizes)
