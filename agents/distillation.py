"""A planner taught by a sequential agent: all decisions from one look, as the agent would take them one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..backbone.paths import units_of_block_0
from ..envs.observation import ObservationKind, ObservationLayout
from .dynamic_vit import DynamicViT
from .policy import Policy


@dataclass(frozen=True)
class DistillConfig:
    """How the planner learns.

    Attributes:
        paths: size of the codebook, the teacher's most frequent paths; 0 decides each unit apart.
        look_after: blocks that always run before the planner looks; 0 takes half of what the teacher runs on average.
        observation: what the planner sees then: "belief", "confidence" or "tokens".
        widths: hidden units of each layer.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: of Adam, falling linearly to zero.
        weight_decay: of AdamW.
        seed: of weights and order.

    Raises:
        ValueError: for a number outside its range.
    """

    paths: int = 0
    look_after: int = 0
    observation: ObservationKind = "belief"
    widths: tuple[int, ...] = (64, 64)
    steps: int = 2_000
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "paths": (self.paths >= 0, "at least 0"),
            "look_after": (self.look_after >= 0, "at least 0"),
            "widths": (all(width >= 1 for width in self.widths), "at least 1 each"),
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "more than 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
        }
        for name, (inside, expected) in ranges.items():
            if not inside:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")


def distill(
    teacher: DynamicViT, images: Shaped[Tensor, "N 3 H W"], config: DistillConfig, *, progress_bar: bool = True
) -> DynamicViT:
    """Train a planner to choose the paths that a sequential agent takes.

    Args:
        teacher: a trained sequential net; its backbone is shared with the result.
        images: of the training part.
        config: how.
        progress_bar: show one.

    Returns:
        A net that runs the first blocks, looks once, and then runs the chosen units only.

    Raises:
        ValueError: if the teacher decides up front itself.
    """
    if teacher.policy.look_after:
        raise ValueError("teacher: expected a sequential agent, got one that decides up front itself")
    torch.manual_seed(config.seed)
    layout = ObservationLayout.of(teacher.backbone, config.observation, teacher.action_unit)
    taught = _teach(teacher, images, progress_bar)
    half = taught.float().mean(0).sum().item() / units_of_block_0(teacher.action_unit) / 2
    look_after = config.look_after or max(1, round(half))
    taught[:, : look_after * units_of_block_0(teacher.action_unit)] = True
    paths = frequent_paths(taught, config.paths) if config.paths else None
    codebook = None if paths is None else paths.tolist()
    policy = Policy("plan", layout, widths=list(config.widths), paths=codebook, look_after=look_after)
    student = DynamicViT(teacher.backbone, policy, action_unit=teacher.action_unit).to(taught.device)
    observations = torch.cat([student.look(batch.to(taught.device)) for batch in images.split(500)])
    targets = taught.float() if paths is None else nearest_path(taught, paths)
    _fit(policy, observations, targets, config, progress_bar)
    return student.eval()


def _teach(teacher: DynamicViT, images: Shaped[Tensor, "N 3 H W"], progress_bar: bool) -> Bool[Tensor, "N U"]:
    device, masks = next(teacher.parameters()).device, []
    for batch in tqdm(images.split(500), desc="teacher", leave=False, disable=None if progress_bar else True):
        teacher(batch.to(device))
        assert teacher.last_trace is not None
        masks.append(teacher.last_trace.keep_mask)
    return torch.cat(masks)


def _fit(
    policy: Policy, observations: Float[Tensor, "N O"], targets: Tensor, config: DistillConfig, progress_bar: bool
) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    for step in tqdm(range(config.steps), desc="planner", leave=False, disable=None if progress_bar else True):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps)
        rows = torch.randint(len(observations), (config.batch_size,), generator=generator).to(observations.device)
        scores, wanted = policy.log_odds(observations[rows])[0], targets[rows]
        units = wanted.is_floating_point()
        loss = F.binary_cross_entropy_with_logits(scores, wanted) if units else F.cross_entropy(scores, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def frequent_paths(keep_mask: Bool[Tensor, "N U"], count: int) -> Bool[Tensor, "P U"]:
    """The most frequent paths, at most `count` of them, cheapest first."""
    paths, counts = np.unique(keep_mask.cpu().numpy(), axis=0, return_counts=True)
    chosen: Sequence[int] = np.argsort(-counts, kind="stable")[:count].tolist()
    ordered = sorted(chosen, key=lambda index: int(paths[index].sum()))
    return torch.from_numpy(paths[ordered]).to(keep_mask.device)


def nearest_path(keep_mask: Bool[Tensor, "N U"], paths: Bool[Tensor, "P U"]) -> Shaped[Tensor, " N"]:
    """Index of the path that differs in the fewest units; of equals the cheaper, int64 [N]."""
    return (keep_mask[:, None] != paths[None]).sum(2).argmin(1)
