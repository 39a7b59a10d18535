"""The ViT's turns in joint training, and the same training of the full net alone, which it is to be compared with."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..backbone import Backbone, Dataset
from ..backbone.batches import Batches
from ..backbone.checkpoint import load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from ..backbone.masked import run_masked
from ..backbone.optimizers import make_optimizer
from ..backbone.precision import Precision, autocast
from ..backbone.pretrain import make_batches
from ..backbone.processes import Processes
from ..backbone.protocol import ActionUnit
from ..backbone.recipe import OptimizerName, Recipe
from ..backbone.token_merging import unmerged


@dataclass(frozen=True)
class JointConfig:
    """How agent and ViT take turns.

    Attributes:
        rounds: of the ViT; the agent learns before each and after the last.
        steps: optimiser steps of a round; an epoch where 0.
        batch_size: images per step.
        optimizer: "adamw" or "muon", as in `Recipe`.
        learning_rate: its peak in a round; linear warm-up, then cosine to zero.
        label_smoothing: of the cross-entropy.
        label_weight: of the cross-entropy; the divergence from the original full net's belief has weight 1.
        deep_supervision: weight of the same loss of what the head says on the way, after each unit that ran (Lee et
            al., 2015), on average over an image's units; costs the head alone.
        full_share: share of a step's images, in [0, 1), that take the full path instead of the agent's, so that the
            full net keeps up (as the largest width does by the sandwich rule of Yu & Huang, 2019).
        augmentation: name of a preset in `AUGMENTATIONS`.
        averaged_rounds: last rounds whose final weights are averaged (stochastic weight averaging, Izmailov et al.,
            2018); 1 takes the last one's as they are.
        precision: "bfloat16" descends under autocast; the agent's paths are drawn in float32.

    Raises:
        ValueError: for a value outside its range.
    """

    rounds: int = 4
    steps: int = 0
    batch_size: int = 128
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 3e-4
    label_smoothing: float = 0.1
    label_weight: float = 0.5
    deep_supervision: float = 0.0
    full_share: float = 0.0
    augmentation: str = "digits"
    averaged_rounds: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 0:
            raise ValueError(f"rounds, steps: expected at least 1 and 0, got {self.rounds} and {self.steps}")
        if not 1 <= self.averaged_rounds <= self.rounds:
            raise ValueError(f"averaged_rounds: expected 1..{self.rounds}, got {self.averaged_rounds}")
        for name in ("label_weight", "deep_supervision"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.full_share < 1:
            raise ValueError(f"full_share: expected a share of the images in [0, 1), got {self.full_share}")
        if self.full_share and round(self.full_share * self.batch_size) == self.batch_size:
            raise ValueError(f"full_share: expected to leave an image of {self.batch_size}, got {self.full_share}")
        self.recipe(0)

    @property
    def of_dense(self) -> "JointConfig":
        """The same for the full net alone, every image of which takes the full path anyway."""
        return replace(self, full_share=0.0)

    def recipe(self, seed: int) -> Recipe:
        """The same as a recipe of the backbone's training."""
        return Recipe(
            epochs=1,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            weight_decay=0.05,
            label_smoothing=self.label_smoothing,
            skip="none",
            augmentation=self.augmentation,
            precision=self.precision,
            seed=seed,
        )


class BackboneTuner:
    """The ViT's turns: descent on the paths that it is given, held to what the full net believed at first.

    Args:
        backbone: to train in place.
        dataset: training images, on the backbone's device.
        config: how.
        action_unit: "block" or "half".
        seed: of order and augmentation.
        progress_bar: show one for each round.

    Raises:
        ValueError: if there are fewer images than in a batch.

    Attributes:
        teacher: the full net as it was before.
        optimizer: of the backbone.
        average: of the weights after the last rounds.
        step: optimiser steps taken.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: Dataset,
        config: JointConfig,
        *,
        action_unit: ActionUnit = "block",
        seed: int = 0,
        progress_bar: bool = True,
    ) -> None:
        self.backbone, self.config, self.progress_bar = backbone, config, progress_bar
        self.action_unit: ActionUnit = action_unit
        self.teacher = deepcopy(unmerged(backbone)).eval().requires_grad_(False)
        self._recipe = config.recipe(seed)
        device = next(backbone.parameters()).device
        self._batches: Batches = make_batches(backbone, dataset, self._recipe, Processes(0, 1, device))
        self.optimizer = make_optimizer(backbone, self._recipe)
        self.average = AveragedModel(cast(nn.Module, backbone))
        self.step = 0

    @property
    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors of a checkpoint."""
        return {
            "backbone": self.backbone.state_dict(),
            "backbone_optimizer": optimizer_tensors(self.optimizer),
            "backbone_average": self.average.state_dict(),
        }

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Go back to a checkpoint; the teacher must be what it was."""
        self.backbone.load_state_dict(parts["backbone"])
        load_optimizer(self.optimizer, parts["backbone_optimizer"])
        self.average.load_state_dict(parts["backbone_average"])
        self.step = step

    def train_round(self, choose: Callable[[Tensor, int], Tensor]) -> float:
        """One round; its mean loss.

        Args:
            choose: from images [B, 3, H, W] and the number of the step, the units to run, bool [B, U].

        Raises:
            FloatingPointError: if the loss is no longer finite.
        """
        steps = self.config.steps or self._batches.steps_per_epoch
        losses = []
        self.backbone.train().requires_grad_(True)
        progress = tqdm(range(steps), desc="ViT", unit="step", leave=False, disable=None if self.progress_bar else True)
        for step in progress:
            for group in self.optimizer.param_groups:
                group["lr"] = self._recipe.learning_rate_at(step / steps)
            batch = self._batches[self.step]
            losses.append(self._descend(batch.images, batch.targets, choose(batch.images, self.step)))
            self.step += 1
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss: expected a finite one, got {loss} before the ViT's step {self.step}")
        self._finish_round(self.step // steps)
        self.backbone.eval().requires_grad_(False)
        return loss

    def _finish_round(self, rounds: int) -> None:
        """Add the weights after a round to the average if it is one of the last; after the last adopt it."""
        if rounds > self.config.rounds - self.config.averaged_rounds:
            self.average.update_parameters(cast(nn.Module, self.backbone))
        if rounds == self.config.rounds:
            self.backbone.load_state_dict(self.average.module.state_dict())

    def _descend(self, images: Tensor, targets: Tensor, keep_mask: Tensor) -> Tensor:
        on_the_way: list[tuple[Tensor, Tensor]] = []

        def ask_the_head(rows: Tensor, tokens: Tensor) -> None:
            on_the_way.append((rows, self.backbone.classify(tokens)))

        after = ask_the_head if self.config.deep_supervision else None
        with autocast(self.config.precision, images.device):
            with torch.no_grad():
                belief = self.teacher(images).float().log_softmax(1)
            logits = run_masked(self.backbone, images, keep_mask.cpu(), self.action_unit, after)
        loss = self._losses(logits, targets, belief).mean()
        if on_the_way:
            rows, said = (torch.cat(parts) for parts in zip(*on_the_way, strict=True))
            share = 1 / keep_mask.to(rows.device).sum(1)[rows]
            early = (share * self._losses(said, targets[rows], belief[rows])).sum() / len(images)
            loss = loss + self.config.deep_supervision * early
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.backbone.parameters()), self._recipe.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _losses(self, logits: Tensor, targets: Tensor, belief: Tensor) -> Tensor:
        """Cross-entropy and divergence from the teacher's belief (log-probabilities), of each row [R]."""
        logits, smoothing = logits.float(), self.config.label_smoothing
        label_loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        divergence = F.kl_div(logits.log_softmax(1), belief, reduction="none", log_target=True).sum(1)
        return self.config.label_weight * label_loss + divergence


def tune_dense(
    backbone: Backbone,
    dataset: Dataset,
    config: JointConfig,
    checkpoint: Path,
    *,
    seed: int = 0,
    progress_bar: bool = True,
) -> None:
    """Train the full net in place for as long as joint training would, in the same way: what it is to be compared with.

    Args:
        backbone: the ViT.
        dataset: training images.
        config: how.
        checkpoint: file that is kept after each round, from which a run that was stopped goes on.
        seed: of order and augmentation.
        progress_bar: show one for each round.

    Raises:
        ValueError: if the file is corrupt, or of a run with other settings.
    """
    tuner = BackboneTuner(backbone, dataset, config, seed=seed, progress_bar=progress_bar)
    identity, rounds = {**asdict(config), "seed": seed}, 0
    if checkpoint.is_file():
        parts, rest = read_checkpoint(checkpoint, identity)
        tuner.restore(parts, rest["step"])
        rounds = rest["rounds"]
    while rounds < config.rounds:
        tuner.train_round(lambda images, _: torch.ones(len(images), backbone.depth, dtype=torch.bool))
        rounds += 1
        write_checkpoint(checkpoint, tuner.parts, {"rounds": rounds, "step": tuner.step}, identity)
