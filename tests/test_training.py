"""A training run end to end: what it writes, what it leaves alone, and that it can be repeated."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import DEPTH, MERGING, TINY

from vitskip.agents import DynamicViT, train, training
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.callbacks import draw_skip_map
from vitskip.agents.training import TrainConfig, TrainResult
from vitskip.backbone import load_backbone, load_dataset

NUM_ENVS, ROLLOUTS = 16, 3
EPISODES = 2 * NUM_ENVS  # per rollout
CONFIG = TrainConfig(
    algorithm="ppo",
    total_timesteps=ROLLOUTS * EPISODES * DEPTH,
    seed=5,
    num_envs=NUM_ENVS,
    hyperparameters={"batch_size": EPISODES, "learning_rate": 0.03},
    env={**TINY, "cost_weight": 0.3},
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "tiny", progress_bar=False)


@pytest.fixture(scope="module")
def events(result: TrainResult) -> EventAccumulator:
    folders = list((result.path / "tensorboard").iterdir())
    assert len(folders) == 1
    return EventAccumulator(str(folders[0]), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_the_directory_holds_everything(result: TrainResult) -> None:
    assert {path.name for path in result.path.iterdir()} == {
        "run.json",
        "backbone.safetensors",
        "policy.safetensors",
        "agent.safetensors",
        "tensorboard",
    }
    run = json.loads((result.path / "run.json").read_text())
    assert (run["backbone"], run["rule"], run["observation"]) == ("tiny-vit4", "mlp", "belief")
    record = run["record"]
    assert record["train"]["algorithm"] == "ppo"
    assert (record["train"]["seed"], record["train"]["num_envs"]) == (5, NUM_ENVS)
    assert record["train"]["total_timesteps"] == ROLLOUTS * EPISODES * DEPTH
    given = {"batch_size": EPISODES, "learning_rate": 0.03}
    assert record["train"]["hyperparameters"] == {**ALGORITHMS["ppo"].hyperparameters, **given}
    env = record["train"]["env"]
    assert (env["dataset"], env["cost_weight"], env["reward"], env["split"]) == ("tiny-digits", 0.3, "correct", "train")
    assert {"python", "torch", "stable-baselines3", "gymnasium"} <= set(record["versions"])
    assert record["seconds"] > 0
    assert record["curve"] == result.curve


def test_the_curve_has_a_point_per_rollout(result: TrainResult) -> None:
    curve = result.curve
    assert curve["timesteps"] == [EPISODES * DEPTH * (rollout + 1) for rollout in range(ROLLOUTS)]
    assert {len(column) for column in curve.values()} == {ROLLOUTS}
    macs = load_backbone("tiny-vit4").macs
    for episode_return, success, fraction in zip(
        curve["episode_return"], curve["success_rate"], curve["macs_fraction"], strict=True
    ):
        units = (fraction * macs.total - macs.stem - macs.head) / sum(macs.units("block"))
        assert episode_return == pytest.approx(success - 0.3 * units, abs=1e-5)


def test_the_run_is_what_was_trained(result: TrainResult) -> None:
    images = load_dataset("tiny-digits", "validation").images
    loaded = DynamicViT.load(result.path)
    assert torch.equal(loaded(images), result.net(images))
    assert torch.equal(loaded.last_trace.keep_mask, result.net.last_trace.keep_mask)
    assert not result.net.training


def test_actor_and_critic_are_kept(result: TrainResult) -> None:
    agent, policy = load_file(result.path / "agent.safetensors"), load_file(result.path / "policy.safetensors")
    assert any(name.startswith("value_net") for name in agent)
    hidden = policy["rule.network.0.weight"]
    assert torch.equal(agent["mlp_extractor.policy_net.0.weight"], hidden)


def test_tensorboard_has_the_curves(events: EventAccumulator, result: TrainResult) -> None:
    tags = set(events.Tags()["scalars"])
    assert {
        "rollout/ep_rew_mean",
        "rollout/success_rate",
        "skip/macs_fraction",
        "skip/units_run",
        "skip/distinct_paths",
        "train/explained_variance",
    } | {f"skip_rate/unit_{unit:02d}_runs" for unit in range(DEPTH)} <= tags
    logged = [event.value for event in events.Scalars("skip/macs_fraction")]
    assert logged == pytest.approx(result.curve["macs_fraction"])
    assert [event.step for event in events.Scalars("skip/macs_fraction")] == result.curve["timesteps"]
    rates = [events.Scalars(f"skip_rate/unit_{unit:02d}_runs")[-1].value for unit in range(DEPTH)]
    assert sum(rates) == pytest.approx(events.Scalars("skip/units_run")[-1].value, abs=1e-5)
    paths = [event.value for event in events.Scalars("skip/distinct_paths")]
    assert all(1 < count <= 2**DEPTH and count == int(count) for count in paths)
    first_success = events.Scalars("rollout/success_rate")[0].value
    assert first_success == pytest.approx(result.curve["success_rate"][0])


def test_tensorboard_has_the_skip_map(events: EventAccumulator) -> None:
    (image,) = events.Images("skip/map")  # of the first rollout; the next one would come after 25
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width > 100 and image.height > 100


def test_the_backbone_is_frozen(result: TrainResult) -> None:
    fresh = load_backbone("tiny-vit4").state_dict()
    for trained in (result.net.backbone.state_dict(), load_file(result.path / "backbone.safetensors")):
        assert trained.keys() == fresh.keys()
        assert all(torch.equal(trained[name], tensor) for name, tensor in fresh.items())
    assert not any(parameter.requires_grad for parameter in result.net.backbone.parameters())
    assert result.net.backbone is not CONFIG.env_config.load_backbone()  # which environments of this process share


def test_the_seed_decides_everything(result: TrainResult, tmp_path: Path) -> None:
    torch.manual_seed(torch.seed())  # whatever the global state
    again = train(CONFIG, tmp_path / "again", progress_bar=False)
    other = train(replace(CONFIG, seed=6), tmp_path / "other", progress_bar=False)
    first, same, different = (load_file(run.path / "agent.safetensors") for run in (result, again, other))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], different[name]) for name in first)
    assert again.curve == result.curve != other.curve


def test_a_finished_run_is_read_and_never_written_over(result: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in result.path.glob("*.*")}
    monkeypatch.setattr(training, "make_agent", None)
    again = train(CONFIG, result.path, progress_bar=False)
    images = load_dataset("tiny-digits", "test").images
    assert torch.equal(again.net(images), result.net(images))
    assert (again.curve, again.seconds) == (result.curve, result.seconds)
    with pytest.raises(ValueError, match="expected a run with seed 6, got 5; choose another folder, or remove this"):
        train(replace(CONFIG, seed=6), result.path, progress_bar=False)
    assert {file.name: file.read_bytes() for file in result.path.glob("*.*")} == before


def test_a_planner_taught_by_such_a_run_is_not_that_run(result: TrainResult, tmp_path: Path) -> None:
    description = json.loads((result.path / "run.json").read_text())
    description["record"]["distilled_from"] = "teacher"
    (tmp_path / "run.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="expected a run that was trained, got a planner taught by teacher"):
        train(CONFIG, tmp_path, progress_bar=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "pppo"}, "unknown algorithm 'pppo': .*did you mean 'ppo'"),
        ({"algorithm": "pppo", "num_envs": None}, "unknown algorithm 'pppo'"),
        ({"env": {"backbone": "tiny-vit5"}}, "unknown backbone 'tiny-vit5': .*did you mean 'tiny-vit4'"),
        ({"env": {**TINY, "dataset": "tiny-digit"}}, "unknown data set 'tiny-digit': .*did you mean 'tiny-digits'"),
        ({"env": {**TINY, "reward": "corect"}}, "unknown reward 'corect': .*did you mean 'correct'"),
        ({"env": {**TINY, "cost_wait": 1}}, "unknown environment argument 'cost_wait'.*did you mean 'cost_weight'"),
        ({"hyperparameters": {"entcoef": 1}}, "unknown hyperparameter 'entcoef': .*did you mean 'ent_coef'"),
        ({"hyperparameters": {"n_steps": 3}}, "n_steps: expected a multiple of the 4 steps of an episode, got 3"),
        ({"hyperparameters": {"seed": 1}}, r"hyperparameters: expected none of .*got \['seed'\]"),
        ({"hyperparameters": {"n_epochs": 2.5}}, "n_epochs: expected an integer, got 2.5"),
        ({"hyperparameters": {"normalize_advantage": "no"}}, "normalize_advantage: expected true or false, got 'no'"),
        (
            {"hyperparameters": {"clip_range": "a"}},
            "hyperparameters: expected those that ppo takes, .*'clip_range': 'a'",
        ),
        ({"hyperparameters": {"learning_rate": abs}}, "hyperparameters: expected JSON values, .* builtin_function"),
        ({"num_envs": 0}, "num_envs: expected .*at least 1, got 0"),
        ({"total_timesteps": 0}, "total_timesteps: expected at least 1, got 0"),
        ({"algorithm": "dqn", "upfront": 1}, r"upfront: expected an algorithm that can .*\(.*ppo.*\), got dqn"),
        ({"upfront": 4}, r"upfront: expected 0, or 1\.\.3 blocks, got 4"),
        ({"env": {**TINY, "backbone": MERGING}, "budget": 0.99}, "budget: expected at most 0.894, .*spends, got 0.99"),
        ({"budget": 0.1}, r"budget: expected at least 0\.433, what is spent before the first decision, got 0.1"),
        ({"upfront": 2, "budget": 0.3}, r"budget: expected at least 0\.716, what is spent before .*, got 0.3"),
        ({"upfront": -1, "budget": 0.5}, r"upfront: expected 0, or 1\.\.3 blocks, got -1"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_written(
    tmp_path: Path, unchecked: None, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(CONFIG, **changes), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_a2c_trains_half_blocks_on_tokens(tmp_path: Path) -> None:
    env = {**TINY, "action_unit": "half", "observation": "tokens", "reward": "margin"}
    result = train(TrainConfig("a2c", 8 * 2 * DEPTH, num_envs=8, env=env), tmp_path / "run", progress_bar=False)
    loaded = DynamicViT.load(result.path)
    assert (loaded.action_unit, loaded.policy.layout.kind, loaded.policy.layout.num_units) == ("half", "tokens", 8)
    assert result.curve["timesteps"] == [8 * 2 * DEPTH]


def skip_rates(keep_mask: np.ndarray, difficulty: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The numbers and the row labels that a skip map shows."""
    axes = draw_skip_map(keep_mask, difficulty).axes[0]
    return np.asarray(axes.images[0].get_array()), [label.get_text() for label in axes.get_yticklabels()]


def test_the_skip_map_sorts_images_into_bands_of_difficulty() -> None:
    """Image i runs as many units as its difficulty says; the order of the images does not matter."""
    order = np.random.default_rng(0).permutation(10)
    keep_mask = np.arange(5) < (np.arange(10) // 2)[:, None]
    rates, labels = skip_rates(keep_mask[order], np.linspace(0, 1, 10)[order])
    assert np.array_equal(rates, np.tri(5, 5, -1))
    assert labels == ["easiest", "", "", "", "hardest"]


@pytest.mark.parametrize("difficulty", [np.full(6, np.nan), np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan])])
def test_the_skip_map_has_one_band_where_difficulty_is_unknown(difficulty: np.ndarray) -> None:
    keep_mask = np.array([[True, False, True]] * 3 + [[True, False, False]] * 3)
    rates, labels = skip_rates(keep_mask, difficulty)
    assert rates.tolist() == [[1.0, 0.0, 0.5]]
    assert labels == ["all images"]
