"""Times of units as a price: measured on real tokens, read back as shares, and refused when they are of others."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import DEPTH, TINY, tiny_core

from vitskip.agents import make_agent
from vitskip.backbone import load_backbone, load_dataset
from vitskip.envs import make_sb3_env
from vitskip.envs.cost import cost_shares
from vitskip.eval.latency import unit_latency


def write(path: Path, **changes: Any) -> str:
    """A table of four blocks that take 1, 2, 3 and 4 seconds; the cost that it makes."""
    macs = load_backbone("tiny-vit4").macs.units("block")
    table = {"format": "vitskip-latency", "macs": list(macs), "seconds": [1, 2, 3, 4.0], **changes}
    path.write_text(json.dumps(table))
    return f"latency:{path}"


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_the_slowest_unit_is_the_dearest(tmp_path: Path, action_unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = load_backbone("tiny-vit4"), load_dataset("tiny-digits", "validation").images
    name = "run_block" if action_unit == "block" else "run_half_block"
    inner = getattr(backbone, name)

    def slow(index: int, tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01 * (index == 2))
        return inner(index, tokens)

    monkeypatch.setattr(backbone, name, slow)
    found = unit_latency(backbone, images, action_unit=action_unit, batch_size=2, rounds=2)
    assert found.seconds.argmax() == 2 and found.seconds[2] > 0.009
    table = tmp_path / "table.json"
    table.write_text(json.dumps(found.summary()))
    shares = cost_shares(f"latency:{table}", backbone, action_unit)
    assert len(shares) == DEPTH * (2 if action_unit == "half" else 1)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(shares, found.seconds / found.seconds.sum())
    assert [row[0] for row in found.grid().rows] == [str(unit) for unit in range(len(shares))]


def test_an_agent_pays_for_the_time(tmp_path: Path) -> None:
    core = tiny_core(1, cost=write(tmp_path / "table.json"), cost_weight=0.5)
    core.reset(np.arange(1), np.arange(1))
    paid = [core.step(np.array([action])).item() for action in (1, 0, 1)]
    assert paid == pytest.approx([-0.05, 0, -0.15])
    assert core.info()["macs"][0] > 0  # compute is still counted in MACs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "expected a table of `vitskip latency` in .*, got something else"),
        ({"macs": [1, 1]}, "expected the times of units with 4 times [0-9]+ MACs in .*, got those .* with 2 times 1"),
        ({"macs": None}, "expected the times of units with 4 times [0-9]+ MACs in .*, got those .* with None"),
        ({"seconds": [1.0]}, r"expected 4 times of more than 0 seconds in .*, got \[1.0\]"),
        ({"seconds": None}, "expected 4 times of more than 0 seconds in .*, got None"),
        ({"seconds": [1, 2, 3, 0]}, r"expected 4 times of more than 0 seconds in .*, got \[1, 2, 3, 0\]"),
        ({"seconds": [1, 2, 3, float("nan")]}, "expected 4 times of more than 0 seconds"),
        ({"seconds": [1, 2, 3, "4"]}, "expected 4 times of more than 0 seconds"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"cost: {message}"):
        tiny_core(1, cost=write(tmp_path / "table.json", **changes))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(ValueError, match=r"table\.json: expected JSON"):
        tiny_core(1, cost=f"latency:{tmp_path / 'table.json'}")
    with pytest.raises(FileNotFoundError, match="cost: expected a table of `vitskip latency`, found no file at "):
        tiny_core(1, cost=f"latency:{tmp_path / 'none.json'}")


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"rounds": 0}])
def test_too_little_to_time_is_refused(arguments: dict) -> None:
    images = load_dataset("tiny-digits", "validation").images
    with pytest.raises(ValueError, match="batch_size, rounds: expected at least 1, got"):
        unit_latency(load_backbone("tiny-vit4"), images, **arguments)


def test_the_gate_pays_for_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = make_sb3_env(num_envs=4, seed=0, **TINY, cost=write(tmp_path / "table.json"))
    agent: Any = make_agent("gumbel", venv)
    answers = iter([1e4, 1e4, -1e4, -1e4])  # runs the first two blocks
    monkeypatch.setattr(agent, "log_odds", lambda observation: torch.full((len(observation),), next(answers)))
    _, cost = agent._gated_pass(torch.arange(4), torch.zeros(4, 0))
    assert cost.tolist() == pytest.approx([0.3] * 4)
