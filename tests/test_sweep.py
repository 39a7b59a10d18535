"""The sweep: what is varied, nothing is trained twice, and the test part is left alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import DEPTH, TINY

from vitskip import agent_cli
from vitskip.agents import DynamicViT, training
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_dataset
from vitskip.envs import EnvConfig
from vitskip.envs.config import EnvArguments
from vitskip.eval import sweep
from vitskip.eval.measurement import measure
from vitskip.eval.sweep import around_defaults, combinations, make_trials, sweep_grid

BASE = TrainConfig(total_timesteps=16 * DEPTH, env=TINY, budget=0.8)


def test_one_hyperparameter_is_changed_at_a_time() -> None:
    defaults = ALGORITHMS["ppo"].hyperparameters
    found = around_defaults("ppo")
    assert found[0] == {}
    assert {"learning_rate": pytest.approx(3 * defaults["learning_rate"])} in found
    assert {"batch_size": defaults["batch_size"] // 2} in found
    assert all(len(setting) == 1 for setting in found[1:])
    assert not any("gamma" in setting for setting in found)


def test_all_combinations_of_given_values() -> None:
    found = combinations({"learning_rate": [0.001, 0.01], "ent_coef": [0.0, 0.1]})
    assert found[0] == {} and len(found) == 5
    assert {"learning_rate": 0.01, "ent_coef": 0.0} in found
    assert combinations({}) == [{}]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"learning_rate": 0.001}, "vary: expected a list of values for learning_rate, each once, got 0.001"),
        ({"learning_rate": [0.001, 0.001]}, r"each once, got \[0.001, 0.001\]"),
        ({"learning_rate": []}, "vary: expected a list of values for learning_rate"),
        ({"learning_rat": [0.001]}, "did you mean 'learning_rate'"),
    ],
)
def test_wrong_values_are_refused_before_training(tmp_path: Path, vary: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trials(BASE, tmp_path, ["ppo"], [0], vary)


@pytest.mark.parametrize(
    ("algorithms", "seeds", "message"),
    [
        (["ppo"], [], r"seeds: expected one or more, each once, got \[\]"),
        (["ppo"], [0, 0], r"seeds: expected one or more, each once, got \[0, 0\]"),
        (["a2c", "a2c"], [0], "algorithms: expected one or more, each once"),
    ],
)
def test_a_run_counts_once(tmp_path: Path, algorithms: list[str], seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trials(BASE, tmp_path, algorithms, seeds)


def test_a_sweep_needs_a_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budget: expected a share of the dense compute"):
        make_trials(TrainConfig(), tmp_path, ["ppo"], [0])


def test_it_resumes_and_reports_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(sweep, "load_dataset", lambda *where: opened.append(where[1]) or load_dataset(*where))
    wanted: dict[str, Any] = {"algorithms": ("gumbel",), "budget": 0.8, "env": EnvConfig(**TINY), "seeds": (0, 1)}
    out, file = tmp_path / "runs", tmp_path / "sweep.json"
    agent_cli.sweep(out, total_timesteps=256 * DEPTH, **wanted, json=file)
    first = json.loads(file.read_text())["trials"]
    assert [trial["setting"] for trial in first] == 2 * around_defaults("gumbel")
    assert [trial["seed"] for trial in first] == 3 * [0] + 3 * [1]
    default = measure(DynamicViT.load(out / "gumbel-seed0"), load_dataset("tiny-digits", "validation"))
    assert first[0]["accuracy"] == default.accuracy
    assert set(opened) == {"validation"}
    monkeypatch.setattr(sweep, "train", None)
    agent_cli.sweep(out, total_timesteps=256 * DEPTH, **wanted, json=file)
    assert json.loads(file.read_text())["trials"] == first
    with pytest.raises(ValueError, match="expected a run with total_timesteps"):
        agent_cli.sweep(out, total_timesteps=7, **wanted)


def test_what_learns_on_validation_is_judged_on_its_other_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(BASE, env=EnvArguments(**{**TINY, "split": "validation"}))
    trials = make_trials(base, tmp_path, ["a2c"], [0], {})
    assert [(trial.config.env_config.split, trial.judged_on) for trial in trials] == [
        ("validation-even", "validation-odd"),
        ("validation-odd", "validation-even"),
    ]
    opened = []
    for module in (sweep, training):
        monkeypatch.setattr(module, "load_dataset", lambda *where: opened.append(where[1]) or load_dataset(*where))
    rows = sweep.sweep(trials, progress_bar=False)
    assert opened == ["validation-even", "validation-odd", "validation-odd", "validation-even"]  # calibrated, judged
    for trial, row in zip(trials, rows, strict=True):
        judged = measure(DynamicViT.load(trial.folder), load_dataset("tiny-digits", trial.judged_on))
        assert (row["split"], row["accuracy"]) == (trial.judged_on, judged.accuracy)
    assert len(sweep_grid(rows, 0.8).markdown().splitlines()) == len(sweep_grid(rows[:1], 0.8).markdown().splitlines())


def test_given_values_are_the_ones_that_are_tried(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"algorithms": ("a2c",), "budget": 0.8, "env": EnvConfig(**TINY)}
    agent_cli.sweep(tmp_path, total_timesteps=16 * DEPTH, vary='{"ent_coef": [0.5]}', **wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a2c-ent_coef-0.5-seed0", "a2c-seed0"]


def test_the_table_tells_what_a_change_does() -> None:
    rows = [
        {"algorithm": "ppo", "setting": {}, "seed": 0, "accuracy": 0.9, "macs_fraction": 0.4},
        {"algorithm": "ppo", "setting": {"learning_rate": 0.006}, "seed": 0, "accuracy": 0.88, "macs_fraction": 0.4},
        {"algorithm": "ppo", "setting": {}, "seed": 1, "accuracy": 0.92, "macs_fraction": 0.4},
        {"algorithm": "ppo", "setting": {"learning_rate": 0.006}, "seed": 1, "accuracy": 0.86, "macs_fraction": 0.4},
    ]
    text = sweep_grid(rows, 0.4).markdown()
    assert "40% of the dense compute" in text
    assert "| ppo | 91.00 | learning_rate 0.006: -4.00 |" in text
    assert "| --- | ---: | --- |" in text
