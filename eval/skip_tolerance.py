"""What skipping costs a backbone without any agent: accuracy over compute of the static and the random ways."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agents.baselines import whole_network
from ..backbone import Backbone, Dataset
from .evaluation import validation_masks
from .rivals import Rivals


@dataclass(frozen=True)
class SkipTolerance:
    """Test accuracy at the compute of k blocks, k = 1..L.

    Attributes:
        accuracy: float64 [L] by name: random skip, first k, best static mask (chosen on validation),
            early exit with one threshold and with a falling one (their head calls counted).
        macs_fraction: float64 [L], of the dense network.
        full: accuracy of the dense network.
    """

    accuracy: dict[str, NDArray[np.float64]]
    macs_fraction: NDArray[np.float64]
    full: float

    def summary(self) -> dict[str, Any]:
        """JSON values."""
        columns = {name: column.tolist() for name, column in self.accuracy.items()}
        return {"full_accuracy": self.full, "macs_fraction": self.macs_fraction.tolist(), "accuracy": columns}


def skip_tolerance(
    backbone: Backbone, validation: Dataset, test: Dataset, static_mask_images: int = 256
) -> SkipTolerance:
    """Measure a backbone under skipping.

    Args:
        backbone: ViT.
        validation: where thresholds and masks are chosen.
        test: where the result is measured.
        static_mask_images: validation images on which all static masks are tried; 0 leaves them out.
    """
    masks = validation_masks(backbone, validation, static_mask_images) if static_mask_images else None
    rivals = Rivals(whole_network(backbone), validation, test, masks)
    macs = backbone.macs
    levels = macs.stem + macs.head + np.cumsum(macs.units("block"))
    accuracy: dict[str, list[float]] = {}
    for level in levels:
        for name, measurement in rivals.at(float(level), float(level)).items():
            accuracy.setdefault(name, []).append(measurement.accuracy)
    columns = {name: np.array(column) for name, column in accuracy.items()}
    return SkipTolerance(columns, levels / macs.dense, rivals.dense().accuracy)
