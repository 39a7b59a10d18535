"""Dense against dynamic, timed alternately on real images."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..agents.adaptation import wall_time
from ..agents.dynamic_vit import DynamicViT
from ..backbone import Backbone
from ..backbone.token_merging import unmerged
from .statistics import geometric_mean

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Timing:
    """One batch size.

    Attributes:
        batch_size: images B in a batch.
        dense: wall time of each timed batch of the dense network [s].
        dynamic: of the dynamic network, on the same images, right after [s].
        macs_fraction: of the dynamic network on these images, policy included.
        rivals: of other networks, by name, right after that [s].
    """

    batch_size: int
    dense: NDArray[np.float64]
    dynamic: NDArray[np.float64]
    macs_fraction: float
    rivals: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def dense_throughput(self) -> float:
        """[images/s], from the median."""
        return self.batch_size / float(np.median(self.dense))

    @property
    def dynamic_throughput(self) -> float:
        """[images/s], from the median."""
        return self.batch_size / float(np.median(self.dynamic))

    @property
    def speed_up(self) -> float:
        """Ratio of the medians; above 1 the dynamic network is faster."""
        return float(np.median(self.dense) / np.median(self.dynamic))

    @property
    def rival_speed_ups(self) -> dict[str, float]:
        """How many times as fast as the dense network each rival is, by name."""
        return {name: float(np.median(self.dense) / np.median(times)) for name, times in self.rivals.items()}

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the speed-up over pairs of batches."""
        low, high = np.quantile(self.dense / self.dynamic, [0.25, 0.75])
        return float(low), float(high)


@dataclass(frozen=True)
class Benchmark:
    """All batch sizes.

    Attributes:
        timings: by batch size, ascending.
    """

    timings: tuple[Timing, ...]

    @property
    def speed_ups(self) -> NDArray[np.float64]:
        return np.array([timing.speed_up for timing in self.timings])

    def summary(self) -> dict[str, Any]:
        """JSON values: per size, and arithmetic mean, geometric mean and worst size of the speed-up."""
        rows = [
            {
                "batch_size": timing.batch_size,
                "dense_images_per_s": timing.dense_throughput,
                "dynamic_images_per_s": timing.dynamic_throughput,
                "speed_up": timing.speed_up,
                "speed_up_quartiles": timing.spread,
                "ideal_speed_up": 1 / timing.macs_fraction,
                "timed_batches": len(timing.dense),
                "dense_latency_ms": _percentiles(timing.dense),
                "dynamic_latency_ms": _percentiles(timing.dynamic),
                "rival_speed_ups": timing.rival_speed_ups,
            }
            for timing in self.timings
        ]
        worst = self.timings[int(self.speed_ups.argmin())]
        return {
            "threads": torch.get_num_threads(),
            "sizes": rows,
            "speed_up_mean": float(self.speed_ups.mean()),
            "speed_up_geometric_mean": geometric_mean(self.speed_ups),
            "speed_up_worst": worst.speed_up,
            "worst_batch_size": worst.batch_size,
        }


def benchmark(
    net: DynamicViT,
    images: UInt8[Tensor, "N 3 H W"],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 2.0,
    seed: int = 0,
    rivals: Mapping[str, Backbone] | None = None,
) -> Benchmark:
    """Time the full backbone and the dynamic network, batch by batch in turn.

    All run without gradients in eval mode on the same device-resident images, drawn anew for every batch. The first
    quarter of the batches warms up and is not counted.

    Args:
        net: its own backbone, without merging of tokens, is the dense network.
        images: real test images; repeated where a batch needs more.
        batch_sizes: images in a batch.
        seconds: roughly, for each batch size; at least 12 batches are run.
        seed: of the choice of images.
        rivals: static networks to time beside them, by name; they are moved to the device of `net`.

    Raises:
        ValueError: unless there are batch sizes, each at least 1 and there once, and the seconds are finite and not
            negative.
    """
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) < len(batch_sizes):
        raise ValueError(f"batch_sizes: expected integers of at least 1, each once, got {tuple(batch_sizes)}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds: expected a finite number of at least 0, got {seconds}")
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    resident = images.to(device)
    networks = {name: network.to(device).eval() for name, network in (rivals or {}).items()}
    timings = []
    for batch_size in tqdm(sorted(batch_sizes), desc="benchmark", unit="size", leave=False, disable=None):
        dense, dynamic, fractions = [], [], []
        others: dict[str, list[float]] = {name: [] for name in networks}
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(dense) < 12:
            batch = resident[torch.randint(len(images), (batch_size,), generator=generator).to(device)]
            dense.append(wall_time(unmerged(net.backbone), batch))
            dynamic.append(wall_time(net, batch))
            assert net.last_trace is not None
            fractions.append(float(net.last_trace.macs.double().mean()) / net.backbone.macs.dense)
            for name, network in networks.items():
                others[name].append(wall_time(network, batch))
        counted = slice(len(dense) // 4, None)
        pair = np.array(dense)[counted], np.array(dynamic)[counted]
        beside = {name: np.array(times)[counted] for name, times in others.items()}
        timings.append(Timing(batch_size, *pair, float(np.mean(fractions[counted])), beside))
    return Benchmark(tuple(timings))


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    p50, p95, p99 = (1e3 * np.quantile(seconds, [0.5, 0.95, 0.99])).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}
