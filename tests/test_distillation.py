"""A planner taught by a sequential agent: the codebook by hand, and that it learns what can be learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make_net
from toys import DEPTH

from vitskip.agents import DynamicViT, Policy
from vitskip.agents.distillation import DistillConfig, distill, frequent_paths, nearest_path
from vitskip.backbone import load_dataset

PATHS = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def test_the_most_frequent_paths_make_the_codebook() -> None:
    assert frequent_paths(PATHS, 2).int().tolist() == [[1, 0, 0], [1, 1, 1]]
    assert frequent_paths(PATHS, 9).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_path_outside_the_codebook_goes_to_the_nearest() -> None:
    assert nearest_path(PATHS, PATHS[:2]).tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("action_unit", ["block", "half"])
@pytest.mark.parametrize("paths", [0, 4])
def test_the_planner_learns_the_teachers_paths(tmp_path: Path, action_unit: Any, paths: int) -> None:
    """Far better than the teacher's most frequent path; saved and loaded it decides the same."""
    teacher = make_net("early-exit", action_unit)
    images = load_dataset("tiny-digits", "train").images
    teacher(images)
    assert teacher.last_trace is not None
    taught = teacher.last_trace.keep_mask
    student = distill(
        teacher,
        images,
        DistillConfig(paths=paths, look_after=1, observation="tokens", steps=300, batch_size=64),
        progress_bar=False,
    )
    logits = student(images)
    assert student.last_trace is not None
    agreement = (student.last_trace.keep_mask == taught).all(1).float().mean()
    frequent = (taught == frequent_paths(taught, 1)).all(1).float().mean()
    assert agreement > frequent + 0.2
    student.save(tmp_path, backbone_name="tiny-vit4")
    assert torch.equal(DynamicViT.load(tmp_path)(images), logits)


def test_it_looks_when_half_of_what_the_teacher_runs_has_run() -> None:
    images = load_dataset("tiny-digits", "train").images
    for keep, expected in (([1, 0, 0, 0], 1), ([1, 1, 1, 0], 2), ([1, 1, 1, 1], 2)):
        net = make_net("mlp")
        teacher = DynamicViT(net.backbone, Policy("mask", net.policy.layout, keep=list(map(bool, keep)))).eval()
        assert distill(teacher, images, DistillConfig(steps=1), progress_bar=False).policy.look_after == expected
    config = DistillConfig(steps=1, look_after=3)
    assert distill(teacher, images, config, progress_bar=False).policy.look_after == 3


def test_the_teachers_weights_are_left_alone() -> None:
    teacher = make_net("mlp")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distill(teacher, load_dataset("tiny-digits", "train").images, DistillConfig(steps=3), progress_bar=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_planner_is_no_teacher() -> None:
    net = make_net("mlp")
    planner = DynamicViT(net.backbone, Policy("plan", net.policy.layout, widths=[4])).eval()
    with pytest.raises(ValueError, match="teacher: expected a sequential agent, got one that decides up front itself"):
        distill(planner, load_dataset("tiny-digits", "train").images, DistillConfig(steps=1))


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("paths", -1, "at least 0, got -1"),
        ("look_after", -1, "at least 0, got -1"),
        ("widths", (64, 0), r"at least 1 each, got \(64, 0\)"),
        ("steps", 0, "at least 1, got 0"),
        ("batch_size", 0, "at least 1, got 0"),
        ("learning_rate", 0.0, "more than 0, got 0.0"),
        ("learning_rate", float("nan"), "more than 0, got nan"),
        ("weight_decay", -0.1, "at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected {expected}$"):
        DistillConfig(**{argument: value})


@pytest.mark.parametrize("look_after", [1, 3])
def test_what_the_planner_sees_is_the_observation_after_the_first_blocks(look_after: int) -> None:
    """As the environment shows it after as many RUNs."""
    import numpy as np
    from toys import tiny_core

    net = make_net("mlp")
    core = tiny_core(8, split="train")
    core.reset(np.arange(8), np.arange(8))
    for _ in range(look_after):
        core.step(np.ones(8, np.int64))
    policy = Policy("plan", net.policy.layout, widths=[4], look_after=look_after)
    planner = DynamicViT(net.backbone, policy).eval()
    torch.testing.assert_close(planner.look(core.dataset.images[:8]), core.observe())
    assert core.num_units == DEPTH


def test_every_path_of_the_codebook_runs_the_blocks_before_the_look() -> None:
    images = load_dataset("tiny-digits", "train").images
    config = DistillConfig(paths=4, look_after=3, observation="tokens", steps=1, batch_size=64)
    rule: Any = distill(make_net("early-exit"), images, config, progress_bar=False).policy.rule
    assert rule.codebook[:, :3].all()
    assert len(rule.codebook) == 2
