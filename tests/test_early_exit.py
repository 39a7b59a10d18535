"""Thresholds of early exit: what they spend, and that a falling one finds what a single one cannot."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vitskip.eval.early_exit import NEVER, falling_threshold, one_threshold
from vitskip.eval.prefixes import Prefixes

COSTS = np.array([1, 11, 21, 31])  # of leaving after 0 to 3 units


def prefixes(images: int = 1000, seed: int = 0) -> Prefixes:
    """The head is as sure as it is right after the first unit; the deeper, the less sure, and as right."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.4, 1, (4, images)).astype(np.float32)
    correct = generator.uniform(0, 1, (4, images)) < confidence
    odds = np.log(confidence / (1 - confidence)) - np.array([0, 0, 2, 4])[:, None]
    return Prefixes(correct, (1 / (1 + np.exp(-odds))).astype(np.float32))


def judged(found: Prefixes, thresholds: NDArray[np.float64]) -> tuple[float, float]:
    """Accuracy and mean cost."""
    units = found.exit_units(thresholds)
    return float(found.correct[units, np.arange(len(units))].mean()), float(COSTS[units].mean())


def test_thresholds_are_those_of_their_units() -> None:
    confidence = np.array([[0.9, 0.3], [0.5, 0.4], [0.7, 0.8], [0.1, 0.2]], np.float32)
    found = Prefixes(np.ones((4, 2), bool), confidence)
    assert found.exit_units(np.array([NEVER, 0.5, 0.75])).tolist() == [1, 2]
    assert found.exit_units(np.array([0.8, 0.6, 0.9])).tolist() == [0, 3]
    assert found.exit_units(np.zeros(3)).tolist() == [0, 0]


@pytest.mark.parametrize("target", [14, 18, 24])
@pytest.mark.parametrize("choose", [one_threshold, falling_threshold])
def test_the_target_is_met(choose: Any, target: float) -> None:
    assert judged(prefixes(), choose(prefixes(), COSTS, target))[1] == pytest.approx(target, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_falling_threshold_finds_the_better_units(seed: int) -> None:
    """Near the best of all pairs of thresholds that cost no more; a single one is far behind."""
    found, target = prefixes(seed=seed), 18
    every = (judged(found, np.array([NEVER, *pair])) for pair in itertools.product(np.linspace(0, 1.01, 102), repeat=2))
    best = max(accuracy for accuracy, cost in every if cost <= target)
    thresholds = falling_threshold(found, COSTS, target)
    assert (np.diff(thresholds) < 0).all()
    assert judged(found, thresholds)[0] > best - 0.015
    assert judged(found, thresholds)[0] > judged(found, one_threshold(found, COSTS, target))[0] + 0.02


def test_a_falling_threshold_is_no_worse_than_a_single_one() -> None:
    """On the images on which both are chosen, at the same cost."""
    for seed in range(5):
        generator = np.random.default_rng(seed)
        confidence = generator.uniform(0, 1, (4, 60)).astype(np.float32)
        found = Prefixes(generator.uniform(0, 1, (4, 60)) < confidence, confidence)
        for target in (13, 20, 27):
            single, falling = (judged(found, f(found, COSTS, target)) for f in (one_threshold, falling_threshold))
            assert falling[0] >= single[0]
            assert falling[1] <= 1.002 * max(single[1], target)


def test_targets_out_of_reach_give_the_nearest() -> None:
    for choose in (one_threshold, falling_threshold):
        assert judged(prefixes(), choose(prefixes(), COSTS, 5.0))[1] == 11
        assert judged(prefixes(), choose(prefixes(), COSTS, 40.0))[1] == 31


def test_who_is_not_blind_may_leave_at_once() -> None:
    for choose in (one_threshold, falling_threshold):
        thresholds = choose(prefixes(), COSTS, 6.0, blind=False)
        assert thresholds[0] < 1
        assert judged(prefixes(), thresholds)[1] == pytest.approx(6.0, abs=0.05)
        assert judged(prefixes(), choose(prefixes(), COSTS, 0.5, blind=False))[1] == 1
