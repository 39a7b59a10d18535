"""A training run that was killed ends as one that was not; the checkpoints of others are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import DEPTH, TINY

from vitskip.agents import checkpoint, train
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.backbone_tuner import JointConfig
from vitskip.agents.run_directory import read
from vitskip.agents.training import TrainConfig
from vitskip.backbone.weights import read_state_dict

JOINT = JointConfig(rounds=2, steps=3, batch_size=16, learning_rate=1e-2, augmentation="digits", averaged_rounds=2)
ROLLOUTS = 6
REPLAY = {
    "buffer_size": 1_000,
    "learning_starts": 32,
    "train_freq": 2,
    "target_update_interval": 96,  # six steps, so that checkpoints stand between updates
    "exploration_fraction": 1.0,
    "exploration_final_eps": 0.5,
}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the process end when a checkpoint has been written so many times; they are written at every rollout."""
    write = checkpoint.write_checkpoint
    left: list[int] = []

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        if left and (left.append(left.pop() - 1) or left[0] == 0):
            left.clear()
            raise Killed

    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "write_checkpoint", write_and_die)
    return left.append


def make_config(algorithm: str = "a2c", **options: Any) -> TrainConfig:
    env = {**TINY, **options.pop("env", {})}
    units = 2 * DEPTH if env.get("action_unit") == "half" else DEPTH
    rows = 16 * units * (ALGORITHMS[algorithm].episodes_per_update or 1)
    hyperparameters = {"batch_size": 64} if "batch_size" in ALGORITHMS[algorithm].hyperparameters else {}
    hyperparameters |= options.pop("hyperparameters", {})
    return TrainConfig(algorithm, ROLLOUTS * rows, 0, 16, hyperparameters, env, **options)


def learnt(path: Path) -> dict[str, torch.Tensor]:
    files = ("agent", "policy", "backbone")
    return {f"{file}.{k}": v for file in files for k, v in read_state_dict(path / f"{file}.safetensors").items()}


@pytest.mark.parametrize(
    "config",
    [
        make_config(joint=JOINT, env={"budgets": [0.7, 0.9], "cost_weight": 0.3}),
        make_config("reinforce", budget=0.8),
        make_config("ppo", joint=JOINT, curriculum=0.5),
        make_config("recurrent-ppo", env={"order": "sequential"}),
        make_config("trpo", env={"observation": "tokens"}),
        make_config("gumbel", env={"action_unit": "half"}),
        make_config("dynavit"),
        make_config("a2c", upfront=2),
        make_config("reinforce", upfront=1, budget=0.8),
        make_config("dqn", budget=0.8, hyperparameters=REPLAY),
        make_config("qrdqn", joint=JOINT, hyperparameters={**REPLAY, "buffer_size": 160}),  # full before the end
    ],
    ids=lambda config: f"{config.algorithm}{'-joint' * bool(config.joint)}{'-upfront' * config.upfront}",
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, kill: Any, config: TrainConfig) -> None:
    """Killed at its first checkpoint; and at its fourth, and then at the next."""
    straight = train(config, tmp_path / "straight", progress_bar=False)
    expected, record = learnt(tmp_path / "straight"), read(tmp_path / "straight").record
    assert len(straight.curve["timesteps"]) == ROLLOUTS
    for kills in ((1,), (4, 1)):
        path = tmp_path / str(kills)
        for writes in kills:
            kill(writes)
            with pytest.raises(Killed):
                train(config, path, progress_bar=False)
            assert not (path / "run.json").exists()
        resumed = train(config, path, progress_bar=False)
        assert resumed.curve == straight.curve
        found = learnt(path)
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
        for key in ("cost_weight", "joint", "calibrated_macs_fraction"):
            assert read(path).record[key] == record[key]
        assert not (path / "checkpoint.safetensors").exists()


def test_the_checkpoint_of_other_settings_is_refused(tmp_path: Path, kill: Any) -> None:
    kill(2)
    with pytest.raises(Killed):
        train(make_config(), tmp_path, progress_bar=False)
    with pytest.raises(ValueError, match="made with other seed"):
        train(replace(make_config(), seed=1), tmp_path, progress_bar=False)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="checkpoint: expected one of a training run"):
        train(make_config(), tmp_path, progress_bar=False)


def test_data_may_have_moved(tmp_path: Path, kill: Any) -> None:
    """As for a finished run."""
    straight = train(make_config(), tmp_path / "straight", progress_bar=False)
    kill(2)
    with pytest.raises(Killed):
        train(make_config(), tmp_path / "moved", progress_bar=False)
    resumed = train(make_config(env={"data_root": str(tmp_path)}), tmp_path / "moved", progress_bar=False)
    assert resumed.curve == straight.curve


def test_wall_time_adds_up(tmp_path: Path, kill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: float(next(clock)))
    kill(ROLLOUTS - 1)
    with pytest.raises(Killed):
        train(make_config(), tmp_path, progress_bar=False)
    before = next(clock)
    result = train(make_config(), tmp_path, progress_bar=False)
    assert before - 2 < result.seconds < next(clock) + 2  # ticks of both; the second run alone has fewer than the first
