"""Static networks as rivals: real measurements, mixtures chosen on validation, equal compute."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toys  # noqa: F401 - registers the tiny names
from nets import make_net

from vitskip.agents import DynamicViT
from vitskip.agents.baselines import fixed_mask, whole_network
from vitskip.backbone import Dataset, ViT, load_dataset
from vitskip.backbone.protocol import ActionUnit, num_units
from vitskip.eval import evaluate, measure
from vitskip.eval.prefixes import Prefixes, run_prefixes
from vitskip.eval.rivals import Rivals
from vitskip.eval.static_networks import StaticNetworks, run_whole

SHARES = {4: 0.9, 1: 0.3, 2: 0.7, 3: 0.4}  # of validation labels that the net of this depth gets right


def vit(depth: int, num_classes: int = 10) -> ViT:
    torch.manual_seed(depth)
    net = ViT(image_size=32, patch_size=16, embed_dim=16, depth=depth, num_heads=2, num_classes=num_classes)
    torch.nn.init.normal_(net.head.weight)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> DynamicViT:
    return make_net("early-exit", backbone=vit(4))


@pytest.fixture(scope="module")
def shallow() -> list[ViT]:
    """Not in order of depth."""
    return [vit(depth) for depth in (3, 1, 2)]


@pytest.fixture
def validation(monkeypatch: pytest.MonkeyPatch, net: DynamicViT, shallow: list[ViT]) -> Dataset:
    """On which the accuracy of each net is known."""
    dataset = load_dataset("tiny-digits", "validation")
    shares = {id(net.backbone): SHARES[4]} | {id(other): SHARES[other.depth] for other in shallow}

    def known(backbone: ViT, split: Dataset, batch_size: int = 500) -> np.ndarray:
        whole = run_whole(backbone, split, batch_size)
        return whole if split is not dataset else np.arange(len(whole)) < len(whole) * shares[id(backbone)]

    def known_prefixes(backbone: ViT, split: Dataset, **options: Any) -> Prefixes:
        found = run_prefixes(backbone, split, **options)
        found.correct[-1] = known(backbone, split)
        return found

    monkeypatch.setattr("vitskip.eval.static_networks.run_whole", known)
    monkeypatch.setattr("vitskip.eval.rivals.run_prefixes", known_prefixes)
    return dataset


@pytest.fixture
def test_part() -> Dataset:
    return load_dataset("tiny-digits", "test")


@pytest.mark.parametrize("batch_size", [7, 500])
def test_run_whole(net: DynamicViT, test_part: Dataset, batch_size: int) -> None:
    expected = measure(whole_network(net.backbone), test_part).correct
    assert np.array_equal(run_whole(net.backbone, test_part, batch_size), expected)
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_at_its_own_compute_each_network_is_itself(
    shallow: list[ViT], validation: Dataset, test_part: Dataset, action_unit: str
) -> None:
    net = make_net("early-exit", action_unit, backbone=vit(4))
    known = StaticNetworks(shallow, net, test_part, test_part)
    known._accuracy = np.array([0.9, 0.8, 0.3, 0.6])  # the deeper the better, so all count
    for backbone in [net.backbone, *shallow]:
        found = known.at(backbone.macs.total)
        real = measure(whole_network(backbone, action_unit), test_part)
        assert np.array_equal(found.correct, real.correct)
        assert np.array_equal(found.macs, real.macs)
        assert found.units_run == real.units_run == backbone.depth * (1 if action_unit == "block" else 2)
        assert found.dense_macs == net.backbone.macs.total
        assert np.array_equal(found.difficulty, real.difficulty)


@pytest.mark.parametrize("depths", [(1, 2), (2, 4)])
def test_the_pair_is_chosen_on_validation(
    net: DynamicViT, shallow: list[ViT], validation: Dataset, test_part: Dataset, depths: tuple[int, int]
) -> None:
    """Three blocks are worse than a mixture of two and four there."""
    rivals = StaticNetworks(shallow, net, validation, test_part)
    costs = [vit(depth).macs.total for depth in depths]
    target = 0.4 * costs[0] + 0.6 * costs[1]
    found = rivals.at(target)
    assert set(found.keep_mask.sum(1)) == set(depths)
    assert found.macs.mean() == pytest.approx(target, rel=0.01)
    assert set(found.macs) == set(costs)


def test_outside_their_range_the_nearest(
    net: DynamicViT, shallow: list[ViT], validation: Dataset, test_part: Dataset
) -> None:
    rivals = StaticNetworks(shallow, net, validation, test_part)
    assert set(rivals.at(1.0).keep_mask.sum(1)) == {1}
    assert set(rivals.at(1e12).keep_mask.sum(1)) == {4}


def test_they_stand_beside_the_other_rivals(
    net: DynamicViT, shallow: list[ViT], validation: Dataset, test_part: Dataset
) -> None:
    networks = {"shallow nets": shallow, "one net": shallow[:1]}
    target = 0.9 * net.backbone.macs.total
    found = Rivals(net, validation, test_part, networks=networks).at(target, target)
    assert list(found) == ["random skip", "first k", "early exit", "early exit, falling", "shallow nets", "one net"]
    assert found["shallow nets"].macs.mean() == pytest.approx(target, rel=0.01)
    evaluation = evaluate(net, validation, test_part, networks=networks)
    assert list(evaluation.rivals) == list(found)
    expected = StaticNetworks(shallow, net, validation, test_part).at(float(evaluation.net.macs.mean()))
    assert np.array_equal(evaluation.rivals["shallow nets"].correct, expected.correct)


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_prefixes_that_one_pass_has_measured_are_as_if_they_were_run(
    shallow: list[ViT], test_part: Dataset, action_unit: ActionUnit
) -> None:
    net, validation = make_net("early-exit", action_unit, backbone=vit(4)), load_dataset("tiny-digits", "validation")
    rivals = Rivals(net, validation, test_part, networks={"shallow nets": shallow})
    units = num_units(net.backbone, action_unit)
    for count in range(units + 1):
        keep = tuple(unit < count for unit in range(units))
        found, real = rivals._measure_mask(keep), rivals._measure(fixed_mask(rivals.layout, keep), "static mask")
        assert np.array_equal(found.correct, real.correct)
        assert np.array_equal(found.keep_mask, real.keep_mask)
        assert np.array_equal(found.macs, real.macs)
        assert found.summary() == real.summary()
    alone = StaticNetworks(shallow, net, validation, test_part)
    assert np.array_equal(rivals.networks["shallow nets"]._accuracy, alone._accuracy)
    assert np.array_equal(rivals.networks["shallow nets"].at(1e12).correct, alone.at(1e12).correct)


def test_a_net_of_another_width_and_more_blocks(net: DynamicViT, test_part: Dataset) -> None:
    wide = ViT(image_size=16, patch_size=8, embed_dim=24, depth=6, num_heads=3, mlp_ratio=2).eval()  # images resized
    rivals = StaticNetworks([wide], net, test_part, test_part)
    rivals._accuracy = np.array([0.1, 0.9])
    found = rivals.at(1e12)
    assert found.units_run == 6
    assert found.macs_fraction == pytest.approx(wide.macs.total / net.backbone.macs.total)


def test_other_classes_are_refused(net: DynamicViT, test_part: Dataset) -> None:
    with pytest.raises(ValueError, match="networks: expected 10 classes, got one with 5"):
        Rivals(net, test_part, replace(test_part), networks={"mine": [vit(2, num_classes=5)]})
