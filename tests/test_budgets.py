"""Agents of several budgets: what the environment shows, how each is priced, and how one is chosen afterwards."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from nets import make_net, make_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import DEPTH, TINY, tiny_core

import vitskip  # noqa: F401 - registers the ids
from vitskip import agent_cli
from vitskip.agents import DynamicViT, Policy, make_agent, train
from vitskip.agents.backbone_tuner import JointConfig
from vitskip.agents.budget import calibrate, macs_fraction
from vitskip.agents.extraction import extract_actor
from vitskip.agents.image_runner import ImageRunner
from vitskip.agents.joint import JointTraining
from vitskip.agents.run_directory import read
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.backbone.datasets import Split
from vitskip.envs import ObservationLayout, make_sb3_env
from vitskip.eval import comparison
from vitskip.eval.comparison import compare, make_cells

BUDGETS = (0.65, 0.8, 0.95)
ENV: dict[str, Any] = {**TINY, "budgets": list(BUDGETS)}
LAYOUT = ObservationLayout.of(load_backbone("tiny-vit4"), "belief", "block", shows_budget=True)


@pytest.mark.parametrize("kind", ["belief", "tokens"])
def test_the_budget_is_shown_after_the_compute_spent(kind: Any) -> None:
    core = tiny_core(3, budgets=BUDGETS, observation=kind)
    plain = tiny_core(3, observation=kind)
    core.reset(np.arange(3), np.arange(3), np.array([2, 0, 1]))
    plain.reset(np.arange(3), np.arange(3))
    for run in ([1, 0, 1], [0, 0, 1]):
        core.step(np.array(run))
        plain.step(np.array(run))
    observation, layout = core.observe(), core.layout
    assert observation.shape == (3, layout.size)
    torch.testing.assert_close(observation[:, layout.budget], torch.tensor([[0.95], [0.65], [0.8]]))
    others = [column for column in range(layout.size) if column != layout.budget.start]
    assert torch.equal(observation[:, others], plain.observe())
    assert core.info()["budget"].tolist() == [0.95, 0.65, 0.8]
    assert "budget" not in plain.info() and plain.layout.budget == slice(layout.budget.start, layout.budget.start)


def test_each_budget_has_its_own_price() -> None:
    core = tiny_core(3, budgets=BUDGETS)
    core.cost_weight = np.array([3.0, 2.0, 1.0])
    core.reset(np.arange(3), np.arange(3), np.arange(3))
    rewards = core.step(np.array([1, 1, 0]))
    torch.testing.assert_close(rewards, torch.tensor([-3.0, -2.0, 0.0]) * float(core.cost_share[0]))


@pytest.mark.parametrize("reward", ["blockdrop", "dynavit"])
def test_rewards_that_hold_the_compute_use_that_price(reward: str) -> None:
    """Row by row it is the reward of an environment with this cost weight alone."""
    core = tiny_core(3, budgets=BUDGETS, reward=reward)
    core.cost_weight = np.array([3.0, 2.0, 1.0])
    core.reset(np.arange(3), np.arange(3), np.arange(3))
    rewards = [core.step(np.array([1, 1, 1])) for _ in range(DEPTH)][-1]
    for row, cost_weight in enumerate(core.cost_weight):
        alone = tiny_core(1, reward=reward, cost_weight=float(cost_weight))
        alone.reset(np.array([0]), np.array([row]))
        assert [alone.step(np.array([1])) for _ in range(DEPTH)][-1].item() == pytest.approx(rewards[row].item())


def test_every_budget_is_drawn_and_the_images_of_one_stay_what_they_were() -> None:
    """A single budget draws nothing: the stream of images is that of an environment without budgets."""
    env: Any = gym.make("ViTSkip-v0", **ENV)
    drawn = [env.reset(seed=0 if episode == 0 else None)[1]["budget"] for episode in range(60)]
    assert set(drawn) == set(BUDGETS)
    assert min(drawn.count(budget) for budget in BUDGETS) > 8
    fixed: Any = gym.make("ViTSkip-v0", **{**TINY, "budgets": [0.4]})
    plain: Any = gym.make("ViTSkip-v0", **TINY)
    streams = [[env.reset(seed=3 if i == 0 else None)[1]["index"] for i in range(9)] for env in (fixed, plain)]
    assert streams[0] == streams[1]


def test_rollouts_of_one_image_have_one_budget() -> None:
    venv = make_sb3_env(num_envs=12, seed=0, **ENV)
    venv.rows_per_image = 4
    shown = np.asarray(venv.reset())[:, LAYOUT.budget].reshape(3, 4)
    assert (shown == shown[:, :1]).all()
    assert len(np.unique(shown)) > 1


@pytest.mark.parametrize("mode", ["gather", "dense"])
def test_the_network_is_shown_the_budget_that_it_is_given(mode: Any) -> None:
    """It decides as in the environment, image by image."""
    net = DynamicViT(load_backbone("tiny-vit4"), make_policy("mlp", LAYOUT), mode=mode).eval()
    core = tiny_core(30, budgets=BUDGETS, split="test")
    core.reset(np.arange(30), np.arange(30), np.arange(30) % 3)
    while not core.ended.all():
        core.step(net.policy.predict(core.observe().numpy())[0])
    net.shown_budget = torch.tensor(BUDGETS)[torch.arange(30) % 3, None]
    net(core.dataset.images[:30])
    assert net.last_trace is not None
    np.testing.assert_array_equal(net.last_trace.keep_mask.numpy(), core.keep_mask)
    assert len(np.unique(core.keep_mask.sum(1))) > 1


def test_every_budget_is_calibrated_apart(tmp_path: Path) -> None:
    """And the run directory remembers it, whichever budget was set last."""
    net = DynamicViT(load_backbone("tiny-vit4"), make_policy("mlp", LAYOUT)).eval()
    run_images = ImageRunner(load_dataset("tiny-digits", "validation"))
    weights = {name: tensor.clone() for name, tensor in net.policy.state_dict().items()}
    spent = [calibrate(net, run_images, budget) for budget in (0.7, 0.9)]
    assert spent == [pytest.approx(0.7, abs=0.03), pytest.approx(0.9, abs=0.07)]
    net.save(tmp_path, backbone_name="tiny-vit4")
    assert macs_fraction(net, run_images) == spent[1]
    for budget, expected in zip((0.7, 0.9), spent, strict=True):
        assert macs_fraction(DynamicViT.load(tmp_path, budget=budget), run_images) == expected
    loaded = DynamicViT.load(tmp_path)
    assert loaded.shown_budget == 0.9
    loaded.set_budget(0.8)
    assert loaded.shown_budget == 0.8
    shift = loaded.policy.state_dict()["rule.network.4.bias"] - weights["rule.network.4.bias"]
    assert shift.item() == pytest.approx((net.budgets[0.7] + net.budgets[0.9]) / 2, abs=1e-5)
    with pytest.raises(ValueError, match=r"budget: expected a share of the dense compute in \[0.7, 0.9\], got 0.5"):
        loaded.set_budget(0.5)


def test_an_agent_of_one_budget_has_none_to_choose(tmp_path: Path) -> None:
    net = make_net("mlp")
    with pytest.raises(ValueError, match=r"budget: expected none, as the policy was not trained for several, got 0.5"):
        net.set_budget(0.5)
    net.save(tmp_path, backbone_name="tiny-vit4")
    with pytest.raises(ValueError, match="budget: expected none"):
        DynamicViT.load(tmp_path, budget=0.5)


@pytest.mark.parametrize("damage", [3, [[0.5, float("nan")]], [0.5], [[1.5, 2.0]], [[0.5, "a"]], [[0.5, 0.5, 0.5]]])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: Any) -> None:
    make_net("mlp").save(tmp_path, backbone_name="tiny-vit4")
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "budgets": damage}))
    with pytest.raises(ValueError, match="expected 'budgets' to be pairs of a share"):
        DynamicViT.load(tmp_path)


def test_each_budget_has_its_own_multiplier(tmp_path: Path) -> None:
    """The tighter the budget, the more a block costs; the run knows every budget afterwards."""
    config = TrainConfig("ppo", 64 * 2 * DEPTH * 8, 0, 64, {"batch_size": 256}, {**ENV, "cost_weight": 0.3})
    result = train(config, tmp_path, progress_bar=False)
    record = read(tmp_path).record
    assert record["cost_weight"] == sorted(record["cost_weight"], reverse=True)
    assert record["cost_weight"][0] > record["cost_weight"][-1]
    assert len(record["calibrated_macs_fraction"]) == len(BUDGETS)
    assert list(result.net.budgets) == list(BUDGETS)
    assert DynamicViT.load(tmp_path, budget=0.7).shown_budget == 0.7


def test_budgets_that_are_near_have_curves_of_their_own(tmp_path: Path) -> None:
    budgets = [0.7, 0.704, 0.9]
    config = TrainConfig("ppo", 64 * DEPTH * 8, 0, 64, {"batch_size": 256}, {**ENV, "budgets": budgets})
    train(config, tmp_path, progress_bar=False)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if "_at_" in tag}
    names = [f"skip/{name}_at_" for name in ("macs_fraction", "cost_weight")]
    assert tags == {f"{name}{budget}" for name in names for budget in ("70", "70.4", "90")}


@pytest.mark.slow
def test_one_agent_serves_every_budget(tmp_path: Path) -> None:
    budgets = [0.3, 0.5, 0.7]
    result = train(TrainConfig("ppo", 300_000, env={"budgets": budgets}), tmp_path, progress_bar=False)
    validation = load_dataset("digits", "validation")
    accuracy = []
    for budget in budgets:
        result.net.set_budget(budget)
        assert macs_fraction(result.net, ImageRunner(validation)) == pytest.approx(budget, abs=0.02)
        accuracy.append((result.net(validation.images).argmax(1) == validation.labels).float().mean().item())
    assert min(accuracy) > 0.88


def test_the_vit_learns_on_paths_of_every_budget() -> None:
    core = tiny_core(16, budgets=BUDGETS)
    seen = []

    def extract() -> Policy:
        policy = make_policy("mlp", LAYOUT)
        policy.rule.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, LAYOUT.budget].clone()))
        return policy

    config = JointConfig(rounds=1, steps=3, batch_size=16, augmentation="none")
    JointTraining(core, extract, config, dataset=core.dataset, progress_bar=False).train_backbone()
    assert torch.cat(seen).unique().tolist() == pytest.approx(BUDGETS)


def test_one_budget_beside_several_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget: expected none beside the environment's budgets, got 0.5"):
        TrainConfig(budget=0.5, env=ENV)


def test_a_comparison_trains_the_agent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = TrainConfig(total_timesteps=16 * DEPTH, num_envs=16, env=ENV)
    cells = make_cells(base, tmp_path, ["a2c"], [0.7, 0.9], [0])
    assert [cell.folder.name for cell in cells] == ["a2c-all-seed0"] * 2
    assert cells[0].regime == "frozen, one agent"
    trained = []

    def count(config: TrainConfig, *args: Any, **options: Any) -> Any:
        trained.append(config)
        return train(config, *args, **options)

    monkeypatch.setattr(comparison, "train", count)
    evaluations = compare(cells, static_mask_images=0, progress_bar=False)
    assert [evaluation["budget"] for evaluation in evaluations] == [0.7, 0.9]
    assert len(trained) == 1
    with pytest.raises(ValueError, match=r"budgets: expected them within those that the agent is shown, got 0.4"):
        make_cells(base, tmp_path, ["a2c"], [0.4], [0])


@pytest.mark.parametrize("algorithm", ["gumbel", "router"])
def test_rivals_without_a_reward_pay_the_price_of_each_budget(algorithm: str) -> None:
    venv = make_sb3_env("ViTSkip-v0", num_envs=32, seed=0, **{**TINY, "budgets": [0.65, 0.95]})
    venv.core.cost_weight = np.array([5.0, -5.0])  # paid to run where the budget is large
    agent: Any = make_agent(algorithm, venv, learning_rate=0.03)
    agent.learn(40 * 32 * DEPTH)
    assert set(agent.cost_weights.unique().tolist()) == {5.0, -5.0}
    net = DynamicViT(venv.core.backbone, extract_actor(agent.policy, venv.core.layout)).eval()
    spent = []
    for budget in (0.65, 0.95):
        net.shown_budget = budget
        spent.append(macs_fraction(net, ImageRunner(load_dataset("digits", "validation").first(100))))
    assert spent[0] + 0.2 < spent[1]


def test_the_gate_sees_what_the_environment_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = make_sb3_env("ViTSkip-v0", num_envs=4, seed=0, **ENV)
    core = venv.core
    core.cost_share = np.array([0.7, 0.1, 0.1, 0.1])  # what is paid is not what is seen
    agent: Any = make_agent("gumbel", venv)
    seen = []

    def run(observation: torch.Tensor) -> torch.Tensor:
        seen.append(observation)
        return torch.full((len(observation),), 100.0)

    monkeypatch.setattr(agent, "log_odds", run)
    index, budgets = np.arange(4), np.array([2, 0, 1, 2])
    agent._gated_pass(torch.from_numpy(index), torch.from_numpy(core.budgets[budgets, None]).float())
    core.reset(np.arange(4), index, budgets)
    for observation in seen:
        torch.testing.assert_close(observation, core.observe())
        core.step(np.ones(4, int))
    assert len(seen) == DEPTH


@pytest.mark.parametrize(
    ("split", "opened"),
    [("train", ["train", "validation"]), ("validation-even", ["validation-even", "validation-even"])],
)
def test_a_planner_is_taught_at_the_budget_that_it_gets_on_the_images_of_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Split, opened: list[Split]
) -> None:
    train(TrainConfig("a2c", 128 * DEPTH, env={**ENV, "split": split}), tmp_path / "run", progress_bar=False)
    asked, found = [], []
    monkeypatch.setattr(agent_cli, "load_dataset", lambda *where: found.append(where[1]) or load_dataset(*where))

    def distill(teacher: DynamicViT, images: torch.Tensor, config: Any) -> DynamicViT:
        asked.append(teacher.shown_budget)
        return teacher

    monkeypatch.setattr(agent_cli, "distill_agent", distill)
    agent_cli.distill(tmp_path / "run", tmp_path / "planner", budget=0.95)
    assert (asked, found) == ([0.95], opened)


def test_an_agent_that_is_not_calibrated_is_saved_and_loaded(tmp_path: Path) -> None:
    net, images = DynamicViT(load_backbone("tiny-vit4"), make_policy("mlp", LAYOUT)).eval(), torch.rand(8, 3, 32, 32)
    net.save(tmp_path, backbone_name="tiny-vit4")
    loaded = DynamicViT.load(tmp_path)
    assert loaded.budgets == {}
    with pytest.raises(ValueError, match=r"budget: expected a network that `calibrate` has fitted to several, got 0.7"):
        loaded.set_budget(0.7)
    net.shown_budget = loaded.shown_budget = 0.7
    assert torch.equal(loaded(images), net(images))
