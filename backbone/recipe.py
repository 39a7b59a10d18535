"""How a backbone is trained: one record, checked once."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .augment import AUGMENTATIONS
from .precision import Precision
from .registry import unknown_name

Skip = Literal["none", "block", "half", "tail"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Recipe:
    """How a backbone is trained.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step, of all processes together.
        optimizer: "adamw", or "muon" for the matrices of the blocks (Jordan et al., 2024) beside AdamW for the rest.
        learning_rate: its peak; linear warm-up, then cosine to zero.
        warmup: share of the steps.
        weight_decay: on matrices and convolutions only.
        label_smoothing: of the cross-entropy.
        clip_norm: largest norm of the gradient.
        ema_decay: of the averaged weights, which are the result.
        skip: what is skipped in training: at random "block" or "half" (attention and MLP apart), "tail" (what follows
            the first k blocks, for all k at once) or "none" (a plain net).
        full_share: share of the images whose full path is trained as well, in (0, 1]; 1 with "tail".
        distillation: weight in [0, 1] of the full path's belief in the target of the skipped one, where there is one.
        augmentation: name of a preset in `AUGMENTATIONS`.
        precision: "bfloat16" computes under autocast.
        compile: the blocks by `torch.compile`; needs a C++ compiler on a CPU. Half-blocks are not compiled.
        seed: of order, masks and augmentation; the initial weights are the caller's.

    Raises:
        ValueError: for a value outside these.
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    skip: Skip = "block"
    full_share: float = 1.0
    distillation: float = 0.5
    augmentation: str = "digits"
    precision: Precision = "float32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "optimizer": get_args(OptimizerName),
            "skip": get_args(Skip),
            "precision": get_args(Precision),
            "augmentation": tuple(AUGMENTATIONS),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise unknown_name(name, getattr(self, name), valid)
        ranges = {
            "seed": (self.seed >= 0, "at least 0"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "more than 0"),
            "warmup": (0 <= self.warmup < 1, "a share in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a share in [0, 1)"),
            "clip_norm": (self.clip_norm > 0, "more than 0"),
            "ema_decay": (0 <= self.ema_decay < 1, "a share in [0, 1)"),
            "full_share": (0 < self.full_share <= 1, "a share in (0, 1]"),
            "distillation": (0 <= self.distillation <= 1, "a share in [0, 1]"),
        }
        for name, (inside, expected) in ranges.items():
            if not inside:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")
        if self.skip == "tail" and self.full_share != 1:
            raise ValueError(f'full_share: expected 1 with skip "tail", which passes every path, got {self.full_share}')

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at a share of the steps, in [0, 1)."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        return self.learning_rate * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2
