"""Training batches as a pure function of seed and step: a resumed or divided run sees the very same ones."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .augment import Augmentation, draw
from .datasets import Dataset


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step.

    Attributes:
        images: float32 [B, 3, H, W] in [0, 1], on the device.
        targets: float32 [B, K], class probabilities, on the device.
        keep_mask: bool [B, U], on the CPU.
        full_rows: int64 [R], ascending, the rows whose full path is trained as well; on the device.
    """

    images: Float[Tensor, "B 3 H W"]
    targets: Float[Tensor, "B K"]
    keep_mask: Bool[Tensor, "B U"]
    full_rows: Int64[Tensor, " R"]


class Batches:
    """All batches of a run, by step; the images stay on the device, and are augmented there.

    Args:
        train: images and labels, on the device where they are wanted.
        augmentation: of the images.
        batch_size: of all processes together; images left over by an epoch are left out of it.
        share: this process's rows of each batch.
        units: columns U of the keep-masks.
        always: leading units that every image runs.
        full_share: share of the images whose full path is trained as well.
        seed: of order, augmentation and masks.
    """

    def __init__(
        self,
        train: Dataset,
        augmentation: Augmentation,
        batch_size: int,
        share: slice,
        *,
        units: int,
        always: int,
        full_share: float,
        seed: int,
    ) -> None:
        self.train, self.augmentation, self.batch_size, self.share = train, augmentation, batch_size, share
        self.units, self.always, self.seed = units, always, seed
        self.steps_per_epoch = len(train) // batch_size
        self._full_rows = spread_rows(batch_size, full_share, share).to(train.images.device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.train), generator=_generator(self.seed, 2 * epoch))
            self._epoch, self._order = epoch, order.to(self.train.images.device)
        generator = _generator(self.seed, 2 * step + 1)
        keep_mask = sample_keep_mask(self.batch_size, self.units, self.always, generator)
        draws = draw(self.batch_size, generator)
        rows = self._order[position * self.batch_size :][: self.batch_size][self.share]
        labels, num_classes = self.train.labels[rows], len(self.train.classes)
        images, targets = self.augmentation.apply(self.train.images[rows], labels, num_classes, draws[self.share])
        return Batch(images, targets, keep_mask[self.share], self._full_rows)

    def throughput(self, seconds: float = 0.3) -> float:
        """How fast batches are made when nothing else is done [images/s]."""
        device = self.train.images.device
        start = time.perf_counter()
        step = 0
        while step < 2 or time.perf_counter() - start < seconds:
            self[step % self.steps_per_epoch]
            step += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rows = len(range(self.batch_size)[self.share])
        return step * rows / (time.perf_counter() - start)


def sample_keep_mask(batch_size: int, units: int, always: int, generator: torch.Generator) -> Bool[Tensor, "B U"]:
    """Draw a keep rate in [0, 1] for each image, then its mask.

    Args:
        batch_size: rows B.
        units: columns U.
        always: leading units that every image runs.
        generator: on the CPU.
    """
    draw = torch.rand(batch_size, units + 1, generator=generator)
    keep_mask = draw[:, 1:] < draw[:, :1]
    keep_mask[:, :always] = True
    return keep_mask


def spread_rows(batch_size: int, full_share: float, share: slice) -> Int64[Tensor, " R"]:
    """Evenly spread rows of a batch, the first one among them; of those, the ones in a process's share of it."""
    ends = (torch.arange(batch_size + 1) * full_share).ceil()
    return (ends[1:] > ends[:-1])[share].nonzero().squeeze(1)


def _generator(seed: int, stream: int) -> torch.Generator:
    """PyTorch's CPU generator looks at 32 bits of its seed only, so both numbers are hashed into them."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]))
