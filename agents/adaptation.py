"""Where deciding does not pay: in small batches a decision may cost more time than the unit that it saves."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from ..backbone.token_merging import unmerged
from .dynamic_vit import DynamicViT

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WARM_UP = 3  # rounds that are not counted


def adapt(
    net: DynamicViT, images: Shaped[Tensor, "N 3 H W"], *, batch_sizes: Sequence[int] = BATCH_SIZES, rounds: int = 20
) -> dict[int, float]:
    """Let a network decide only in batches where that is faster on this machine than to run all units on all tokens.

    Both are timed in turn on the same images. What comes out belongs to this machine, its number of threads and this
    budget, and is not saved; accuracy in small batches becomes that of the network's full path without merging.

    Args:
        net: in eval mode; its `undecided_sizes` are set.
        images: real ones, as skipping depends on them; repeated where a batch needs more.
        batch_sizes: powers of two; between them the nearer one counts, and larger batches are decided.
        rounds: timed for each size.

    Returns:
        How many times as fast as running all units the decisions are, the ratio of the medians, by batch size.

    Raises:
        ValueError: if a batch size is not a power of two, or there is no round to time.
    """
    if any(size < 1 or size & (size - 1) for size in batch_sizes):
        raise ValueError(f"batch_sizes: expected powers of two, got {tuple(batch_sizes)}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    net.undecided_sizes = frozenset()
    resident = images.to(next(net.parameters()).device)
    speed_ups = {size: _speed_up(net, resident, size, rounds) for size in batch_sizes}
    net.undecided_sizes = frozenset(size for size, speed_up in speed_ups.items() if speed_up < 1)
    return speed_ups


@torch.no_grad()
def _speed_up(net: DynamicViT, images: Shaped[Tensor, "N 3 H W"], size: int, rounds: int) -> float:
    """Median time of the full path over that of the decided one."""
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(WARM_UP + rounds):
        batch = images[torch.randint(len(images), (size,), generator=generator).to(images.device)]
        seconds.append([wall_time(run, batch) for run in (unmerged(net.backbone), net)])
    whole, decided = np.median(seconds[WARM_UP:], axis=0)
    return float(whole / decided)


@torch.inference_mode()
def wall_time(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Seconds that a network takes for a batch in inference mode, those that its device still works included."""
    _synchronize(images.device)
    start = time.perf_counter()
    run(images)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
