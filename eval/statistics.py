"""Statistics for paired comparisons on the same images."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest, rankdata
from scipy.stats import t as student_t

RESAMPLES = 2_000


@dataclass(frozen=True)
class PairedTest:
    """Accuracy of A minus accuracy of B on the same images.

    Attributes:
        difference: in [-1, 1].
        low: lower end of the 95% bootstrap interval.
        high: upper end.
        p_value: of McNemar's exact test that both err equally often.
    """

    difference: float
    low: float
    high: float
    p_value: float

    def no_worse(self, margin: float = 0.005) -> bool:
        """Whether A loses less than `margin` to B with 97.5% confidence (non-inferiority)."""
        return self.low > -margin


def paired_test(correct_a: Bool[np.ndarray, " N"], correct_b: Bool[np.ndarray, " N"], seed: int = 0) -> PairedTest:
    """Compare two classifiers image by image.

    Args:
        correct_a: where A is right.
        correct_b: where B is right, on the same images in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: if the lengths differ.
    """
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"correct_b: expected shape {correct_a.shape}, got {correct_b.shape}")
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    count = len(correct_a)
    shares = np.array([only_a, only_b, count - only_a - only_b]) / count
    draws = np.random.default_rng(seed).multinomial(count, shares, RESAMPLES)  # the bootstrap of a three-valued score
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / count, [0.025, 0.975])
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return PairedTest((only_a - only_b) / count, float(low), float(high), p_value)


def rank_correlation(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """Spearman's correlation; NaN if either is empty or constant or holds NaN."""
    if len(x) == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def geometric_mean(values: Float[np.ndarray, " N"]) -> float:
    """Geometric mean of positive numbers."""
    return float(np.exp(np.log(values).mean()))


def mean_interval(values: Float[np.ndarray, " N"], shared_error: float = 0.0) -> tuple[float, float]:
    """95% interval of the mean of a few runs, by Student's t.

    The bootstrap's percentiles of three runs are the least and the largest of them, which hold the mean three times of
    four only.

    Args:
        values: of each run.
        shared_error: half the 95% interval of an error that all runs have in common, as that of the images on which
            all are measured; it does not shrink with their number.

    Raises:
        ValueError: if there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"values: expected at least 2, got {len(values)}")
    of_runs = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    half = math.hypot(of_runs, shared_error)
    return float(values.mean()) - half, float(values.mean()) + half
