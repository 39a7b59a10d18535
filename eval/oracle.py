"""The oracle: for each image the cheapest of a few masks that gives the full network's answer.

With every mask to choose from, some mask is right by luck (97% of images at two blocks where the full network has 70%).
So the choice is among a small codebook, and the full network's answer is to be met, not the label.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..agents.static_masks import StaticMasks, predict_masks
from ..backbone import Backbone, Dataset
from ..backbone.protocol import ActionUnit, num_units
from ..backbone.registry import unknown_name
from .measurement import Measurement
from .statistics import PairedTest, paired_test

Criterion = Literal["agrees", "settled", "correct"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


@dataclass(frozen=True)
class Codebook:
    """What each of a few masks says of each image.

    Attributes:
        keep_mask: bool [M, U], cheapest first; the last one runs all.
        macs: of each mask with stem and one call of the head, int64 [M].
        dense_macs: of the dense network.
        prediction: classes, int64 [M, N].
        labels: int64 [N].
        difficulty: of the images, [N], NaN where unknown.
    """

    keep_mask: NDArray[np.bool_]
    macs: NDArray[np.int64]
    dense_macs: int
    prediction: NDArray[np.int64]
    labels: NDArray[np.int64]
    difficulty: NDArray[np.float64]

    def oracle(self, criterion: Criterion = "agrees", macs: float | None = None) -> Measurement:
        """Choose a mask for each image, knowing what no network can know; nothing is paid for the choice.

        "agrees" takes the cheapest mask that says what the full network says, "settled" the cheapest from which on all
        dearer masks of the codebook say so too (what is left of "agrees" without luck), "correct" the cheapest that is
        right, and the cheapest of all where none is: its accuracy is inflated by luck.

        Args:
            criterion: of a good mask.
            macs: mean compute that may be spent; without it as much as needed. What is saved last is what is dearest:
                images whose good mask costs most over the cheapest mask of all get that one instead, which meets the
                criterion on as many images as any choice at this compute can.

        Raises:
            ValueError: if the criterion is unknown.
        """
        images = np.arange(len(self.labels))
        good = self._good(criterion)
        mask = good.argmax(0)  # the first one, or the cheapest of all where none is good
        if macs is not None:
            order = np.argsort(self.macs[mask], kind="stable")
            total = self.macs[0] * len(images) + (self.macs[mask[order]] - self.macs[0]).cumsum()
            mask[order[total > round(macs * len(images))]] = 0
        return Measurement(
            self.prediction[mask, images] == self.labels,
            self.keep_mask[mask],
            self.macs[mask],
            self.dense_macs,
            self.difficulty,
        )

    def gap(self, measurement: Measurement, criterion: Criterion = "agrees") -> PairedTest:
        """The oracle's accuracy minus a network's on the same images, the oracle spending no more mean compute.

        What better decisions could gain at this compute, with the same backbone and no masks beyond the codebook.
        Negative where a network is right on images that the full one gets wrong.
        """
        return paired_test(self.oracle(criterion, float(measurement.macs.mean())).correct, measurement.correct)

    def _good(self, criterion: Criterion) -> NDArray[np.bool_]:
        """Which masks meet the criterion on which images, bool [M, N]."""
        agrees = self.prediction == self.prediction[-1]
        if criterion == "agrees":
            return agrees
        if criterion == "settled":
            return np.logical_and.accumulate(agrees[::-1])[::-1]
        if criterion == "correct":
            return self.prediction == self.labels
        raise unknown_name("criterion", criterion, CRITERIA)


def codebook_masks(units: int, static_masks: StaticMasks | None = None) -> NDArray[np.bool_]:
    """The first k units, k = 1..U, and the best static mask of each number of units, bool [M, U].

    All of them run unit 0: before it the head has seen nothing of the image, and to agree is luck.

    Args:
        units: U.
        static_masks: chosen on validation.
    """
    masks = [np.tri(units, dtype=bool)]
    if static_masks is not None:
        masks += [static_masks.best(count)[None] for count in np.unique(static_masks.keep_mask.sum(1)).tolist()]
    found = np.unique(np.concatenate(masks), axis=0)
    return found[found[:, 0]]


def run_codebook(
    backbone: Backbone,
    dataset: Dataset,
    masks: NDArray[np.bool_],
    action_unit: ActionUnit = "block",
    batch_size: int = 250,
) -> Codebook:
    """Classify every image by every mask; masks that begin alike share their beginning.

    Args:
        backbone: ViT, in eval mode.
        dataset: the split.
        masks: bool [M, U], different from one another; the one that runs all is added if it is missing.
        action_unit: "block" or "half".
        batch_size: images at a time.
    """
    units = np.array(backbone.macs.units(action_unit), np.int64)
    masks = np.unique(np.concatenate([masks, np.ones((1, num_units(backbone, action_unit)), bool)]), axis=0)
    costs = (masks * units).sum(1)
    order = np.argsort(costs, kind="stable")
    device, keep_mask = next(backbone.parameters()).device, torch.from_numpy(masks[order])
    predictions = [
        predict_masks(backbone, batch.to(device), keep_mask, action_unit).cpu()
        for batch in tqdm(dataset.images.split(batch_size), desc="codebook", leave=False, disable=None)
    ]
    return Codebook(
        masks[order],
        backbone.macs.stem + costs[order] + backbone.macs.head,
        backbone.macs.dense,
        torch.cat(predictions, 1).numpy(),
        dataset.labels.numpy(),
        dataset.difficulty.numpy().astype(np.float64),
    )
