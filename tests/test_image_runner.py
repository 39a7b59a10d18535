"""Networks over a split: with and without a memory for states they are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import RULES, distinct, make_net, make_policy
from toys import DEPTH, MERGING, SIZE, TINY

from vitskip.agents import DynamicViT, training
from vitskip.agents.image_runner import ImageRunner, RememberingRunner, make_runner
from vitskip.backbone import Dataset, load_backbone, load_dataset
from vitskip.envs import ObservationLayout
from vitskip.eval.prefixes import run_prefixes
from vitskip.eval.static_networks import run_whole

UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])


@pytest.fixture(scope="module")
def split() -> Dataset:
    return load_dataset("tiny-digits", "test")


def same(net: DynamicViT, run: ImageRunner, reference: ImageRunner) -> None:
    prediction, trace = run(net)
    expected, expected_trace = reference(net)
    assert torch.equal(prediction, expected)
    assert torch.equal(trace.keep_mask, expected_trace.keep_mask)
    assert torch.equal(trace.macs, expected_trace.macs)


@pytest.mark.parametrize("rule", [*RULES, "plan"])
@UNITS
@pytest.mark.parametrize("kind", ["belief", "tokens"])
@pytest.mark.parametrize("megabytes", [0.005, 10])
def test_a_memory_changes_nothing(split: Dataset, rule: str, action_unit: str, kind: str, megabytes: float) -> None:
    """Be it too small for what is visited or not; 64 images in batches of 24, and again with decisions shifted."""
    net = make_net(rule, action_unit, kind)
    run, reference = RememberingRunner(split, net.backbone, megabytes, batch_size=24), ImageRunner(split, 24)
    for lean in (0.0, 0.7, -0.7, 0.0):
        if rule in ("mlp", "lstm", "plan"):
            net.lean_to(lean)
        same(net, run, reference)
    if rule != "mask":
        assert distinct(run(net)[1].keep_mask) > 2  # or the test would be weak


def test_what_was_visited_is_not_computed_again(split: Dataset) -> None:
    net = make_net()
    run = RememberingRunner(split, net.backbone, 10)
    computed = []
    for name in ("embed", "run_block"):
        inner = getattr(net.backbone, name)
        setattr(net.backbone, name, lambda *args, inner=inner: computed.append(1) or inner(*args))
    first, *_ = [run(net) for _ in range(4)]  # of newcomers that share a bucket one stays at a time
    count = len(computed)
    assert count > 4
    other = DynamicViT(net.backbone, make_policy("mlp", net.policy.layout)).eval()  # another network, the same paths
    assert torch.equal(run(other)[0], first[0]) and len(computed) == count
    net.lean_to(20.0)  # runs all
    run(net)
    assert len(computed) > count


def test_the_budget_is_shown(split: Dataset) -> None:
    backbone = load_backbone("tiny-vit4")
    net = DynamicViT(backbone, make_policy("mlp", ObservationLayout.of(backbone, "belief", "block", True))).eval()
    run = RememberingRunner(split, backbone, 10)
    paths = []
    for net.shown_budget in (0.6, 0.3):
        same(net, run, ImageRunner(split))
        paths.append(run(net)[1].keep_mask)
    assert not torch.equal(*paths)


def test_networks_may_observe_different_things(split: Dataset) -> None:
    backbone = load_backbone("tiny-vit4")
    run = RememberingRunner(split, backbone, 10)
    for kind, unit in (
        ("belief", "block"),
        ("tokens", "block"),
        ("belief", "half"),
        ("confidence", "block"),
        ("belief", "block"),
    ):
        same(make_net("mlp", unit, kind, backbone=backbone), run, ImageRunner(split))


def test_another_backbone_is_refused(split: Dataset) -> None:
    backbone = load_backbone(MERGING)
    run = RememberingRunner(split, load_backbone(MERGING), 10)
    run(make_net(backbone=backbone))  # a copy is none
    others = [load_backbone(name) for name in ("tiny-vit4", "tome:2:tiny-vit4", MERGING)]
    with torch.no_grad():
        next(others[-1].parameters()).add_(1)
    for other in others:
        with pytest.raises(ValueError, match="net: expected the backbone whose states are remembered"):
            run(make_net(backbone=other))


def test_images_of_other_classes_are_refused(split: Dataset) -> None:
    """By everything that asks a network about a split."""
    net, others = make_net(), Dataset(split.images, split.labels, (*split.classes, "x"), split.difficulty)
    for ask in (
        lambda: ImageRunner(others)(net),
        lambda: RememberingRunner(others, net.backbone, 10)(net),
        lambda: run_prefixes(net.backbone, others),
        lambda: run_whole(net.backbone, others),
    ):
        with pytest.raises(ValueError, match=r"dataset: expected square images of 10 classes, .* of 11 classes"):
            ask()


@pytest.mark.parametrize("megabytes", [-1.0, float("nan")])
def test_a_memory_has_a_size(split: Dataset, megabytes: Any) -> None:
    with pytest.raises(ValueError, match="megabytes: expected more than 0"):
        RememberingRunner(split, load_backbone("tiny-vit4"), megabytes)


def test_no_memory_makes_an_ordinary_runner(split: Dataset) -> None:
    backbone = load_backbone("tiny-vit4")
    assert type(make_runner(split, backbone, 0)) is ImageRunner
    assert type(make_runner(split, backbone, 5)) is RememberingRunner
    assert len(split.first(10)) == 10 and len(split.first(1000)) == SIZE


def test_learning_gives_its_memory_back_before_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores, claimed, make = [], [], training._make_core
    monkeypatch.setattr(training, "_make_core", lambda *arguments: cores.append(make(*arguments)) or cores[0])
    monkeypatch.setattr(training, "_calibrate", lambda *_: claimed.append(cores[0].prefix_cache.nbytes) or [])
    config = training.TrainConfig("a2c", 64 * DEPTH, num_envs=16, env={**TINY, "prefix_cache": 1.0}, budget=0.8)
    training.train(config, tmp_path, progress_bar=False)
    assert cores[0].prefix_cache.visits > 0 and claimed == [0]


def test_a_network_that_does_not_decide_runs_everything(split: Dataset) -> None:
    net = make_net("mlp")
    net.undecided_sizes = frozenset({64})
    run = RememberingRunner(split, net.backbone, 10, batch_size=64)
    same(net, run, ImageRunner(split, batch_size=64))
    assert run(net)[1].keep_mask.all()
