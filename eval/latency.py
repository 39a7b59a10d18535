"""How long each unit of a backbone takes, as a price for agents: what MACs say of (half-)blocks, a clock may not."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..agents.adaptation import wall_time
from ..backbone import Backbone
from ..backbone.protocol import ActionUnit, num_units, unit_runner
from ..envs.cost import LATENCY_FORMAT
from .grid import Grid


@dataclass(frozen=True)
class Latency:
    """What was measured, and how.

    Attributes:
        seconds: of each unit on a batch, float64 [U].
        macs: of each unit on one image, int64 [U].
        action_unit: "block" or "half".
        batch_size: images in a batch.
        device: as PyTorch names it.
    """

    seconds: NDArray[np.float64]
    macs: NDArray[np.int64]
    action_unit: ActionUnit
    batch_size: int
    device: str

    def summary(self) -> dict[str, Any]:
        """JSON values that `cost="latency:FILE"` reads."""
        return {
            "format": LATENCY_FORMAT,
            "action_unit": self.action_unit,
            "batch_size": self.batch_size,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "macs": self.macs.tolist(),
            "seconds": self.seconds.tolist(),
        }

    def grid(self) -> Grid:
        """A row for each unit."""
        times, macs = self.seconds / self.seconds.sum(), self.macs / self.macs.sum()
        return Grid(
            f"latency of each {'half-block' if self.action_unit == 'half' else 'block'}, "
            f"batches of {self.batch_size} on {self.device}",
            ["unit", "ms", "share of the time [%]", "of the MACs [%]"],
            [
                [str(unit), f"{1e3 * seconds:.3f}", f"{100 * time:.1f}", f"{100 * share:.1f}"]
                for unit, (seconds, time, share) in enumerate(zip(self.seconds, times, macs, strict=True))
            ],
        )


@torch.inference_mode()
def unit_latency(
    backbone: Backbone,
    images: UInt8[Tensor, "N 3 H W"],
    *,
    action_unit: ActionUnit = "block",
    batch_size: int = 64,
    rounds: int = 40,
    seed: int = 0,
) -> Latency:
    """Time each unit, one after the other, on the tokens that it gets of real images when all units run.

    The fastest of all rounds counts, as what else the machine does can only add to it.

    Args:
        backbone: in eval mode.
        images: drawn anew for each round; repeated where a batch needs more.
        action_unit: "block" or "half".
        batch_size: images in a batch.
        rounds: through all units.
        seed: of the choice of images.

    Raises:
        ValueError: if the batch is empty or there is no round.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(f"batch_size, rounds: expected at least 1, got {batch_size} and {rounds}")
    device, generator = next(backbone.parameters()).device, torch.Generator().manual_seed(seed)
    units = [partial(unit_runner(backbone, action_unit), unit) for unit in range(num_units(backbone, action_unit))]
    seconds = np.zeros((rounds, len(units)))
    for measured in tqdm(seconds, desc="latency", unit="round", leave=False, disable=None):
        tokens = backbone.embed(images[torch.randint(len(images), (batch_size,), generator=generator)].to(device))
        for unit, run in enumerate(units):
            measured[unit] = wall_time(run, tokens)
            tokens = run(tokens)
    return Latency(seconds.min(0), np.array(backbone.macs.units(action_unit)), action_unit, batch_size, str(device))
