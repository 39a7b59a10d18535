"""What a network did to each image of a split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agents.dynamic_vit import DynamicViT
from ..agents.image_runner import ImageRunner
from ..backbone import Dataset
from .frontier import path_information
from .statistics import rank_correlation


@dataclass(frozen=True)
class Measurement:
    """One network on N images.

    Attributes:
        correct: bool [N].
        keep_mask: units that ran, bool [N, U].
        macs: of each image with policy and every use of the head, int64 [N].
        dense_macs: of the dense network on one image.
        difficulty: [N], NaN where unknown.
        drawn: whether chance has a part in an image's path: of a policy that samples, and of a mixture.
    """

    correct: NDArray[np.bool_]
    keep_mask: NDArray[np.bool_]
    macs: NDArray[np.int64]
    dense_macs: int
    difficulty: NDArray[np.float64]
    drawn: bool = False

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def units_run(self) -> float:
        """Mean number of units that ran."""
        return float(self.keep_mask.sum(1).mean())

    @property
    def macs_fraction(self) -> float:
        """Mean MACs over those of the dense network, policy included."""
        return float(self.macs.mean() / self.dense_macs)

    @property
    def distinct_paths(self) -> int:
        return len(np.unique(self.keep_mask, axis=0))

    @property
    def path_bits(self) -> float | None:
        """Mutual information of image and path [bits]; None where paths are drawn, whose frequencies do not tell."""
        return None if self.drawn else path_information(self.keep_mask)

    @property
    def difficulty_correlation(self) -> float:
        """Spearman's correlation of units run with difficulty; NaN where undefined."""
        return rank_correlation(self.keep_mask.sum(1).astype(float), self.difficulty)

    def summary(self) -> dict[str, Any]:
        """The numbers above as JSON values."""
        correlation = self.difficulty_correlation
        return {
            "images": len(self.correct),
            "accuracy": self.accuracy,
            "units_run": self.units_run,
            "macs_fraction": self.macs_fraction,
            "distinct_paths": self.distinct_paths,
            "path_bits": self.path_bits,
            "difficulty_correlation": None if np.isnan(correlation) else correlation,
            "run_rate": self.keep_mask.mean(0).tolist(),
        }


def measure(net: DynamicViT, images: Dataset | ImageRunner, description: str = "evaluate") -> Measurement:
    """Run a network over a split.

    Args:
        net: in eval mode.
        images: the split, or what runs networks over it.
        description: of the progress bar, which vanishes at the end.
    """
    run = ImageRunner(images) if isinstance(images, Dataset) else images
    prediction, trace = run(net, description)
    return Measurement(
        (prediction == run.dataset.labels.cpu()).numpy(),
        trace.keep_mask.numpy(),
        trace.macs.numpy(),
        net.backbone.macs.dense,
        run.dataset.difficulty.numpy().astype(np.float64),
        drawn=net.policy.rule.samples,
    )


def mix(low: Measurement, high: Measurement, target_macs: float, seed: int = 0) -> Measurement:
    """Give a random part of the images to each of two networks, so that the mean compute meets a target.

    That is what a user with two static networks can do at any budget between them; the comparison at equal compute
    is exact in expectation. Outside their range the nearer one is returned.

    Args:
        low: the cheaper network.
        high: the dearer one, on the same images.
        target_macs: wanted mean.
        seed: of the assignment.
    """
    cheap, dear = low.macs.mean(), high.macs.mean()
    share = 0.0 if dear <= cheap else float(np.clip((target_macs - cheap) / (dear - cheap), 0, 1))
    chosen = np.random.default_rng(seed).permutation(len(low.correct)) < round(share * len(low.correct))
    return Measurement(
        np.where(chosen, high.correct, low.correct),
        np.where(chosen[:, None], high.keep_mask, low.keep_mask),
        np.where(chosen, high.macs, low.macs),
        low.dense_macs,
        low.difficulty,
        drawn=low.drawn or high.drawn or bool(chosen.any() and not chosen.all()),
    )
