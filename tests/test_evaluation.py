"""Measurements, rivals at equal compute, depth profiles, and the tables made of them."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from nets import distinct, make_net
from rich.console import Console
from rich.table import Table

from vitskip.agents import DynamicViT, baselines
from vitskip.agents.image_runner import ImageRunner
from vitskip.agents.static_masks import StaticMasks
from vitskip.backbone import Dataset, ViT, load_backbone
from vitskip.backbone.digits import digits
from vitskip.envs import ObservationLayout
from vitskip.eval import Measurement, evaluate, measure, validation_masks
from vitskip.eval.depth import depth_profile
from vitskip.eval.early_exit import falling_threshold
from vitskip.eval.prefixes import run_prefixes
from vitskip.eval.rivals import Rivals
from vitskip.eval.tables import comparison_table, depth_table

CLASSES = tuple("0123456789")


def relabelled(split: str, size: int) -> Dataset:
    """Digits; the label is what the whole tiny net says, but for a third of the images, where it is the digit."""
    images, labels, difficulty = digits(split, size)
    with torch.no_grad():
        prediction = load_backbone("tiny-vit4")(images).argmax(1)
    return Dataset(images, torch.where(torch.arange(size) % 3 > 0, prediction, labels), CLASSES, difficulty)


@pytest.fixture(scope="module")
def validation() -> Dataset:
    return relabelled("validation", 400)


@pytest.fixture(scope="module")
def test_part() -> Dataset:
    return relabelled("test", 1000)


@pytest.fixture(scope="module")
def net() -> DynamicViT:
    return make_net("early-exit")


@pytest.fixture(scope="module")
def masks(net: DynamicViT, validation: Dataset) -> StaticMasks:
    return validation_masks(net.backbone, validation, images=100)


def render(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    return text.getvalue()


def test_counts(net: DynamicViT, test_part: Dataset) -> None:
    measurement = measure(net, test_part)
    logits = net(test_part.images)
    keep_mask = net.last_trace.keep_mask.numpy()
    assert np.array_equal(measurement.correct, (logits.argmax(1) == test_part.labels).numpy())
    assert np.array_equal(measurement.keep_mask, keep_mask)
    assert np.array_equal(measurement.macs, net.last_trace.macs.numpy())
    assert measurement.accuracy == measurement.correct.mean()
    assert measurement.units_run == pytest.approx(keep_mask.sum() / 1000)
    assert measurement.dense_macs == net.backbone.macs.total
    total = net.backbone.macs.total
    assert measurement.macs_fraction == pytest.approx(net.last_trace.macs.double().mean().item() / total)
    assert measurement.distinct_paths == distinct(keep_mask) == 4
    assert np.array_equal(measurement.difficulty, test_part.difficulty.numpy().astype(np.float64))


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000, 5000])
def test_the_batch_size_does_not_matter(net: DynamicViT, test_part: Dataset, batch_size: int) -> None:
    part = Dataset(test_part.images[:100], test_part.labels[:100], CLASSES, test_part.difficulty[:100])
    measurement, expected = measure(net, ImageRunner(part, batch_size)), measure(net, part)
    for name in ("correct", "keep_mask", "macs"):
        assert np.array_equal(getattr(measurement, name), getattr(expected, name))


def test_run_all_costs_exactly_what_dense_does(net: DynamicViT, test_part: Dataset) -> None:
    dense = measure(baselines.whole_network(net.backbone), test_part)
    assert dense.macs_fraction == 1
    assert (dense.distinct_paths, dense.units_run) == (1, 4)
    assert math.isnan(dense.difficulty_correlation)
    with torch.no_grad():
        expected = (net.backbone(test_part.images).argmax(1) == test_part.labels).double().mean()
    assert dense.accuracy == pytest.approx(expected.item())


def test_difficulty_correlates_with_units_run() -> None:
    keep_mask = np.arange(4) < np.array([[1], [2], [3], [4]])
    macs, difficulty = np.array([1, 2, 3, 4]), np.array([0.1, 0.2, 0.3, 0.4])
    rising = Measurement(np.ones(4, bool), keep_mask, macs, 4, difficulty)
    assert rising.difficulty_correlation == pytest.approx(1)
    assert replace(rising, difficulty=difficulty[::-1]).difficulty_correlation == pytest.approx(-1)
    assert rising.summary() == {
        "images": 4,
        "accuracy": 1.0,
        "units_run": 2.5,
        "macs_fraction": 0.625,
        "distinct_paths": 4,
        "path_bits": pytest.approx(2 + 3 / (8 * math.log(2))),
        "difficulty_correlation": pytest.approx(1),
        "run_rate": [1.0, 0.75, 0.5, 0.25],
    }


@pytest.mark.parametrize("fraction", [0.65, 0.75, 0.9])
def test_rivals_compute_as_much_as_the_network(
    net: DynamicViT, validation: Dataset, test_part: Dataset, masks: StaticMasks, fraction: float
) -> None:
    target = fraction * net.backbone.macs.total
    found = Rivals(net, validation, test_part, masks).at(target, target)
    assert list(found) == ["random skip", "first k", "best static mask", "early exit", "early exit, falling"]
    for name in ("random skip", "first k", "best static mask"):
        assert found[name].macs.mean() == pytest.approx(target, rel=0.02), name
    first, best = found["first k"].keep_mask, found["best static mask"].keep_mask
    assert (first[:, :-1] >= first[:, 1:]).all()  # prefixes
    assert {tuple(mask) for mask in best.tolist()} <= {tuple(masks.best(k).tolist()) for k in range(5)}
    assert len(np.unique(best, axis=0)) == 2
    assert found["random skip"].distinct_paths == 8 and found["random skip"].keep_mask[:, 0].all()


def test_targets_out_of_reach_give_the_nearest(net: DynamicViT, validation: Dataset, test_part: Dataset) -> None:
    rivals = Rivals(net, validation, test_part)
    found = rivals.at(1e9, 1e9)
    assert list(found) == ["random skip", "first k", "early exit", "early exit, falling"]
    assert all(rival.keep_mask.all() for rival in found.values())
    found = rivals.at(1.0, 1.0)
    assert not found["first k"].keep_mask.any()
    for name in ("random skip", "early exit"):
        assert found[name].keep_mask.sum(1).tolist() == [1] * 1000  # unit 0 always runs


@pytest.mark.parametrize("fraction", [0.6, 0.8, 0.95])
def test_early_exit_is_tuned_to_the_target(net: DynamicViT, validation: Dataset, fraction: float) -> None:
    target = fraction * net.backbone.macs.total
    tuned = Rivals(net, validation, validation).early_exit(target)
    assert tuned.macs.mean() == pytest.approx(target, rel=0.02)


def test_early_exit_is_tuned_on_validation_alone(net: DynamicViT, validation: Dataset, test_part: Dataset) -> None:
    """What it does to an image depends on that image and on validation, not on the rest of the test part."""
    target = 0.8 * net.backbone.macs.total
    whole = Rivals(net, validation, test_part).early_exit(target)
    order = torch.from_numpy(np.argsort(whole.macs, kind="stable"))
    for rows in (order[:300], order[300:]):  # the cheap images, and the dear ones
        part = Dataset(test_part.images[rows], test_part.labels[rows], CLASSES, test_part.difficulty[rows])
        alone = Rivals(net, validation, part).early_exit(target)
        assert np.array_equal(alone.macs, whole.macs[rows])
        assert alone.macs.mean() != pytest.approx(target, rel=0.02)


def same(one: Measurement, other: Measurement) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("correct", "keep_mask", "macs", "difficulty")
    )


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_the_early_exit_is_one_that_really_exits(validation: Dataset, test_part: Dataset, action_unit: str) -> None:
    """Whatever shortcut it is computed by, a network with some threshold does just that."""
    net = make_net("early-exit", action_unit)
    rival = Rivals(net, validation, test_part).early_exit(0.8 * net.backbone.macs.total)
    low, high, real = 0.0, 1.0, None
    for _ in range(30):
        threshold = (low + high) / 2
        policy = baselines.early_exit(net.policy.layout, threshold)
        real = measure(DynamicViT(net.backbone, policy, action_unit=action_unit).eval(), test_part)
        if real.macs.mean() == rival.macs.mean():
            break
        low, high = (threshold, high) if real.macs.mean() < rival.macs.mean() else (low, threshold)
    assert real is not None and same(rival, real)
    assert rival.distinct_paths > 2


def test_the_falling_exit_is_a_network_with_its_thresholds(validation: Dataset, test_part: Dataset) -> None:
    net = make_net("early-exit")
    macs, prefixes = net.backbone.macs, run_prefixes(net.backbone, validation)
    after = np.concatenate([[0], np.cumsum(macs.units("block"))])
    costs = macs.stem + after + (1 + np.arange(len(after))) * macs.head
    thresholds = falling_threshold(prefixes, costs, 0.7 * macs.total)
    policy = baselines.early_exit(net.policy.layout, thresholds.tolist())
    real = measure(DynamicViT(net.backbone, policy).eval(), test_part)
    assert thresholds[0] > thresholds[-1]
    assert same(Rivals(net, validation, test_part).falling_exit(0.7 * macs.total), real)
    assert real.distinct_paths > 2


def test_a_net_that_merges_may_be_left_before_its_first_unit(validation: Dataset, test_part: Dataset) -> None:
    """Block 0 has run by then; before, the belief is blind."""
    for name, blind in (("tiny-vit4", True), (toys.MERGING, False)):
        net = make_net("early-exit", backbone=load_backbone(name))
        rivals, target = Rivals(net, validation, test_part), 0.65 * net.backbone.macs.total
        for found in (rivals.early_exit(target), rivals.falling_exit(target)):
            assert (found.keep_mask[:, 0].all(), found.keep_mask[:, 0].any()) == (blind, True)


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_the_first_units_are_those_of_a_real_network(validation: Dataset, test_part: Dataset, action_unit: str) -> None:
    net = make_net("early-exit", action_unit)
    rivals = Rivals(net, validation, test_part)
    for k in (0, 1, 3, net.policy.layout.num_units):
        policy = baselines.first_k(net.policy.layout, k)
        real = measure(DynamicViT(net.backbone, policy, action_unit=action_unit).eval(), test_part)
        target = float(real.macs.mean())
        assert same(rivals.at(target, target)["first k"], real)


def test_the_best_static_mask_is_chosen_on_validation(
    net: DynamicViT, validation: Dataset, test_part: Dataset, masks: StaticMasks
) -> None:
    unlike_any = [True, False, False, True]
    known = StaticMasks(masks.keep_mask, np.where((masks.keep_mask == unlike_any).all(1), 1.0, 0.0))
    macs = net.backbone.macs
    target = float(macs.stem + macs.head + sum(macs.units("block")[:2]))
    best = Rivals(net, validation, test_part, known).at(target, target)["best static mask"]
    assert (best.keep_mask == unlike_any).all()


def test_static_masks_of_units_that_differ_in_cost_are_chosen_by_macs(validation: Dataset, test_part: Dataset) -> None:
    """Here an attention costs less than an MLP, so two masks of as many halves are not at equal compute."""
    net = make_net("early-exit", "half")
    macs = net.backbone.macs
    cheap, dear = macs.units("half")[:2]
    assert cheap < dear
    keep_mask = np.array([[0] * 8, [1, 0] * 4, [0, 1] * 4, [1, 1, 0, 0] * 2, [1] * 8], bool)
    known = StaticMasks(keep_mask, np.array([0.1, 0.6, 0.62, 0.65, 0.9]))  # the third lies below the line
    rivals = Rivals(net, validation, test_part, known)
    fixed = macs.stem + macs.head
    for target, low, high in (
        (fixed + 4 * cheap, 1, 1),
        (fixed + 3 * cheap, 0, 1),
        (fixed + 4 * cheap + 1000, 1, 4),
        (fixed + 4 * dear, 1, 4),
        (macs.total, 4, 4),
    ):
        best = rivals.at(target, target)["best static mask"]
        used = {tuple(mask) for mask in best.keep_mask.tolist()}
        assert used == {tuple(keep_mask[low].tolist()), tuple(keep_mask[high].tolist())}
        assert best.macs.mean() == pytest.approx(target, rel=2e-3)


def test_no_more_compute_than_pays_on_validation(net: DynamicViT, validation: Dataset, test_part: Dataset) -> None:
    keep_mask = np.array([[0] * 4, [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4], bool)
    known = StaticMasks(keep_mask, np.array([0.1, 0.8, 0.8, 0.7]))
    best = Rivals(net, validation, test_part, known).at(1e9, 1e9)["best static mask"]
    assert (best.keep_mask == keep_mask[1]).all()


def test_a_net_of_one_block_is_skipped_at_random_nowhere(validation: Dataset, test_part: Dataset) -> None:
    vit = ViT(image_size=32, num_classes=10, embed_dim=8, depth=1, num_heads=2, mlp_ratio=1.0, patch_size=16).eval()
    net = baselines.whole_network(vit)
    assert Rivals(net, validation, test_part).random(vit.macs.total).keep_mask.all()


def test_half_blocks_have_static_masks(validation: Dataset, test_part: Dataset, masks: StaticMasks) -> None:
    half = make_net("early-exit", "half")
    target = 0.7 * half.backbone.macs.total
    found = Rivals(half, validation, test_part, validation_masks(half.backbone, validation, 50, "half"))
    for name, rival in found.at(target, target).items():
        assert rival.keep_mask.shape == (1000, 8)
        if name != "early exit":
            assert rival.macs.mean() == pytest.approx(target, rel=0.02), name
    with pytest.raises(ValueError, match="static_masks: expected masks of 8 units, got 4"):
        Rivals(half, validation, test_part, masks)


@pytest.mark.parametrize(("depth", "action_unit"), [(13, "block"), (7, "half")])
def test_what_cannot_be_enumerated_is_searched(validation: Dataset, depth: int, action_unit: str) -> None:
    deep = ViT(image_size=32, patch_size=16, embed_dim=8, depth=depth, num_heads=1).eval()
    found = validation_masks(deep, validation, 10, action_unit)
    units = deep.depth * (1 if action_unit == "block" else 2)
    assert found.keep_mask.shape[1] == units
    assert set(found.keep_mask.sum(1)) == set(range(units + 1))
    assert len(found.keep_mask) < 2000


def test_masks_are_tried_on_at_least_one_image(net: DynamicViT, validation: Dataset) -> None:
    with pytest.raises(ValueError, match="images: expected at least 1, got -3"):
        validation_masks(net.backbone, validation, images=-3)


def test_an_evaluation_holds_everything(
    net: DynamicViT, validation: Dataset, test_part: Dataset, masks: StaticMasks
) -> None:
    evaluation = evaluate(net, validation, test_part, masks)
    assert np.array_equal(evaluation.net.correct, measure(net, test_part).correct)
    assert evaluation.dense.macs_fraction == 1
    for name in ("random skip", "first k", "best static mask"):
        assert evaluation.rivals[name].macs_fraction == pytest.approx(evaluation.net.macs_fraction, rel=0.02)
    early = evaluation.rivals["early exit"]  # the net is an early exit itself
    assert early.accuracy == pytest.approx(evaluation.net.accuracy, abs=0.01)
    assert early.macs_fraction == pytest.approx(evaluation.net.macs_fraction, rel=0.02)

    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    keys = {"net", "dense", "references", "rivals", "net_minus", "oracles", "oracle_minus_net"}
    keys.add("no_worse_by_half_a_point")
    assert set(summary) == keys
    assert set(summary["rivals"]) == set(evaluation.rivals)
    assert set(summary["net_minus"]) == {"dense", *evaluation.rivals}
    minus_dense = summary["net_minus"]["dense"]
    assert set(minus_dense) == {"difference", "low", "high", "p_value"}
    assert minus_dense["difference"] == pytest.approx(evaluation.net.accuracy - evaluation.dense.accuracy)
    assert summary["no_worse_by_half_a_point"]["dense"] == (minus_dense["low"] > -0.005)
    assert summary["net"]["images"] == 1000

    for criterion in ("agrees", "settled", "correct"):
        oracle = evaluation.oracles[criterion]
        assert evaluation.codebook is not None and oracle.macs.mean() <= evaluation.net.macs.mean()
        assert summary["oracles"][criterion]["accuracy"] == oracle.accuracy
        gap = summary["oracle_minus_net"][criterion]["difference"]
        assert gap == pytest.approx(oracle.accuracy - evaluation.net.accuracy)
    assert {tuple(masks.best(3).tolist()), (True, True, True, False)} <= set(
        map(tuple, evaluation.codebook.keep_mask.tolist())
    )

    text = render(comparison_table("a title", evaluation.dense, evaluation.rows("mine")))
    for name in ("a title", "run-all (dense)", "mine", *evaluation.rivals, "oracle (settled)"):
        assert name in text
    assert f"{100 * evaluation.net.accuracy:.1f}" in text
    assert "+0.00 [+0.00, +0.00]" in text  # dense against itself


def test_the_depth_profile_follows_the_prefixes(test_part: Dataset) -> None:
    backbone = load_backbone("tiny-vit4")
    layout = ObservationLayout.of(backbone, "belief", "block")
    profile = depth_profile(backbone, test_part, batch_size=300)
    correct = np.stack(
        [measure(DynamicViT(backbone, baselines.first_k(layout, k)).eval(), test_part).correct for k in range(5)]
    )
    assert profile.accuracy.tolist() == pytest.approx(correct.mean(1).tolist())
    with torch.no_grad():
        whole = (backbone(test_part.images).argmax(1) == test_part.labels).double().mean().item()
    assert profile.accuracy[4] == pytest.approx(whole)
    difficulty = test_part.difficulty.numpy()
    for band in range(5):
        inside = (difficulty >= band / 5) & (difficulty < (band + 1) / 5)
        assert profile.by_difficulty[:, band].tolist() == pytest.approx(correct[:, inside].mean(1).tolist())
        needed = [min(k for k in range(5) if correct[k:, row].all()) for row in np.flatnonzero(inside & correct[-1])]
        assert profile.blocks_needed[band] == pytest.approx(np.mean(needed))
    text = render(depth_table(profile))
    assert all(f"{100 * value:.1f}" in text for value in profile.accuracy)


def test_a_depth_profile_without_difficulty(test_part: Dataset) -> None:
    unknown = replace(test_part, difficulty=torch.full((1000,), torch.nan))
    profile = depth_profile(load_backbone("tiny-vit4"), unknown)
    assert profile.accuracy.tolist() == depth_profile(load_backbone("tiny-vit4"), test_part).accuracy.tolist()
    assert np.isnan(profile.by_difficulty).all() and np.isnan(profile.blocks_needed).all()
    assert math.isnan(profile.correlation)
    assert "nan" not in render(depth_table(profile))


def test_a_depth_profile_of_a_net_that_is_never_right(test_part: Dataset) -> None:
    with torch.no_grad():
        prediction = load_backbone("tiny-vit4")(test_part.images).argmax(1)
    profile = depth_profile(load_backbone("tiny-vit4"), replace(test_part, labels=(prediction + 1) % 10))
    assert profile.accuracy[4] == 0
    assert np.isnan(profile.blocks_needed).all()
    assert math.isnan(profile.correlation)
    render(depth_table(profile))
