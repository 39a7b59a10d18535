"""Skip-tolerant pretraining: each step trains the full path and a random part of the depth, the one teaching the other.

Stochastic depth (Huang et al., 2016) per image with a keep rate that is itself drawn per image, so that the net sees
every depth from one block to all; kept rows only are computed, and a kept branch is not divided by its keep rate, so
that a skip in training is the skip of deployment. The full path's belief is the target of the skipped one (in-place
distillation, Yu and Huang, 2019).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .augment import AUGMENTATIONS
from .batches import Batch, Batches
from .checkpoint import TrainingState
from .datasets import Dataset
from .optimizers import make_optimizer, module_blocks
from .paths import Paths, path_losses, units_of_block_0
from .precision import autocast
from .processes import Processes, processes
from .protocol import ActionUnit, Backbone, num_units
from .recipe import Recipe

LOG_EVERY = 50  # steps; checkpoints are written at log points only, so that no running mean is lost


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run came to.

    Attributes:
        steps: optimiser steps.
        curve: columns over log points: step, loss of the full path, loss of the skipped one.
        seconds: wall time, over all sessions of a resumed run.
        images_per_s: trained on, by this process.
        loader_images_per_s: made ready when nothing else is done.
    """

    steps: int
    curve: dict[str, list[float]]
    seconds: float
    images_per_s: float
    loader_images_per_s: float


def pretrain(
    vit: Backbone,
    train: Dataset,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 60.0,
    progress_bar: bool = True,
) -> PretrainResult:
    """Train a backbone in place, alone or as one of the processes that `torchrun` started.

    Args:
        vit: backbone to train, on the device to train on; left in eval mode with the averaged weights.
        train: training images.
        recipe: how.
        folder: for the checkpoint, from which a run that was stopped goes on exactly, and TensorBoard events.
        about: further JSON values that say which run this is, e.g. the architecture; a checkpoint of others is refused.
        checkpoint_seconds: wall time between checkpoints.
        progress_bar: show one.

    Raises:
        ValueError: if the data set is smaller than a batch or has other classes than the backbone, or the folder
            holds the checkpoint of another run.
        FloatingPointError: if the loss is no longer finite.
    """
    with processes(next(vit.parameters()).device) as here:
        batches = make_batches(vit, train, recipe, here)
        vit.to(here.device).train()
        state = begin(vit, recipe)
        sizes = {"images": len(train), "parameters": sum(p.numel() for p in vit.parameters())}
        identity = {**asdict(recipe), **sizes, **(about or {})}
        checkpoint = folder / "checkpoint.safetensors" if folder else None
        if checkpoint and checkpoint.exists():
            state.load(checkpoint, identity)
        save = (lambda: state.save(checkpoint, identity)) if checkpoint and here.rank == 0 else (lambda: None)
        loader = batches.throughput()
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step) if folder and not here.rank else None
        _train(state, batches, recipe, here, save, checkpoint_seconds, writer, progress_bar and here.rank == 0)
        state.adopt_average()
        if writer:
            writer.close()
    vit.eval()
    images = state.step * recipe.batch_size / here.count
    return PretrainResult(state.step, state.curve, state.seconds, images / max(state.seconds, 1e-9), loader)


def _train(
    state: TrainingState,
    batches: Batches,
    recipe: Recipe,
    here: Processes,
    save: Callable[[], None],
    checkpoint_seconds: float,
    writer: SummaryWriter | None,
    progress_bar: bool,
) -> None:
    steps = recipe.epochs * batches.steps_per_epoch
    paths = make_paths(state.vit, recipe, here)
    losses = torch.zeros(2, device=here.device)
    since_log, since_save = time.perf_counter(), time.perf_counter()
    with tqdm(total=steps, initial=state.step, desc="pretrain", unit="step", disable=not progress_bar) as progress:
        while state.step < steps:
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(state.step / steps)
            losses += training_step(state, paths, batches[state.step], recipe)
            state.step += 1
            state.update_average(recipe.ema_decay)
            progress.update()
            if state.step % LOG_EVERY and state.step < steps:
                continue
            now = time.perf_counter()
            state.seconds, since_log = state.seconds + now - since_log, now
            _log(state, here.mean(losses) / ((state.step - 1) % LOG_EVERY + 1), writer)
            losses.zero_()
            progress.set_postfix(full=f"{state.curve['full_loss'][-1]:.3f}", refresh=False)
            if now - since_save > checkpoint_seconds or state.step == steps:
                save()
                since_save = now


def make_paths(vit: Backbone, recipe: Recipe, here: Processes) -> Callable[..., Any]:
    """The paths of a network as they are trained: its blocks compiled if the recipe says so, shared among processes.

    Blocks are compiled, not the whole: how many rows run a block changes from step to step.
    """
    if recipe.compile:
        for block in module_blocks(vit):
            block.compile(dynamic=True)
    paths: Callable[..., Any] = Paths(vit, recipe.skip)
    if here.count > 1:
        paths = DistributedDataParallel(paths)
    return paths


def training_step(state: TrainingState, paths: Callable[..., Any], batch: Batch, recipe: Recipe) -> Tensor:
    """One optimiser step; the losses of the full and of the skipped path, [2]."""
    with autocast(recipe.precision, batch.images.device):
        full, skipped = paths(batch.images, batch.keep_mask, batch.full_rows)
    losses = path_losses(
        full,
        skipped,
        batch.targets,
        batch.full_rows,
        label_smoothing=recipe.label_smoothing,
        distillation=recipe.distillation,
    )
    state.optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    nn.utils.clip_grad_norm_(list(state.vit.parameters()), recipe.clip_norm)
    state.optimizer.step()
    return torch.stack(losses).detach()


def _log(state: TrainingState, losses: Tensor, writer: SummaryWriter | None) -> None:
    full, skipped = losses.tolist()
    if not math.isfinite(full + skipped):
        raise FloatingPointError(f"loss: expected a finite one, got {full} and {skipped} before step {state.step}")
    for name, value in {"step": float(state.step), "full_loss": full, "skipped_loss": skipped}.items():
        state.curve.setdefault(name, []).append(value)
        if writer and name != "step":
            writer.add_scalar(f"pretrain/{name}", value, state.step)


def begin(vit: Backbone, recipe: Recipe) -> TrainingState:
    """The state before the first step."""
    return TrainingState(vit, make_optimizer(vit, recipe), [p.detach().clone() for p in vit.parameters()])


def make_batches(vit: Backbone, train: Dataset, recipe: Recipe, here: Processes) -> Batches:
    """The batches of a run, on this process's device.

    Raises:
        ValueError: if the data set is smaller than a batch or has other classes than the backbone.
    """
    if len(train) < recipe.batch_size or len(train.classes) != vit.num_classes:
        raise ValueError(
            f"train: expected at least {recipe.batch_size} images of {vit.num_classes} classes, "
            f"got {len(train)} of {len(train.classes)}"
        )
    unit: ActionUnit = "half" if recipe.skip == "half" else "block"
    return Batches(
        train.to(here.device),
        AUGMENTATIONS[recipe.augmentation],
        recipe.batch_size,
        here.share(recipe.batch_size),
        units=num_units(vit, unit),
        always=units_of_block_0(recipe.skip),
        full_share=recipe.full_share if recipe.skip != "none" else 1.0,
        seed=recipe.seed,
    )
