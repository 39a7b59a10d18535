"""The tuning of defaults: what is varied, nothing is trained twice, and the test part is left alone."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toys import DEPTH, TINY

from vitskip.agents import DynamicViT
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.backbone import load_dataset
from vitskip.envs import EnvConfig
from vitskip.eval import tuning
from vitskip.eval.measurement import measure
from vitskip.eval.tuning import main, settings_of, tuning_table


def test_one_hyperparameter_is_changed_at_a_time() -> None:
    defaults = ALGORITHMS["ppo"].hyperparameters
    found = settings_of("ppo")
    assert found[0] == {}
    assert {"learning_rate": pytest.approx(3 * defaults["learning_rate"])} in found
    assert {"batch_size": defaults["batch_size"] // 2} in found
    assert all(len(setting) == 1 for setting in found[1:])
    assert not any("gamma" in setting for setting in found)


def test_it_resumes_and_reports_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"algorithms": ("gumbel",), "budget": 0.8, "env": EnvConfig(**TINY), "json": tmp_path / "tuning.json"}
    opened = []
    monkeypatch.setattr(tuning, "load_dataset", lambda *where: opened.append(where[1]) or load_dataset(*where))
    main(tmp_path / "runs", total_timesteps=256 * DEPTH, **wanted)
    first = json.loads((tmp_path / "tuning.json").read_text())["trials"]
    assert [trial["setting"] for trial in first] == settings_of("gumbel")
    default = measure(DynamicViT.load(tmp_path / "runs" / "gumbel-seed0"), load_dataset("tiny-digits", "validation"))
    assert first[0]["accuracy"] == default.accuracy
    assert set(opened) == {"validation"}
    monkeypatch.setattr(tuning, "train", None)
    main(tmp_path / "runs", total_timesteps=256 * DEPTH, **wanted)
    assert json.loads((tmp_path / "tuning.json").read_text())["trials"] == first
    with pytest.raises(ValueError, match="expected a run with total_timesteps"):
        main(tmp_path / "runs", total_timesteps=7, **wanted)


def test_the_table_tells_what_a_change_does() -> None:
    trials = [
        {"algorithm": "ppo", "setting": {}, "accuracy": 0.9, "macs_fraction": 0.4},
        {"algorithm": "ppo", "setting": {"learning_rate": 0.006}, "accuracy": 0.88, "macs_fraction": 0.4},
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tuning_table(trials, 0.4))
    assert "90.00" in (text := console.export_text()) and "learning_rate 0.006: -2.00" in text
