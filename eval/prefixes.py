"""What the head says after the first k units, for every k in one pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..backbone import Backbone, Dataset
from ..backbone.protocol import ActionUnit, num_units, unit_runner


@dataclass(frozen=True)
class Prefixes:
    """N images after 0, 1, ... U units.

    Attributes:
        correct: whether the head is right, bool [U + 1, N].
        confidence: its top probability, float32 [U + 1, N].
    """

    correct: NDArray[np.bool_]
    confidence: NDArray[np.float32]

    def exit_units(self, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Units that confidence early exit runs on each image, int64 [N]: as `EarlyExitRule`.

        Args:
            thresholds: before each unit [U].
        """
        confident = np.concatenate([self.confidence[:-1] >= thresholds[:, None], np.ones_like(self.correct[-1:])])
        return confident.argmax(0)


@torch.no_grad()
def run_prefixes(
    backbone: Backbone, dataset: Dataset, action_unit: ActionUnit = "block", batch_size: int = 500
) -> Prefixes:
    """Classify every image after each unit of the full network."""
    dataset.check_fits(backbone)
    device = next(backbone.parameters()).device
    run = unit_runner(backbone, action_unit)
    correct, confidence = [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="prefixes", leave=False, disable=None):
        labels = dataset.labels[start : start + batch_size]
        tokens = backbone.embed(dataset.images[start : start + batch_size].to(device))
        logits = [backbone.classify(tokens)]
        for index in range(num_units(backbone, action_unit)):
            tokens = run(index, tokens)
            logits.append(backbone.classify(tokens))
        top = torch.stack(logits).float().softmax(2).max(2)  # [U + 1, B]
        correct.append(top.indices.cpu() == labels)
        confidence.append(top.values.cpu())
    return Prefixes(torch.cat(correct, 1).numpy(), torch.cat(confidence, 1).numpy())
