"""The decision process is exact: the ends of the range, masked batches, MACs, computed rows, golden episodes.

After an intended change of behaviour (which also bumps the environment's version), write the golden file anew with

    VITSKIP_WRITE_GOLDEN=1 pytest tests/test_core.py
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from toys import DEPTH, TINY, assert_same, tiny_core, tiny_vit4

from vitskip.backbone import Dataset, run_masked
from vitskip.envs import Action, EnvConfig, SkipCore

GOLDEN = Path(__file__).parent / "golden" / "episodes.json"
UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])
ROWS = np.arange(6)
IMAGES = np.array([3, 1, 4, 1, 5, 9])  # one of them twice


def play(core: SkipCore, keep_mask: NDArray[np.bool_], images: NDArray[np.int64] = IMAGES) -> list[Tensor]:
    """Whole episodes [B, U] on all rows; the rewards of every step."""
    core.reset(np.arange(core.num_envs), images)
    return [core.step(column.astype(np.int64)) for column in keep_mask.T]


def random_masks(num_units: int, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((6, num_units)) < 0.5


@UNITS
def test_running_everything_equals_the_plain_vit(action_unit: str) -> None:
    core = tiny_core(6, action_unit=action_unit)
    play(core, np.ones((6, core.num_units), bool))
    assert torch.equal(core.logits, core.backbone(core.dataset.images[IMAGES]))


@UNITS
def test_skipping_everything_equals_the_head_on_the_embedding(action_unit: str) -> None:
    core = tiny_core(6, action_unit=action_unit)
    play(core, np.zeros((6, core.num_units), bool))
    backbone, images = core.backbone, core.dataset.images[IMAGES]
    assert torch.equal(core.logits, backbone.classify(backbone.embed(images)))
    assert not torch.allclose(core.logits, backbone(images), atol=0.1)


@UNITS
@pytest.mark.parametrize("seed", range(4))
def test_random_masks_equal_the_masked_batch(action_unit: str, seed: int) -> None:
    core = tiny_core(6, action_unit=action_unit)
    keep_mask = random_masks(core.num_units, seed)
    play(core, keep_mask)
    assert np.array_equal(core.keep_mask, keep_mask)
    for row, image in enumerate(IMAGES):
        alone = run_masked(core.backbone, core.dataset.images[[image]], torch.from_numpy(keep_mask[[row]]), action_unit)
        torch.testing.assert_close(core.logits[row], alone[0], rtol=1e-4, atol=1e-4)


def test_logits_are_right_at_every_step() -> None:
    core, keep_mask = tiny_core(6), random_masks(DEPTH)
    core.reset(ROWS, IMAGES)
    for unit in range(DEPTH):
        core.step(keep_mask[:, unit].astype(np.int64))
        so_far = torch.from_numpy(keep_mask & (np.arange(DEPTH) <= unit))
        logits = run_masked(core.backbone, core.dataset.images[IMAGES], so_far)
        torch.testing.assert_close(core.logits, logits, rtol=1e-4, atol=1e-4)


def test_half_units_in_pairs_equal_blocks() -> None:
    blocks, halves = tiny_core(6), tiny_core(6, action_unit="half")
    keep_mask = random_masks(DEPTH)
    play(blocks, keep_mask)
    play(halves, keep_mask.repeat(2, axis=1))
    torch.testing.assert_close(halves.logits, blocks.logits)
    assert halves.info()["macs"].tolist() == blocks.info()["macs"].tolist()


@UNITS
def test_macs_by_hand(action_unit: str) -> None:
    """Four patches of 16x16 pixels and a class token, of width 16; ten classes."""
    stem = 4 * (3 * 16**2) * 16
    attention, mlp, head = 4 * 5 * 16**2 + 2 * 5**2 * 16, 2 * 5 * 16 * 64, 16 * 10
    units = [attention + mlp] * DEPTH if action_unit == "block" else [attention, mlp] * DEPTH
    core = tiny_core(6, action_unit=action_unit)
    total = stem + sum(units) + head
    assert core.backbone.macs.total == total
    keep_mask = random_masks(core.num_units)
    keep_mask[0], keep_mask[1] = True, False
    core.reset(ROWS, IMAGES)
    for unit in range(core.num_units + 1):
        expected = [stem + head + sum(np.array(units)[:unit][kept[:unit]]) for kept in keep_mask]
        assert core.info()["macs"].tolist() == expected
        np.testing.assert_allclose(core.info()["macs_fraction"], np.array(expected) / total)
        if unit < core.num_units:
            core.step(keep_mask[:, unit].astype(np.int64))
    assert core.info()["macs"][0] == total
    assert core.info()["macs_fraction"][0] == 1


@UNITS
def test_only_rows_that_run_are_computed(action_unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, seen = tiny_vit4().eval().requires_grad_(False), []

    def count(name: str) -> None:
        method = getattr(backbone, name)

        def counted(*arguments: Any) -> Tensor:
            seen.append((name, *arguments[:-1], len(arguments[-1])))
            return method(*arguments)

        monkeypatch.setattr(backbone, name, counted)

    for name in ("embed", "run_block", "run_half_block", "classify"):
        count(name)
    run_unit = "run_block" if action_unit == "block" else "run_half_block"
    core = SkipCore(backbone, tiny_core(1).dataset, EnvConfig(action_unit=action_unit), 6)
    core.reset(ROWS, IMAGES)
    assert seen == [("embed", 6), ("classify", 6)]
    for unit, running in enumerate([6, 0, 1, 5]):
        seen.clear()
        core.step((np.arange(6) < running).astype(np.int64))
        assert seen == ([(run_unit, unit, running), ("classify", running)] if running else [])
        core.observe()
        core.info()
        assert len(seen) == (2 if running else 0)
    seen.clear()
    core.reset(np.array([2, 4]), np.array([0, 1]))
    assert seen == [("embed", 2), ("classify", 2)]
    seen.clear()
    core.step(np.array([9, 9, 1, 9, 1, 9]), np.isin(ROWS, [2, 4]))
    assert seen == [(run_unit, 0, 2), ("classify", 2)]


def test_rows_at_different_depths_run_grouped_by_depth() -> None:
    core, alone = tiny_core(6), tiny_core(6)
    keep_mask = random_masks(DEPTH, seed=3)
    play(alone, keep_mask)
    core.reset(ROWS, IMAGES)
    rewards, rng = np.zeros(6, np.float32), np.random.default_rng(0)
    while not core.ended.all():
        active = ~core.ended & (rng.random(6) < 0.5)
        units = np.minimum(core.unit_index, DEPTH - 1)
        reward = core.step(keep_mask[ROWS, units].astype(np.int64), active)
        assert (reward.numpy()[~active] == 0).all()
        rewards += reward.numpy()
    torch.testing.assert_close(core.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert_same(core.info(), alone.info())
    np.testing.assert_allclose(rewards, sum(play(alone, keep_mask)), atol=1e-6)


def test_rows_may_begin_in_any_order() -> None:
    core, other = tiny_core(6), tiny_core(6)
    order = np.array([4, 2, 0, 5, 1, 3])
    core.reset(ROWS, IMAGES)
    other.reset(order, IMAGES[order])
    assert_same(other.info(), core.info())
    torch.testing.assert_close(other.tokens, core.tokens)
    play(core, random_masks(DEPTH), IMAGES[::-1].copy())
    for rows in ([5, 0], [3], [1, 4, 2]):  # and in pieces
        core.reset(np.array(rows), IMAGES[rows])
    torch.testing.assert_close(core.tokens, other.tokens)
    torch.testing.assert_close(core.observe(), other.observe())


def test_a_refused_action_changes_nothing() -> None:
    core = tiny_core(6)
    core.reset(ROWS, IMAGES)
    before, logits = core.info(), core.logits.clone()
    with pytest.raises(ValueError, match="expected 0"):
        core.step(np.array([1, 1, 1, 1, 1, 2]))
    assert_same(core.info(), before)
    assert torch.equal(core.logits, logits)


def test_the_images_and_the_backbone_are_left_as_they_are() -> None:
    core = tiny_core(6)
    images = core.dataset.images.clone()
    state = {name: value.clone() for name, value in core.backbone.state_dict().items()}
    play(core, random_masks(DEPTH))
    assert torch.equal(core.dataset.images, images)
    assert all(torch.equal(value, state[name]) for name, value in core.backbone.state_dict().items())
    assert not core.logits.requires_grad


def test_actions_have_names() -> None:
    assert [(action.name, action.value) for action in Action] == [("SKIP", 0), ("RUN", 1)]


def golden_episodes(action_unit: str, observation: str) -> dict[str, Any]:
    """One episode on six rows with different masks; images that depend on no data set."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (10, 3, 32, 32), np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 10))
    dataset = Dataset(images, labels, tuple("0123456789"), torch.zeros(10))
    config = EnvConfig(action_unit=action_unit, observation=observation, reward="margin", cost_weight=0.5)
    core = SkipCore(tiny_vit4().eval().requires_grad_(False), dataset, config, 6)
    actions = rng.integers(0, 2, (6, core.num_units))
    actions[0], actions[1] = 1, 0
    core.reset(ROWS, IMAGES)
    steps = [{"observation": core.observe()}]
    for column in actions.T:
        reward = core.step(column)
        now = {"reward": reward, "observation": core.observe(), "prediction": core.logits.argmax(1)}
        steps.append({**now, "macs": core.info()["macs"]})
    rounded = [
        {key: np.asarray(value).astype(float).round(4).tolist() for key, value in step.items()} for step in steps
    ]
    return {"actions": actions.tolist(), "steps": rounded}


def test_golden_episodes() -> None:
    cases = {"block-belief": ("block", "belief"), "half-tokens": ("half", "tokens")}
    episodes = {name: golden_episodes(*arguments) for name, arguments in cases.items()}
    if os.environ.get("VITSKIP_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        lines = (f'"{name}": {json.dumps(episode)}' for name, episode in episodes.items())
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert_same(episodes, json.loads(GOLDEN.read_text()), "golden", tolerance=5e-4)
    masks = np.array(episodes["block-belief"]["actions"])
    assert len(np.unique(masks, axis=0)) == 6


def test_a_split_with_copies_of_its_images() -> None:
    """Only the split that is learnt on has them."""
    plain = EnvConfig(**TINY)
    config = replace(plain, augmentation="shift", copies=3)
    images, more = plain.load_dataset().images, config.load_dataset().images
    assert len(more) == 3 * len(images)
    assert torch.equal(more[: len(images)], images)
    assert not torch.equal(more[len(images) : 2 * len(images)], images)
    assert config.load_dataset() is config.load_dataset()
    assert torch.equal(config.load_dataset("train").images, images)
    assert torch.equal(config.load_dataset("test").images, plain.load_dataset("test").images)
