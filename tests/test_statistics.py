"""Statistics on known arrays, and against SciPy and the plain bootstrap."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, spearmanr

from vitskip.eval.measurement import Measurement, mix
from vitskip.eval.statistics import PairedTest, geometric_mean, paired_test, rank_correlation


def classifiers(both: int, only_a: int, only_b: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where two classifiers are right, by counts of images, in a random order."""
    counts = [both, only_a, only_b, neither]
    order = np.random.default_rng(0).permutation(sum(counts))
    return np.repeat([True, True, False, False], counts)[order], np.repeat([True, False, True, False], counts)[order]


@pytest.mark.parametrize("counts", [(50, 10, 4, 36), (700, 20, 60, 220), (0, 0, 3, 1), (90, 6, 6, 18)])
def test_difference_and_p_value(counts: tuple[int, int, int, int]) -> None:
    a, b = classifiers(*counts)
    test, swapped = paired_test(a, b), paired_test(b, a)
    _, only_a, only_b, _ = counts
    assert test.difference == pytest.approx((only_a - only_b) / sum(counts)) == pytest.approx(a.mean() - b.mean())
    assert test.p_value == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert swapped.difference == -test.difference
    assert swapped.p_value == pytest.approx(test.p_value)
    assert test.low <= test.difference <= test.high


def test_mcnemar_by_hand() -> None:
    """One image against five: 2 (1 + 6) / 2^6."""
    assert paired_test(*classifiers(10, 1, 5, 4)).p_value == pytest.approx(14 / 64)
    assert paired_test(*classifiers(10, 5, 5, 0)).p_value == 1


@pytest.mark.parametrize("counts", [(500, 30, 20, 450), (60, 25, 5, 10)])
def test_the_interval_is_that_of_resampled_images(counts: tuple[int, int, int, int]) -> None:
    a, b = classifiers(*counts)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(a), size=(4000, len(a)))
    low, high = np.quantile(a[rows].mean(1) - b[rows].mean(1), [0.025, 0.975])
    test = paired_test(a, b)
    tolerance = 0.12 * (high - low)  # of two quantiles from a few thousand draws each
    assert test.low == pytest.approx(low, abs=tolerance)
    assert test.high == pytest.approx(high, abs=tolerance)
    spread = math.sqrt((counts[1] + counts[2]) / len(a) - test.difference**2) / math.sqrt(len(a))
    assert test.high - test.low == pytest.approx(2 * 1.96 * spread, rel=0.12)


def test_the_interval_follows_from_the_seed() -> None:
    a, b = classifiers(5000, 1000, 400, 3600)
    assert paired_test(a, b) == paired_test(a, b, seed=0) != paired_test(a, b, seed=1)


def test_equal_classifiers() -> None:
    a, _ = classifiers(70, 0, 0, 30)
    assert paired_test(a, a) == PairedTest(0.0, 0.0, 0.0, 1.0)


def test_no_worse_compares_the_lower_end_with_the_margin() -> None:
    assert PairedTest(-0.001, -0.004, 0.002, 0.5).no_worse()
    assert not PairedTest(-0.001, -0.006, 0.004, 0.5).no_worse()
    assert not PairedTest(-0.001, -0.005, 0.004, 0.5).no_worse()
    assert PairedTest(-0.001, -0.006, 0.004, 0.5).no_worse(margin=0.01)
    assert not PairedTest(0.01, -0.001, 0.02, 0.5).no_worse(margin=0.0)


def test_lengths_that_differ_are_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"correct_b: expected shape \(3,\), got \(2,\)"):
        paired_test(np.ones(3, bool), np.ones(2, bool))


@pytest.mark.parametrize("values", [4, 30, 1000])  # few values make many ties
def test_rank_correlation_equals_scipys(values: int) -> None:
    rng = np.random.default_rng(values)
    x = rng.integers(values, size=200).astype(float)
    y = x + rng.normal(0, values / 2, 200)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y)[0])
    assert rank_correlation(x, -y) == pytest.approx(spearmanr(x, -y)[0])
    assert rank_correlation(x, np.exp(x / values)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, np.inf, 3.0]),
        ([], []),
    ],
)
def test_rank_correlation_is_nan_where_it_is_not_defined(x: list[float], y: list[float]) -> None:
    assert math.isnan(rank_correlation(np.array(x), np.array(y)))


def test_geometric_mean() -> None:
    assert geometric_mean(np.array([1.0, 4.0])) == pytest.approx(2)
    assert geometric_mean(np.array([0.5, 2.0, 1.0])) == pytest.approx(1)
    assert geometric_mean(np.array([3.0])) == pytest.approx(3)


def network(macs: int, right: bool, count: int = 1000) -> Measurement:
    keep_mask = np.zeros((count, 4), bool)
    keep_mask[:, : macs // 100] = True
    difficulty = np.linspace(0, 1, count)
    return Measurement(np.full(count, right), keep_mask, np.full(count, macs), dense_macs=400, difficulty=difficulty)


@pytest.mark.parametrize("target", [100, 137.0, 250.5, 299, 300])
def test_mix_meets_the_target(target: float) -> None:
    low, high = network(100, right=False), network(300, right=True)
    mixed = mix(low, high, target)
    assert mixed.macs.mean() == pytest.approx(target, abs=0.11)  # an image more or less
    share = (target - 100) / 200
    assert mixed.accuracy == pytest.approx(share, abs=1e-3)
    assert mixed.units_run == pytest.approx(1 + 2 * share, abs=2e-3)
    dear = mixed.macs == 300
    assert np.array_equal(mixed.correct, dear)  # an image gets its result, its mask and its cost from one network
    assert np.array_equal(mixed.keep_mask.sum(1), np.where(dear, 3, 1))
    assert mixed.dense_macs == 400
    assert np.array_equal(mixed.difficulty, low.difficulty)


def test_what_chance_decides_tells_nothing_of_the_image() -> None:
    low, high = network(100, right=False), network(300, right=True)
    assert low.path_bits == 0
    assert mix(low, high, 200).path_bits is None
    assert mix(low, high, 100).path_bits == 0
    drawn = replace(low, drawn=True)
    assert drawn.path_bits is None
    assert mix(drawn, high, 100).path_bits is None


@pytest.mark.parametrize(("target", "macs"), [(20, 100), (5000, 300)])
def test_outside_the_range_mix_gives_the_nearer_network(target: float, macs: int) -> None:
    mixed = mix(network(100, right=False), network(300, right=True), target)
    assert (mixed.macs == macs).all()


def test_mixing_networks_of_equal_cost_gives_the_first() -> None:
    assert mix(network(100, right=False), network(100, right=True), 100).accuracy == 0


def test_mix_spreads_over_the_images_and_follows_from_the_seed() -> None:
    low, high = network(100, right=False), network(300, right=True)
    first, again, other = (mix(low, high, 200, seed=seed).correct for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert [part.mean() for part in np.split(first, 4)] == pytest.approx([0.5] * 4, abs=0.12)


def test_a_measurement_without_difficulty_has_no_correlation() -> None:
    known = network(100, right=True)
    unknown = Measurement(known.correct, known.keep_mask, known.macs, 400, np.full(1000, np.nan))
    assert math.isnan(unknown.difficulty_correlation)
    assert unknown.summary()["difficulty_correlation"] is None
