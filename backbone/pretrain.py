"""Skip-tolerant pretraining: every image trains a random part of the depth, without rescaling.

Stochastic depth (Huang et al., 2016) per image with a keep rate that is itself drawn per image, so that the net
sees every depth from one block to all; kept rows only are computed, and a kept branch is not divided by its keep
rate, so that a skip in training is the skip of deployment.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .datasets import Dataset
from .masked import run_masked
from .protocol import Backbone


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run came to.

    Attributes:
        steps: optimiser steps.
        loss: mean training loss over the last 100 steps.
        seconds: wall time.
    """

    steps: int
    loss: float
    seconds: float


def sample_keep_mask(batch_size: int, depth: int, full_share: float, generator: torch.Generator) -> Bool[Tensor, "B L"]:
    """Draw a keep rate in [0, 1] for each image, then its mask; block 0 always runs.

    Args:
        batch_size: rows B.
        depth: columns L.
        full_share: share of the rows, in expectation, that run everything.
        generator: on the CPU.
    """
    draw = torch.rand(batch_size, depth + 2, generator=generator)
    keep_mask = (draw[:, 2:] < draw[:, :1]) | (draw[:, 1:2] < full_share)
    keep_mask[:, 0] = True
    return keep_mask


def random_shift(images: UInt8[Tensor, "B 3 H W"], pixels: int, generator: torch.Generator) -> UInt8[Tensor, "B 3 H W"]:
    """Shift each image by up to `pixels` in both directions, repeating the border."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (pixels,) * 4, mode="replicate").to(torch.uint8)
    top, left = torch.randint(2 * pixels + 1, (2, count, 1, 1), generator=generator).unbind(0)
    rows, columns = top + torch.arange(height)[:, None], left + torch.arange(width)
    batch = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def pretrain(
    vit: Backbone,
    train: Dataset,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.05,
    full_share: float = 0.2,
    shift: int = 2,
    seed: int = 0,
) -> PretrainResult:
    """Train a backbone in place to classify with any part of its blocks.

    Args:
        vit: backbone to train; left in eval mode.
        train: training images.
        epochs: passes over the images.
        batch_size: images per step.
        learning_rate: peak of a one-cycle schedule.
        weight_decay: of AdamW, on matrices only.
        label_smoothing: of the cross-entropy.
        full_share: share of the images that run every block.
        shift: augmentation, largest shift [pixels].
        seed: of order, masks and augmentation; the initial weights are the caller's.

    Raises:
        ValueError: if the data set is smaller than a batch or has other classes than the backbone.
    """
    if len(train) < batch_size or len(train.classes) != vit.num_classes:
        raise ValueError(
            f"train: expected at least {batch_size} images of {vit.num_classes} classes, "
            f"got {len(train)} of {len(train.classes)}"
        )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(_parameter_groups(vit, weight_decay), lr=learning_rate, betas=(0.9, 0.99))
    steps = epochs * (len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.15)
    device = next(vit.parameters()).device
    losses: list[float] = []
    start = time.perf_counter()
    vit.train()
    with tqdm(total=steps, desc="pretrain", unit="step", mininterval=5) as progress:
        for rows in _batches(len(train), batch_size, epochs, generator):
            images = random_shift(train.images[rows], shift, generator).to(device)
            keep_mask = sample_keep_mask(batch_size, vit.depth, full_share, generator)
            logits = run_masked(vit, images, keep_mask)
            loss = F.cross_entropy(logits, train.labels[rows].to(device), label_smoothing=label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(vit.parameters()), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.3f}", refresh=False)
            progress.update()
    vit.eval()
    recent = losses[-100:]
    return PretrainResult(steps=steps, loss=sum(recent) / len(recent), seconds=time.perf_counter() - start)


def _batches(count: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count // batch_size * batch_size].split(batch_size)


def _parameter_groups(vit: Backbone, weight_decay: float) -> list[dict[str, object]]:
    parameters = list(vit.parameters())
    return [
        {"params": [p for p in parameters if p.ndim == 2 or p.ndim == 4], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim != 2 and p.ndim != 4], "weight_decay": 0.0},
    ]
