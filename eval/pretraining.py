"""Train a backbone, measure what skipping costs it, and leave a folder that is a backbone by its path."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..agents.run_directory import versions
from ..backbone import Backbone, load_dataset
from ..backbone.json_files import write_json
from ..backbone.pretrain import pretrain
from ..backbone.processes import process_rank
from ..backbone.recipe import Recipe
from ..backbone.weights import save_weights
from .skip_tolerance import SkipTolerance, skip_tolerance


def pretrain_and_measure(
    out: Path,
    backbone: Backbone,
    architecture: dict[str, Any],
    recipe: Recipe,
    *,
    dataset: str,
    data_root: str | None,
    command: str,
    start: str | None = None,
    static_mask_images: int = 256,
) -> tuple[dict[str, Any], SkipTolerance] | None:
    """Train, and write `weights.safetensors` (half precision) and `card.json` beside checkpoint and events.

    Args:
        out: folder.
        backbone: to train in place, on its device.
        architecture: that `build_backbone` builds it from.
        recipe: how.
        dataset: registered name.
        data_root: folder of the data set, where it lives in files.
        command: that does this again, for the card.
        start: where its weights come from, None of a new one; a checkpoint of another start is refused.
        static_mask_images: validation images on which all static masks are tried; 0 leaves them out.

    Returns:
        The card's JSON values and the measurement behind it; None in all processes of `torchrun` but the first.
    """
    about = {"architecture": architecture, "dataset": dataset, **({"start": start} if start else {})}
    result = pretrain(backbone, load_dataset(dataset, "train", data_root), recipe, folder=out, about=about)
    if process_rank():
        return None
    save_weights(out / "weights.safetensors", backbone, torch.float16)
    validation, test = (load_dataset(dataset, split, data_root) for split in ("validation", "test"))
    tolerance = skip_tolerance(backbone, validation, test, static_mask_images)
    card = {
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "macs": backbone.macs.total,
        "command": command,
        "dataset": dataset,
        "recipe": asdict(recipe),
        "result": asdict(result),
        "test": tolerance.summary(),
        "device": str(next(backbone.parameters()).device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    write_json(out / "card.json", card)
    return card, tolerance
