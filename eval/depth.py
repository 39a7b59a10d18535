"""How much each block of a backbone is worth, and for which images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backbone import Backbone, Dataset
from .prefixes import run_prefixes
from .statistics import rank_correlation

BANDS = 5


@dataclass(frozen=True)
class DepthProfile:
    """Accuracy of the first k blocks, k = 0..L.

    Attributes:
        accuracy: float64 [L + 1], of all images.
        by_difficulty: float64 [L + 1, 5], of images with difficulty in [0, 0.2), ... [0.8, 1]; NaN where unknown.
        blocks_needed: float64 [5], mean over the images of each band that the full net gets right: the least k from
            which on all prefixes are right.
        correlation: Spearman's, of that k with difficulty; NaN where unknown.
    """

    accuracy: NDArray[np.float64]
    by_difficulty: NDArray[np.float64]
    blocks_needed: NDArray[np.float64]
    correlation: float


def depth_profile(backbone: Backbone, dataset: Dataset, batch_size: int = 500) -> DepthProfile:
    """Classify every image after 0, 1, ... L blocks."""
    correct = run_prefixes(backbone, dataset, batch_size=batch_size).correct  # [L + 1, N]
    difficulty = dataset.difficulty.numpy().astype(np.float64)
    band = np.where(np.isfinite(difficulty), np.minimum(np.nan_to_num(difficulty) * BANDS, BANDS - 1), -1).astype(int)
    settled = np.logical_and.accumulate(correct[::-1])[::-1]  # right here and ever after
    needed, solved = settled.argmax(0).astype(np.float64), settled[-1]
    return DepthProfile(
        correct.mean(1),
        np.stack([_mean(correct[:, band == b].T.astype(float)) for b in range(BANDS)], 1),
        np.array([_mean(needed[(band == b) & solved]) for b in range(BANDS)]),
        rank_correlation(needed[solved], difficulty[solved]),
    )


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis; NaN where there is nothing."""
    return np.asarray(values.mean(0)) if len(values) else np.full(values.shape[1:], np.nan)
