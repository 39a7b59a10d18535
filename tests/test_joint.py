"""Joint training, budgets and the curriculum: what they change, what they leave alone, and that they hit their mark."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn import functional as F
from toys import DEPTH, MERGING, TINY, tiny_core

from vitskip.agents import DynamicViT, Policy, train
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.backbone_tuner import BackboneTuner, JointConfig, tune_dense
from vitskip.agents.budget import LEAN, _root, calibrate, macs_fraction
from vitskip.agents.callbacks import Curriculum
from vitskip.agents.image_runner import ImageRunner
from vitskip.agents.joint import JointTraining
from vitskip.agents.run_directory import read
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.envs import ObservationLayout, SkipCore
from vitskip.envs.config import EnvConfig

FAST = {"batch_size": 64, "learning_rate": 0.01}
JOINT = JointConfig(rounds=2, steps=3, batch_size=16, learning_rate=1e-2, augmentation="none")


def run(path: Path, timesteps: int = 4 * 16 * 2 * DEPTH, **options: Any) -> Any:
    config = TrainConfig("ppo", timesteps, 0, 16, FAST, {**TINY, **options.pop("env", {})}, **options)
    return train(config, path, progress_bar=False)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_frozen_training_leaves_the_weights_bit_equal(tmp_path: Path) -> None:
    assert same_weights(run(tmp_path).net.backbone, load_backbone("tiny-vit4"))


def test_joint_training_changes_a_copy_and_saves_it(tmp_path: Path) -> None:
    """The backbone that other environments of this process share stays as it was."""
    shared: Any = EnvConfig(**TINY).load_backbone()
    result = run(tmp_path, joint=JOINT)
    assert same_weights(shared, load_backbone("tiny-vit4"))
    changed = [
        name
        for name, tensor in result.net.backbone.state_dict().items()
        if not torch.equal(tensor, shared.state_dict()[name])
    ]
    assert set(changed) == {name for name, _ in shared.named_parameters()}
    images = load_dataset("tiny-digits", "test").images
    assert torch.equal(DynamicViT.load(tmp_path)(images), result.net(images))
    assert not any(parameter.requires_grad for parameter in result.net.backbone.parameters())


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_trains_jointly(algorithm: str, tmp_path: Path) -> None:
    """The ViT gets all its rounds, and the saved network is the one that was trained."""
    smaller = {"buffer_size": 512, "learning_starts": 64} if "dqn" in algorithm else {}
    env = {**TINY, "budgets": [0.5, 0.8]}
    net = train(TrainConfig(algorithm, 1024, 0, 16, smaller, env, joint=JOINT), tmp_path, progress_bar=False).net
    rounds = json.loads((tmp_path / "run.json").read_text())["record"]["joint"]
    assert [len(column) for column in rounds.values()] == [2, 2]
    assert not same_weights(net.backbone, load_backbone("tiny-vit4"))
    assert same_weights(DynamicViT.load(tmp_path, budget=0.5).backbone, net.backbone)


@pytest.mark.filterwarnings("ignore:precision")  # on a CPU without bfloat16
@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"optimizer": "muon"}, {"deep_supervision": 1.0}])
def test_the_vit_learns_on_the_agents_paths(settings: dict) -> None:
    """A gradient reaches exactly the blocks that the agent runs; the loss falls when a batch is seen again."""
    core = tiny_core(16)
    policy = Policy("mask", core.layout, keep=[True, False, True, False])
    joint = JointTraining(core, lambda: policy, replace(JOINT, **settings), dataset=core.dataset, progress_bar=False)
    before = {name: tensor.clone() for name, tensor in core.backbone.state_dict().items()}
    for _ in range(8):
        joint.train_backbone()
    after = core.backbone.state_dict()
    moved = {name.split(".")[1] for name in after if name.startswith("blocks.") and not equal(before, after, name)}
    assert moved == {"0", "2"}
    assert joint.curve["loss"][-1] < 0.9 * joint.curve["loss"][0]
    expected = (core.backbone.macs.total - sum(core.backbone.macs.units("block")[1::2])) / core.backbone.macs.total
    assert joint.curve["macs_fraction"] == [pytest.approx(expected)] * 8


def test_some_images_take_the_full_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of each step's images; the others take the agent's, at budgets of their own."""
    core = tiny_core(16)
    policy = Policy("mask", core.layout, keep=[True, False, True, False])
    config = replace(JOINT, full_share=0.25)
    joint = JointTraining(core, lambda: policy, config, dataset=core.dataset, progress_bar=False)
    taken, descend = [], joint.tuner._descend

    def spy(images: torch.Tensor, targets: torch.Tensor, keep_mask: torch.Tensor) -> torch.Tensor:
        taken.append(keep_mask)
        return descend(images, targets, keep_mask)

    monkeypatch.setattr(joint.tuner, "_descend", spy)
    joint.train_backbone()
    for keep_mask in taken:
        assert keep_mask.tolist() == [[True] * DEPTH] * 4 + [[True, False, True, False]] * 12
    expected = (core.backbone.macs.total - sum(core.backbone.macs.units("block")[1::2])) / core.backbone.macs.total
    assert joint.curve["macs_fraction"] == [pytest.approx(expected)]


@pytest.mark.parametrize(("algorithm", "draws"), [("a2c", True), ("dqn", False), ("qrdqn", False)])
def test_paths_are_drawn_where_actions_are(
    algorithm: str, draws: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-odds of a Q-network are differences of returns; as probabilities they would be near a coin's."""
    seen = []
    original = JointTraining.train_backbone

    def spy(self: JointTraining) -> None:
        policies, extract = [], self.extract
        self.extract = lambda: policies.append(extract()) or policies[-1]
        original(self)
        seen.append(policies[0].rule.samples)

    monkeypatch.setattr(JointTraining, "train_backbone", spy)
    smaller = {"buffer_size": 512, "learning_starts": 64} if "dqn" in algorithm else {}
    train(TrainConfig(algorithm, 1024, 0, 16, smaller, TINY, joint=JOINT), tmp_path, progress_bar=False)
    assert seen == [draws] * 2


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("a2c", {"budget": 0.8}),
        ("a2c", {"budget": 0.8, "upfront": 1}),
        ("a2c", {"joint": JOINT}),
        ("gumbel", {"budget": 0.8}),
    ],
)
def test_training_on_a_gpu(tmp_path: Path, algorithm: str, options: dict) -> None:
    """The backbone is there, the agent on the CPU; what is learnt runs on both."""
    config = TrainConfig(algorithm, 16 * DEPTH * 4, 0, 16, env={**TINY, "device": "cuda"}, **options)
    net = train(config, tmp_path, progress_bar=False).net
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"cuda"}
    images = load_dataset("tiny-digits", "test").images
    here = DynamicViT.load(tmp_path)(images)
    torch.testing.assert_close(net(images.cuda()).cpu(), here, rtol=1e-3, atol=1e-3)


def test_plans_are_drawn_too() -> None:
    layout = ObservationLayout.of(load_backbone("tiny-vit4"), "belief", "block")
    policy, observation = Policy("plan", layout, widths=[8]), torch.zeros(64, layout.size)
    assert len(policy.decide(observation).unique(dim=0)) == 1
    policy.rule.samples = True
    assert len(policy.decide(observation).unique(dim=0)) > 8
    codebook = Policy("plan", layout, widths=[8], paths=[[True] * DEPTH, [False] * DEPTH])
    codebook.rule.samples = True
    assert len(codebook.decide(observation).unique(dim=0)) == 1


def test_deep_supervision_by_hand() -> None:
    """The mean over the units that ran, of one image after another, is added to the loss of the answer."""
    config = replace(JOINT, deep_supervision=0.7, label_smoothing=0.0)
    core = tiny_core(16)
    vit, images, labels = core.backbone, core.dataset.images[:3], core.dataset.labels[:3]
    targets, masks = (
        F.one_hot(labels, vit.num_classes).float(),
        torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]),
    )
    tuner = BackboneTuner(vit, core.dataset, config, progress_bar=False)
    with torch.no_grad():
        expected = 0.0
        for image, target, mask in zip(images, targets, masks, strict=True):
            belief, tokens, losses = vit(image[None]).softmax(1)[0], vit.embed(image[None]), []
            for block in mask.nonzero():
                tokens = vit.run_block(int(block), tokens)
                losses.append(loss_of(vit.classify(tokens)[0], target, belief))
            expected += (
                loss_of(vit.classify(tokens)[0], target, belief) / 3 + 0.7 * sum(losses) / max(len(losses), 1) / 3
            )
    vit.train().requires_grad_(True)
    torch.testing.assert_close(tuner._descend(images, targets, masks.bool()), expected, rtol=1e-4, atol=1e-5)


def loss_of(logits: torch.Tensor, target: torch.Tensor, belief: torch.Tensor) -> torch.Tensor:
    log_probabilities = logits.log_softmax(0)
    return (-0.5 * target * log_probabilities + belief * (belief.log() - log_probabilities)).sum()


def equal(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], name: str) -> bool:
    return torch.equal(before[name], after[name])


def test_the_teacher_stays_as_it_was() -> None:
    core = tiny_core(16)
    joint = JointTraining(
        core, lambda: Policy("mask", core.layout, keep=[True] * 4), JOINT, dataset=core.dataset, progress_bar=False
    )
    joint.train_backbone()
    assert same_weights(joint.tuner.teacher, load_backbone("tiny-vit4"))


def test_the_vit_learns_on_the_training_part_whatever_the_agent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, torch.Tensor] = {}
    begin = JointTraining.__init__

    def spy(self: JointTraining, core: SkipCore, *arguments: Any, dataset: Any, **options: Any) -> None:
        seen.update(agent=core.dataset.images, vit=dataset.images)
        begin(self, core, *arguments, dataset=dataset, **options)

    monkeypatch.setattr(JointTraining, "__init__", spy)
    run(tmp_path, joint=JOINT, env={"split": "validation"})
    assert torch.equal(seen["vit"], load_dataset("tiny-digits", "train").images)
    assert torch.equal(seen["agent"], load_dataset("tiny-digits", "validation").images)


def test_a_net_that_merges_tokens_learns_from_the_one_that_does_not(tmp_path: Path) -> None:
    merging, dataset = load_backbone(MERGING), load_dataset("tiny-digits", "train")
    teacher, images = BackboneTuner(merging, dataset, JOINT).teacher, dataset.images[:8]
    assert torch.equal(teacher(images), load_backbone("tiny-vit4")(images))
    assert not torch.equal(teacher(images), merging(images))


def test_the_dense_twin_gets_the_same_batches_and_steps(tmp_path: Path) -> None:
    """It is what joint training is with an agent that runs all."""
    core, backbone = tiny_core(16), load_backbone("tiny-vit4")
    joint = JointTraining(
        core,
        lambda: Policy("mask", core.layout, keep=[True] * 4),
        JOINT,
        seed=3,
        dataset=core.dataset,
        progress_bar=False,
    )
    for _ in range(JOINT.rounds):
        joint.train_backbone()
    assert replace(JOINT, full_share=0.5).of_dense == JOINT
    tune_dense(backbone, core.dataset, JOINT, tmp_path / "checkpoint", seed=3, progress_bar=False)
    assert same_weights(backbone, core.backbone)
    assert not same_weights(backbone, load_backbone("tiny-vit4"))


def test_tuning_a_dense_net_goes_on_after_the_last_whole_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[Any] = [load_backbone("tiny-vit4") for _ in range(2)]
    dataset, file = load_dataset("tiny-digits", "train"), tmp_path / "checkpoint"
    tune_dense(nets[0], dataset, JOINT, tmp_path / "straight", progress_bar=False)
    train_round, rounds = BackboneTuner.train_round, []

    def die_in_the_second_round(self: BackboneTuner, choose: Any) -> float:
        rounds.append(self.step)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return train_round(self, choose)

    monkeypatch.setattr(BackboneTuner, "train_round", die_in_the_second_round)
    with pytest.raises(KeyboardInterrupt):
        tune_dense(nets[1], dataset, JOINT, file, progress_bar=False)
    resumed: Any = load_backbone("tiny-vit4")
    tune_dense(resumed, dataset, JOINT, file, progress_bar=False)
    assert rounds == [0, 3, 3]
    assert same_weights(resumed, nets[0])
    with pytest.raises(ValueError, match="made with other seed"):
        tune_dense(resumed, dataset, JOINT, file, seed=1, progress_bar=False)


def test_the_weights_after_the_last_rounds_are_averaged() -> None:
    def weights(**changes: int) -> list[torch.Tensor]:
        """After each of three rounds that run every block."""
        torch.manual_seed(0)
        core, found = tiny_core(16), []
        tuner = BackboneTuner(core.backbone, core.dataset, replace(JOINT, rounds=3, **changes), progress_bar=False)
        for _ in range(3):
            tuner.train_round(lambda images, _: torch.ones(len(images), DEPTH, dtype=torch.bool))
            found.append(torch.nn.utils.parameters_to_vector(core.backbone.parameters()).detach())
        return found

    each, averaged = weights(), weights(averaged_rounds=2)
    assert torch.equal(torch.stack(averaged[:2]), torch.stack(each[:2]))
    assert not torch.allclose(each[1], each[2], atol=1e-3)
    torch.testing.assert_close(averaged[2], (each[1] + each[2]) / 2)


def test_what_was_computed_with_other_weights_is_forgotten() -> None:
    """The divergence from the full net is that from the net as it is now."""
    core, fresh = tiny_core(4, reward="kl"), tiny_core(4, reward="kl")
    final_rewards(core)
    backbone: Any = core.backbone
    with torch.no_grad():
        backbone.head.weight *= 2.0
    core.weights_changed()
    fresh.backbone.load_state_dict(core.backbone.state_dict())
    torch.testing.assert_close(final_rewards(core), final_rewards(fresh))


def final_rewards(core: SkipCore) -> torch.Tensor:
    core.reset(np.arange(4), np.arange(4))
    return [core.step(np.array([1, 0, 1, 0])) for _ in range(DEPTH)][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds, steps: expected at least 1 and 0, got 0 and 0"),
        ({"averaged_rounds": 0}, r"averaged_rounds: expected 1\.\.4, got 0"),
        ({"averaged_rounds": 5}, r"averaged_rounds: expected 1\.\.4, got 5"),
        ({"label_weight": -1.0}, r"label_weight: expected at least 0, got -1.0"),
        ({"augmentation": "digit"}, "unknown augmentation 'digit'"),
        ({"deep_supervision": -0.5}, "deep_supervision: expected at least 0, got -0.5"),
        ({"full_share": 1.0}, r"full_share: expected a share of the images in \[0, 1\), got 1.0"),
        ({"full_share": 0.99, "batch_size": 16}, "full_share: expected to leave an image of 16, got 0.99"),
        ({"learning_rate": 0.0}, "learning_rate: expected more than 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointConfig(**arguments)


def test_fewer_images_than_a_batch_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least 128 images of 10 classes, got 64 of 10"):
        run(tmp_path / "run", joint=JointConfig(rounds=2))
    assert not (tmp_path / "run").exists()


def test_the_agent_learns_before_each_round_and_after_the_last(tmp_path: Path) -> None:
    """Eight rollouts have seven places between them."""
    with pytest.raises(ValueError, match="rounds: expected at most 7, one between two rollouts, got 8"):
        run(tmp_path / "run", timesteps=8 * 16 * 2 * DEPTH, joint=replace(JOINT, rounds=8))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_paths_are_drawn_anew_in_each_round_and_by_the_seed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    core = tiny_core(16)

    def drawn(seed: int) -> list[torch.Tensor]:
        """What each of two rounds draws for the same images."""
        found: list[torch.Tensor] = []
        joint = JointTraining(
            core,
            lambda: Policy("random", core.layout, rate=0.5),
            JOINT,
            dataset=core.dataset,
            seed=seed,
            progress_bar=False,
        )

        def train_round(choose: Any) -> float:
            found.append(choose(core.dataset.images[:16], 0))
            joint.tuner.step += 3
            return 0.0

        monkeypatch.setattr(joint.tuner, "train_round", train_round)
        for _ in range(2):
            joint.train_backbone()
        return found

    first, second = drawn(seed)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, drawn(seed), (first, second)))
    assert not torch.equal(drawn(seed + 1)[0], first)


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint_holds_it() -> None:
    core = tiny_core(16)
    tuner = BackboneTuner(core.backbone, core.dataset, JOINT, progress_bar=False)
    torch.nn.init.constant_(next(core.backbone.parameters()), torch.nan)
    with pytest.raises(FloatingPointError, match="loss: expected a finite one, got nan before the ViT's step 3"):
        tuner.train_round(lambda images, _: torch.ones(len(images), DEPTH, dtype=torch.bool))


@pytest.mark.parametrize("upfront", [0, 1])
def test_a_budget_is_held_on_validation_images(tmp_path: Path, upfront: int) -> None:
    result = run(tmp_path, timesteps=16 * 2 * (1 if upfront else DEPTH) * 20, budget=0.85, upfront=upfront)
    run_images = ImageRunner(load_dataset("tiny-digits", "validation"))
    assert macs_fraction(result.net, run_images) == pytest.approx(0.85, abs=0.03)
    assert len(result.net.last_trace.keep_mask.unique(dim=0)) > 1


def test_the_cost_weight_follows_the_violation(tmp_path: Path) -> None:
    """It rises while the agent, which starts near run-all, spends too much."""
    run(tmp_path / "tight", budget=0.45, env={"cost_weight": 0.1})
    run(tmp_path / "loose", budget=0.99, env={"cost_weight": 0.1})
    weights = [read(tmp_path / name).record["cost_weight"][0] for name in ("tight", "loose")]
    assert weights[0] > 0.3
    assert weights[1] < 0.1


@pytest.mark.parametrize("budget", [0.6, 0.7, 0.8])
def test_calibration_shifts_the_decisions_to_the_budget(budget: float) -> None:
    backbone = load_backbone("tiny-vit4")
    policy = Policy("mlp", ObservationLayout.of(backbone, "belief", "block"), widths=[8])
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=2.0, generator=generator)
    net = DynamicViT(backbone, policy).eval()
    run_images = ImageRunner(load_dataset("tiny-digits", "validation"))
    spent = calibrate(net, run_images, budget)
    assert spent == macs_fraction(net, run_images)
    assert spent == pytest.approx(budget, abs=0.03)  # 64 images: a decision moves it by up to 0.004


@pytest.mark.parametrize(("budget", "root"), [(0.5, 0.0), (0.3, -0.847), (0.9, 2.197), (1.2, LEAN), (-0.1, -LEAN)])
def test_the_lean_is_found_in_few_looks(budget: float, root: float) -> None:
    """Of a net that spends the logistic function of it; at the end of the range where no lean is enough."""
    seen: set[float] = set()

    def excess(lean: float) -> float:
        seen.add(lean)
        return float(expit(lean)) - budget

    assert _root(excess) == pytest.approx(root, abs=1e-3)
    assert len(seen) <= 15


def test_the_lean_is_found_of_an_agent_that_is_very_sure() -> None:
    root = _root(lambda lean: float(expit(lean - 300)) - 0.3)
    assert root == pytest.approx(299.153, abs=1e-3)


def test_the_curriculum_frees_the_last_unit_first(tmp_path: Path) -> None:
    core = tiny_core(4)
    core.forced_units = 2
    core.reset(np.arange(4), np.arange(4))
    for _ in range(DEPTH):
        core.step(np.zeros(4, np.int64))
    assert core.keep_mask.tolist() == [[True, True, False, False]] * 4
    with pytest.raises(ValueError, match=r"curriculum: expected a share of the steps in \[0, 1\], got 1.5"):
        TrainConfig(curriculum=1.5)


def test_the_curriculum_ends_with_all_units_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Curriculum._on_rollout_start

    def spy(self: Curriculum) -> None:
        original(self)
        seen.append(self.core.forced_units)

    monkeypatch.setattr(Curriculum, "_on_rollout_start", spy)
    run(tmp_path, timesteps=8 * 16 * 2 * DEPTH, curriculum=0.5)
    assert seen == [3, 3, 2, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.2])
def test_budgets_out_of_range_are_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget: expected a share of the dense compute in \(0, 1\), got"):
        TrainConfig(budget=budget)


def test_the_price_waits_while_a_curriculum_forces_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent cannot spend less then, so nothing is to be learnt from what it spends."""
    seen = []
    original = Curriculum._on_rollout_start

    def spy(self: Curriculum) -> None:
        seen.append(self.core.cost_weight.item())
        original(self)

    monkeypatch.setattr(Curriculum, "_on_rollout_start", spy)
    run(tmp_path, timesteps=8 * 16 * 2 * DEPTH, curriculum=0.5, budget=0.45, env={"cost_weight": 0.1})
    assert seen[:5] == [0.1] * 5  # what is known before each of eight rollouts, of which four are forced
    assert seen[-1] > 0.1
