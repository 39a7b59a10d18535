"""`vitskip compare`: all combinations, nothing twice, and a table of means with their intervals."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from toys import DEPTH, MERGING, TINY

from vitskip.agents import DynamicViT
from vitskip.agents.backbone_tuner import JointConfig
from vitskip.agents.image_runner import RememberingRunner
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.eval import comparison
from vitskip.eval.comparison import compare, make_cells
from vitskip.eval.comparison_report import accuracy_table, frontiers
from vitskip.eval.statistics import bootstrap_interval

BASE = TrainConfig(total_timesteps=16 * DEPTH, num_envs=16, env={**TINY})


def test_the_cells_are_all_combinations_first_seed_first(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c", "reinforce"], [0.5, 0.8], [3, 4])
    assert [cell.folder.name for cell in cells[:4]] == [
        "a2c-50-seed3",
        "a2c-80-seed3",
        "reinforce-50-seed3",
        "reinforce-80-seed3",
    ]
    assert len({cell.folder for cell in cells}) == 8
    assert (cells[-1].config.algorithm, cells[-1].config.budget, cells[-1].config.seed) == ("reinforce", 0.8, 4)
    upfront = make_cells(replace(BASE, upfront=1), tmp_path, ["a2c"], [0.5], [0])[0]
    assert (upfront.folder.name, upfront.regime) == ("upfront1-a2c-50-seed0", "frozen, up front after 1")


@pytest.mark.parametrize(
    ("algorithms", "budgets", "message"),
    [(["a2d"], [0.5], "unknown algorithm 'a2d'"), (["a2c"], [1.5], "budget: expected a share of the dense MACs")],
)
def test_mistakes_are_found_before_anything_is_trained(
    tmp_path: Path, algorithms: Any, budgets: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_cells(BASE, tmp_path, algorithms, budgets, [0])
    assert not list(tmp_path.iterdir())


def test_what_is_finished_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    first = compare(cells, progress_bar=False)
    assert {"net", "dense", "rivals", "net_minus", "versions", "budget", "seed"} <= set(first[0])
    assert (first[0]["regime"], first[0]["algorithm"]) == ("frozen", "a2c")
    assert "best static mask" in first[0]["rivals"]
    monkeypatch.setattr(comparison, "train", None)
    monkeypatch.setattr(comparison, "evaluate_against", None)
    assert compare(cells, progress_bar=False) == json.loads(json.dumps(first))
    (cells[0].folder / "evaluation-80.json").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(comparison, "train", None)  # the trained run is there: only the evaluation is missing
    assert compare(cells, progress_bar=False)[0]["net"] == first[0]["net"]


def test_a_memory_for_states_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration, validation and test go through it."""
    budgets, runs = (0.65, 0.8), []
    run = RememberingRunner.__call__
    monkeypatch.setattr(RememberingRunner, "__call__", lambda self, *args: runs.append(self) or run(self, *args))
    found = []
    for memory in (0.0, 5.0):
        base = replace(BASE, env={**TINY, "budgets": budgets, "prefix_cache": memory})
        cells = make_cells(base, tmp_path / str(memory), ["a2c"], budgets, [0])
        found.append(compare(cells, static_mask_images=0, progress_bar=False))
        assert bool(runs) == bool(memory)
    assert found[0] == found[1]
    assert len(set(map(id, runs))) == 3
    validation, test = runs[-4:-2]
    assert runs[-4:] == [validation, test, validation, test] and validation is not test


def test_a_run_that_was_trained_otherwise_is_refused(tmp_path: Path) -> None:
    compare(make_cells(BASE, tmp_path, ["a2c"], [0.8], [0]), static_mask_images=0, progress_bar=False)
    for change, message in [
        ({"total_timesteps": 32 * DEPTH}, f"expected a run with total_timesteps {32 * DEPTH}, got {16 * DEPTH}"),
        ({"env": {**TINY, "cost_weight": 0.7}}, "expected a run with env"),
        ({"hyperparameters": {"gamma": 0.5}}, "expected a run with hyperparameters"),
    ]:
        cells = make_cells(replace(BASE, **change), tmp_path, ["a2c"], [0.8], [0])
        with pytest.raises(ValueError, match=message):
            compare(cells, progress_bar=False)


def test_a_jointly_trained_net_is_held_against_what_it_was_before_and_a_dense_one_tuned_as_long(tmp_path: Path) -> None:
    joint = JointConfig(rounds=1, steps=2, batch_size=16, learning_rate=0.05, augmentation="none")
    base = replace(BASE, joint=joint, total_timesteps=16 * DEPTH * 4)
    found = compare(make_cells(base, tmp_path, ["a2c"], [0.8], [0]), static_mask_images=0, progress_bar=False)[0]
    original, test = load_backbone("tiny-vit4"), load_dataset("tiny-digits", "test")
    with torch.no_grad():
        accuracy = (original(test.images).argmax(1) == test.labels).float().mean().item()
    assert found["references"]["original dense"]["accuracy"] == pytest.approx(accuracy)
    difference = found["net"]["accuracy"] - accuracy
    assert found["net_minus"]["original dense"]["difference"] == pytest.approx(difference)
    tuned = DynamicViT.load(tmp_path / "dense-seed0")
    before, after = original.state_dict(), tuned.backbone.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if name.startswith("head."))
    accuracy = (tuned(test.images).argmax(1) == test.labels).float().mean().item()
    assert found["references"]["tuned dense"]["accuracy"] == pytest.approx(accuracy)
    assert set(found["no_worse_by_half_a_point"]) == {"dense", "original dense", "tuned dense"}
    other = replace(base, joint=replace(joint, steps=3))
    with pytest.raises(ValueError, match="dense-seed0: expected a run with joint"):
        compare(make_cells(other, tmp_path, ["reinforce"], [0.8], [0]), static_mask_images=0, progress_bar=False)


@pytest.mark.parametrize("joint", [None, JointConfig(rounds=1, steps=2, batch_size=16, augmentation="none")])
def test_a_net_that_merges_tokens_is_held_against_one_that_does_not(tmp_path: Path, joint: JointConfig | None) -> None:
    base = replace(BASE, env={**TINY, "backbone": MERGING}, joint=joint, total_timesteps=16 * (DEPTH - 1) * 4)
    found = compare(make_cells(base, tmp_path, ["a2c"], [0.7], [0]), static_mask_images=0, progress_bar=False)[0]
    merging, test = load_backbone(MERGING), load_dataset("tiny-digits", "test")
    original = load_backbone("tiny-vit4")
    share = merging.macs.total / original.macs.total
    assert 0.7 < share == found["dense"]["macs_fraction"] < 0.95
    assert found["net"]["macs_fraction"] == pytest.approx(0.7, abs=0.05)
    accuracy = (original(test.images).argmax(1) == test.labels).float().mean().item()
    assert found["references"]["original dense"]["accuracy"] == pytest.approx(accuracy)
    assert {row["macs_fraction"] for row in found["references"].values()} == {1.0}
    assert ("tuned dense" in found["references"]) == (joint is not None)


def test_the_table_has_means_and_intervals() -> None:
    numbers = {"distinct_paths": 4, "path_bits": 1.5, "macs_fraction": 0.5}
    evaluations = [
        {
            "regime": "frozen",
            "algorithm": algorithm,
            "budget": budget,
            "seed": seed,
            "dense": {"accuracy": 0.9, "macs_fraction": 1.0},
            "net": {"accuracy": accuracy, **numbers},
            "rivals": {"first k": {"accuracy": 0.5 if algorithm == "ppo" else 0.54, **numbers}},
            "oracles": {"agrees": {"accuracy": 0.95, **numbers}},
            "net_minus": {"dense": {"low": -0.2}, "first k": {"low": accuracy - 0.75}},
            "no_worse_by_half_a_point": {"dense": accuracy > 0.8},
        }
        for algorithm, budget, seed, accuracy in (
            ("ppo", 0.3, 0, 0.8),
            ("ppo", 0.3, 1, 0.7),
            ("ppo", 0.5, 0, 0.85),
            ("a2c", 0.5, 0, 0.6),
        )
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(accuracy_table(evaluations))
    lines = console.export_text().splitlines()
    assert "dense 90.00; 2 seed(s)" in " ".join(" ".join(lines[:3]).split())
    ppo = next(line for line in lines if " ppo " in line)
    assert "75.00 [70.00, 80.00] │" in ppo and "85.00 => │" in ppo  # at 30% the second seed is behind
    assert "0.425" in ppo  # 0.85 from half of the compute on
    first_k = next(line for line in lines if "first k" in line)
    assert "50.00 [50.00, 50.00] │" in first_k and "52.00 │" in first_k  # of one seed, beside two algorithms
    assert any("oracle" in line and "95.00" in line for line in lines)
    assert frontiers(evaluations) == {
        "ppo": [(0.5, pytest.approx(0.75)), (0.5, 0.85)],
        "a2c": [(0.5, pytest.approx(0.6))],
        "first k": [(0.5, 0.5), (0.5, pytest.approx(0.52))],
        "dense": [(1.0, pytest.approx(0.9))],
    }


def test_the_interval_of_a_mean_of_runs() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    low, high = bootstrap_interval(values)
    assert 1.5 < low < 2.2 and 3.8 < high < 4.5
    assert bootstrap_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
