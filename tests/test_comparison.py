"""`vitskip compare`: all combinations, nothing twice, and a table of means with their intervals."""

import gc
import io
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import make_net
from rich.console import Console
from toys import DEPTH, MERGING, TINY

from vitskip.agent_cli import report
from vitskip.agents import DynamicViT
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.backbone_tuner import JointConfig
from vitskip.agents.baselines import whole_network
from vitskip.agents.image_runner import RememberingRunner
from vitskip.agents.run_directory import read
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.eval import comparison
from vitskip.eval.comparison import compare, make_cells, tuned_dense
from vitskip.eval.comparison_report import accuracy_grid, difference_grid, frontiers, read_evaluations
from vitskip.eval.evaluation import evaluate_against
from vitskip.eval.grid import Grid
from vitskip.eval.measurement import measure
from vitskip.eval.rivals import Rivals
from vitskip.eval.statistics import mean_interval

BASE = TrainConfig(total_timesteps=2 * 16 * DEPTH, num_envs=16, env={**TINY})


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
    [
        (["a2d"], [0.5], "unknown algorithm 'a2d'"),
        (["a2c"], [1.5], "budget: expected a share of the dense compute"),
        (["a2c", "ppo", "a2c"], [0.5], "algorithms: expected one or more, each once, got"),
        (["a2c"], [0.5, 0.5], r"budgets: expected one or more, each once, got \[0.5, 0.5\]"),
        (["a2c"], [], r"budgets: expected one or more, each once, got \[\]"),
    ],
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


def test_no_states_of_the_last_joint_net_are_held_while_the_next_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be a good part of the memory that there is; the garbage collector is not waited for."""
    alive: weakref.WeakSet[Rivals] = weakref.WeakSet()
    held, train, opponents = [], comparison.train, comparison._opponents

    def watched_train(*arguments: Any, **options: Any) -> Any:
        held.append(len(alive))
        return train(*arguments, **options)

    def watched_opponents(*arguments: Any) -> Rivals:
        alive.add(found := opponents(*arguments))
        held.append(len(alive))
        return found

    monkeypatch.setattr(comparison, "train", watched_train)
    monkeypatch.setattr(comparison, "_opponents", watched_opponents)
    joint = JointConfig(rounds=1, steps=2, batch_size=16, augmentation="none")
    base = replace(BASE, joint=joint, total_timesteps=16 * DEPTH * 4)
    gc.disable()
    try:
        compare(make_cells(base, tmp_path, ["a2c", "reinforce"], [0.8], [0]), static_mask_images=0, progress_bar=False)
    finally:
        gc.enable()
    assert held == [0, 1, 0, 1]


def test_a_run_that_was_trained_otherwise_is_refused(tmp_path: Path) -> None:
    compare(make_cells(BASE, tmp_path, ["a2c"], [0.8], [0]), static_mask_images=0, progress_bar=False)
    for change, message in [
        ({"total_timesteps": 48 * DEPTH}, f"expected a run with total_timesteps {48 * DEPTH}, got {32 * DEPTH}"),
        ({"env": {**TINY, "cost_weight": 0.7}}, r"a run with env \{'cost_weight': 0.7\}, got \{'cost_weight': 0.1\};"),
        ({"hyperparameters": {"gamma": 0.5}}, "expected a run with hyperparameters"),
    ]:
        cells = make_cells(replace(BASE, **change), tmp_path, ["a2c"], [0.8], [0])
        with pytest.raises(ValueError, match=message):
            compare(cells, progress_bar=False)


def test_a_run_with_other_defaults_than_today_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    compare(cells, static_mask_images=0, progress_bar=False)
    monkeypatch.setitem(ALGORITHMS["a2c"].hyperparameters, "ent_coef", 0.5)
    with pytest.raises(ValueError, match=r"expected a run with hyperparameters .*'ent_coef': 0\.5"):
        compare(cells, progress_bar=False)


def test_an_older_run_has_the_defaults_of_arguments_that_came_later(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    found = compare(cells, static_mask_images=0, progress_bar=False)
    file = cells[0].folder / "run.json"
    run = json.loads(file.read_text())
    del run["record"]["train"]["env"]["copies"]
    file.write_text(json.dumps(run))
    assert compare(cells, static_mask_images=0, progress_bar=False) == json.loads(json.dumps(found))
    cells = make_cells(replace(BASE, env={**TINY, "copies": 3}), tmp_path, ["a2c"], [0.8], [0])
    with pytest.raises(ValueError, match="expected a run with env"):
        compare(cells, progress_bar=False)


def test_a_run_may_come_from_another_device_and_place(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    found = compare(cells, static_mask_images=0, progress_bar=False)
    file = cells[0].folder / "run.json"
    run = json.loads(file.read_text())
    run["record"]["train"]["env"] |= {"device": "cuda", "data_root": "/elsewhere"}
    file.write_text(json.dumps(run))
    assert compare(cells, static_mask_images=0, progress_bar=False) == json.loads(json.dumps(found))


@pytest.mark.gpu
@pytest.mark.parametrize("prefix_cache", [0.0, 1.0])
def test_a_comparison_on_a_gpu(tmp_path: Path, prefix_cache: float) -> None:
    """Agent, rivals and dense networks are trained and measured there, and agree with the CPU."""
    joint = JointConfig(rounds=1, steps=2, batch_size=16, learning_rate=0.05, augmentation="none")
    base = replace(BASE, joint=joint, total_timesteps=16 * DEPTH * 4, env={**TINY, "prefix_cache": prefix_cache})
    on_gpu = replace(base, env={**base.env, "device": "cuda"})
    found = compare(make_cells(on_gpu, tmp_path, ["a2c"], [0.8], [0]), static_mask_images=8, progress_bar=False)[0]
    cell = make_cells(base, tmp_path, ["a2c"], [0.8], [0])[0]
    cell.file.unlink()
    again = compare([cell], static_mask_images=8, progress_bar=False)[0]
    for part in ("net", "dense"):
        assert found[part]["accuracy"] == pytest.approx(again[part]["accuracy"], abs=0.02)
        assert found[part]["macs_fraction"] == pytest.approx(again[part]["macs_fraction"], abs=0.02)
    assert found["rivals"].keys() == again["rivals"].keys()


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
    run = read(tmp_path / "joint-a2c-80-seed0")
    assert tuned_dense(run) == tmp_path / "dense-seed0"
    settings = run.record["train"]
    longer = {**settings, "joint": {**settings["joint"], "steps": 3}}
    assert tuned_dense(replace(run, record={"train": longer})) is None
    assert tuned_dense(replace(run, record={"train": {**settings, "seed": 1}})) is None
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


@pytest.fixture
def evaluations() -> list[dict[str, Any]]:
    """Of two algorithms, one of them with a second seed at one budget."""
    numbers = {"distinct_paths": 4, "path_bits": 1.5}
    return [
        {
            "regime": "frozen",
            "algorithm": algorithm,
            "budget": budget,
            "seed": seed,
            "dense": {"accuracy": 0.9, "macs_fraction": 1.0},
            "net": {"accuracy": accuracy, "macs_fraction": budget, **numbers},
            "rivals": {
                "first k": {"accuracy": 0.5 if algorithm == "ppo" else 0.54, "macs_fraction": budget, **numbers}
            },
            "oracles": {"agrees": {"accuracy": 0.95, "macs_fraction": budget, **numbers}},
            "net_minus": {
                "dense": {"difference": accuracy - 0.9, "low": -0.2, "high": 0.1},
                "first k": {"difference": accuracy - 0.5, "low": accuracy - 0.75, "high": 0.5},
            },
            "no_worse_by_half_a_point": {"dense": accuracy > 0.8},
        }
        for algorithm, budget, seed, accuracy in (
            ("ppo", 0.3, 0, 0.8),
            ("ppo", 0.3, 1, 0.7),
            ("ppo", 0.5, 0, 0.85),
            ("a2c", 0.5, 0, 0.6),
        )
    ]


def test_the_table_has_means_and_intervals(evaluations: list[dict[str, Any]]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(accuracy_grid(evaluations).table())
    lines = console.export_text().splitlines()
    assert "dense 90.00; 2 seeds" in " ".join(" ".join(lines[:3]).split())
    ppo = next(line for line in lines if " ppo " in line)
    assert "75.00 │" in ppo and "85.00 => │" in ppo  # at 30% the second seed is behind
    assert "0.537" in ppo  # 0.8 from 30% of the compute on, 0.85 from half; of the other seed 0.7 from 30%
    first_k = next(line for line in lines if "first k" in line)
    assert "0.323" in first_k  # 0.5 from 30% on, twice, and 0.54 from half; not of all points together
    assert "50.00 │" in first_k and "52.00 │" in first_k  # of one seed, beside two algorithms
    assert any("oracle" in line and "95.00" in line for line in lines)
    assert frontiers(evaluations) == {
        "ppo": [(0.3, pytest.approx(0.75)), (0.5, 0.85)],
        "a2c": [(0.5, pytest.approx(0.6))],
        "first k": [(0.3, 0.5), (0.5, pytest.approx(0.52))],
        "dense": [(1.0, pytest.approx(0.9))],
    }


def test_the_table_says_what_is_spent_where_a_budget_is_exceeded(evaluations: list[dict[str, Any]]) -> None:
    """And baselines stand at the compute of those who hold it, as long as there are any."""
    a2c = evaluations[-1]
    for found in (a2c["net"], a2c["rivals"]["first k"]):
        found["macs_fraction"] = 0.53
    rows = {row[0].strip(): row[1:3] for row in accuracy_grid(evaluations).rows}
    assert rows["a2c"] == ["-", "60.00 (53%)"]
    assert rows["ppo"][1] == "85.00 =>"
    assert rows["first k"][1] == "50.00"
    rows = {row[0].strip(): row[1:2] for row in accuracy_grid(evaluations[-1:]).rows}
    assert rows["first k"] == ["54.00 (53%)"]
    a2c["net"]["macs_fraction"] = 0.47  # too little harms nobody but the agent
    assert accuracy_grid(evaluations).rows[1][2] == "60.00"


def test_what_all_blocks_of_jointly_trained_nets_reach_has_a_column(evaluations: list[dict[str, Any]]) -> None:
    assert "own full net" not in accuracy_grid(evaluations).headings
    for evaluation, accuracy in zip(evaluations, (0.9, 0.8, 0.9, 0.6), strict=True):
        evaluation |= {"regime": "joint, one agent", "dense": {"accuracy": accuracy, "macs_fraction": 1.0}}
    grid = accuracy_grid(evaluations)
    column = list(grid.headings).index("own full net")
    assert {row[0].strip(): row[column] for row in grid.rows[:3]} == {"ppo": "85.00", "a2c": "60.00", "first k": "-"}


def test_differences_have_the_interval_of_the_images_or_of_images_and_seeds(evaluations: list[dict[str, Any]]) -> None:
    grid = difference_grid(evaluations)
    assert list(grid.headings) == ["networks", "30%", "50%"]
    assert grid.rows == [
        ["ppo - dense, seed 0", "-10.00 [-20.00, +10.00]", "-5.00 [-20.00, +10.00]"],
        ["ppo - dense, seed 1", "-20.00 [-20.00, +10.00]", "-"],
        ["ppo - first k, seed 0", "+30.00 [+5.00, +50.00]", "+35.00 [+10.00, +50.00]"],
        ["ppo - first k, seed 1", "+20.00 [-5.00, +50.00]", "-"],
        ["a2c - dense", "-", "-30.00 [-20.00, +10.00]"],
        ["a2c - first k", "-", "+10.00 [-15.00, +50.00]"],
    ]
    third = {**evaluations[0], "seed": 2}
    many = [*evaluations, third]
    assert accuracy_grid(many).rows[0][1:3] == ["76.67 [62.32, 91.01]", "85.00 =>"]
    grid = difference_grid(many)
    assert grid.rows[:2] == [
        ["ppo - dense", "-13.33 [-34.09, +7.42]", "-5.00 [-20.00, +10.00]"],
        ["ppo - first k", "+26.67 [-1.44, +54.77]", "+35.00 [+10.00, +50.00]"],
    ]


def test_markdown() -> None:
    grid = Grid("a [title]", ["network", "30%"], [["  a|b", "1.0 [0.5, 1.5]"]], "what it means")
    assert grid.markdown() == (
        "a [title]:\n\n| network | 30% |\n| --- | ---: |\n| a\\|b | 1.0 [0.5, 1.5] |\n\nwhat it means\n"
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(grid.table())
    text = console.export_text()
    assert all(part in text for part in ("a [title]", "1.0 [0.5, 1.5]", "  a|b", "what it means"))


def test_a_report_of_what_is_finished(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path / "runs", ["a2c", "reinforce"], [0.8], [0])
    found = compare(cells[:1], static_mask_images=0, progress_bar=False)
    out, figure, values = (tmp_path / "docs" / name for name in ("table.md", "figure.png", "all.json"))
    report(tmp_path / "runs", (), out, figure, values)
    text = out.read_text()
    assert text == accuracy_grid(found).markdown() + "\n" + difference_grid(found).markdown()
    assert f"| a2c | {100 * found[0]['net']['accuracy']:.2f}" in text and "a2c - early exit" in text
    assert figure.stat().st_size > 1000
    assert json.loads(values.read_text()) == json.loads(json.dumps(found)) == read_evaluations(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken.json: expected JSON, got"),
        ("[]", "broken.json: expected what `vitskip compare` writes, with algorithm, budget"),
        ('{"seed": 0}', "broken.json: expected what `vitskip compare` writes, with algorithm, budget"),
    ],
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_evaluations(tmp_path / "broken.json")
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(FileNotFoundError, match="expected a folder of `vitskip compare` with finished cells"):
            read_evaluations(path)


def test_the_interval_of_a_mean_of_runs() -> None:
    """Of three runs it holds the mean as often as it says, where their least and largest would at 75%."""
    runs = np.random.default_rng(0).normal(size=(4_000, 3))
    holds = [low < 0 < high for low, high in map(mean_interval, runs)]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.01)
    assert mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    with pytest.raises(ValueError, match="values: expected at least 2, got 1"):
        mean_interval(np.array([2.0]))


def test_the_interval_holds_an_error_that_runs_share() -> None:
    """As that of the images which all are measured on, and which no number of runs makes smaller."""
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(4_000, 10)) + rng.normal(size=(4_000, 1))
    alone, shared = ([low < 0 < high for low, high in (mean_interval(run, e) for run in runs)] for e in (0.0, 1.96))
    assert np.mean(alone) < 0.6
    assert np.mean(shared) == pytest.approx(0.95, abs=0.015)


def test_what_was_evaluated_beside_other_rivals_is_evaluated_again(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    assert "best static mask" not in compare(cells, static_mask_images=0, progress_bar=False)[0]["rivals"]
    again = compare(cells, rivals=["tiny-vit4"], static_mask_images=8, progress_bar=False)[0]["rivals"]
    assert {"best static mask", "other nets"} <= set(again)
    with pytest.raises(ValueError, match="unknown backbone 'tiny-vit5'"):
        compare(cells, rivals=["tiny-vit5"], progress_bar=False)


@pytest.mark.parametrize("merging", ["", "tome:1:"])
def test_an_agent_on_a_jointly_trained_net_meets_the_dense_net_tuned_as_long(tmp_path: Path, merging: str) -> None:
    joint = JointConfig(rounds=1, steps=2, batch_size=16, augmentation="none")
    first = make_cells(replace(BASE, joint=joint), tmp_path / "joint", ["a2c"], [0.8], [3])
    tuned = compare(first, static_mask_images=0, progress_bar=False)[0]["references"]["tuned dense"]
    base = replace(BASE, env={**TINY, "backbone": f"{merging}{first[0].folder}"})
    cells = make_cells(base, tmp_path / "again", ["a2c"], [0.8], [0])
    assert cells[0].regime == "frozen on a jointly trained net"
    found = compare(cells, static_mask_images=0, progress_bar=False)[0]
    assert found["references"]["tuned dense"] == tuned
    assert set(found["no_worse_by_half_a_point"]) == {"dense", "original dense", "tuned dense"}


def test_a_dense_net_of_another_backbone_is_refused(tmp_path: Path) -> None:
    joint = JointConfig(rounds=1, steps=2, batch_size=16, augmentation="none")
    compare(make_cells(replace(BASE, joint=joint), tmp_path, ["a2c"], [0.8], [0]), progress_bar=False)
    run = tmp_path / "dense-seed0" / "run.json"
    run.write_text(run.read_text().replace('"backbone": "tiny-vit4"', '"backbone": "another"'))
    cells = make_cells(replace(BASE, joint=joint), tmp_path, ["reinforce"], [0.8], [0])
    with pytest.raises(ValueError, match="dense-seed0: expected tiny-vit4 tuned, got another"):
        compare(cells, progress_bar=False)


def test_regimes_of_an_algorithm_have_rows_of_their_own(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    frozen = compare(cells, static_mask_images=0, progress_bar=False)[0]
    other = {**frozen, "regime": "joint", "net": {**frozen["net"], "accuracy": 0.25}, "dense": {"accuracy": 0.5}}
    rows = [row[:2] for row in accuracy_grid([frozen, other]).rows]
    assert [f"{100 * frozen['net']['accuracy']:.2f}", "25.00"] == [cell.split()[0] for _, cell in rows[:2]]
    assert [name for name, _ in rows[:2]] == ["a2c (frozen)", "a2c (joint)"]
    assert {"a2c (frozen)", "a2c (joint)"} <= set(frontiers([frozen, other]))


def test_own_full_nets_of_several_budgets_are_averaged(tmp_path: Path) -> None:
    cells = make_cells(BASE, tmp_path, ["a2c"], [0.8], [0])
    one = {**compare(cells, static_mask_images=0, progress_bar=False)[0], "regime": "joint", "dense": {"accuracy": 0.5}}
    grid = accuracy_grid([one, {**one, "budget": 0.9, "dense": {"accuracy": 0.6}}])
    assert dict(zip(grid.headings, grid.rows[0], strict=True))["own full net"] == "55.00"


def test_a_joint_net_is_judged_by_its_own_full_net_and_the_dense_one_of_its_seed(tmp_path: Path) -> None:
    joint = JointConfig(rounds=1, steps=2, batch_size=16, learning_rate=0.05, augmentation="none")
    base = replace(BASE, joint=joint, total_timesteps=16 * DEPTH * 4)
    cells = make_cells(base, tmp_path, ["a2c", "reinforce"], [0.8], [0, 1])
    found, test = compare(cells, static_mask_images=0, progress_bar=False), load_dataset("tiny-digits", "test")
    for cell, evaluation in zip(cells, found, strict=True):
        own = whole_network(DynamicViT.load(cell.folder).backbone)
        tuned = DynamicViT.load(tmp_path / f"dense-seed{cell.config.seed}")
        assert evaluation["dense"]["accuracy"] == measure(own, test).accuracy
        assert evaluation["references"]["tuned dense"]["accuracy"] == measure(tuned, test).accuracy
    assert len({evaluation["dense"]["accuracy"] for evaluation in found}) > 1
    assert len({evaluation["references"]["tuned dense"]["accuracy"] for evaluation in found}) == 2


def test_rivals_on_another_backbone_are_refused() -> None:
    validation, test = (load_dataset("tiny-digits", split) for split in ("validation", "test"))
    rivals, other = Rivals(make_net("mlp"), validation, test), make_net("mlp")
    with torch.no_grad():
        next(other.backbone.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="rivals: expected those on the backbone of the network"):
        evaluate_against(rivals, other)
