"""Data-parallel processes as `torchrun` starts them; one process alone without it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: of this process, from 0; rank 0 writes files and shows progress.
        count: number of processes.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    def share(self, batch_size: int) -> slice:
        """The rows of a global batch that are this process's.

        Raises:
            ValueError: unless the batch divides into shares of an even size (rows are mixed in pairs).
        """
        if batch_size % self.count or (self.count > 1 and batch_size // self.count % 2):
            raise ValueError(
                f"batch_size: expected a multiple of twice the {self.count} processes, got {batch_size} (it is the "
                f"global one)"
            )
        rows = batch_size // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes; every one gets it."""
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        return values


def process_rank() -> int:
    """Of this process among those that `torchrun` started; 0 without it."""
    return int(os.environ["RANK"]) if _by_torchrun() else 0


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end.

    Args:
        device: where to compute; of several GPUs each process takes its own.
    """
    if not _by_torchrun():
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
