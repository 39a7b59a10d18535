"""What bfloat16 and `torch.compile` are worth in pretraining: images/s beside plain float32, in turn.

python -m vitskip.eval.training_speed [--size small] [--device cuda] [--json PATH]
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ..agents.run_directory import versions
from ..backbone import Dataset, load_dataset
from ..backbone.allocator import keep_buffers
from ..backbone.backbones import build_backbone
from ..backbone.json_files import write_json
from ..backbone.pretrain import begin, make_batches, make_paths, training_step
from ..backbone.processes import Processes
from ..backbone.recipe import Recipe
from .backbone_suite import SIZES, Size

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "float32-compiled": {"precision": "float32", "compile": True},
    "bfloat16-compiled": {"precision": "bfloat16", "compile": True},
}
STEPS, ROUNDS = 2, 6  # steps a round; a third of the rounds warms up


class Contestant:
    """One way to train the same net on the same images."""

    def __init__(self, architecture: dict[str, Any], recipe: Recipe, train: Dataset, device: torch.device) -> None:
        here, self.device = Processes(0, 1, device), device
        vit = build_backbone(architecture).to(device).train()
        self.recipe, self.state, self.paths = recipe, begin(vit, recipe), make_paths(vit, recipe, here)
        self.batches = make_batches(vit, train, recipe, here)

    def run(self, steps: int) -> float:
        """Train some steps; the wall time [s]."""
        start = time.perf_counter()
        total = torch.zeros(2, device=self.device)
        for _ in range(steps):
            total += training_step(self.state, self.paths, self.batches[self.state.step], self.recipe)
            self.state.step += 1
        total.tolist()  # waits for the device
        return time.perf_counter() - start


def main(
    size: Size = "small",
    variants: tuple[str, ...] = tuple(VARIANTS),
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Print images/s of each variant.

    Args:
        size: of the net, as in the suite of backbones.
        variants: names in `VARIANTS`; the first is what the others are held against.
        device: where to train.
        json: also write the numbers here.
    """
    architecture, recipe = SIZES[size]
    train = load_dataset("digits", "train")
    architecture = {**architecture, "depth": 12}
    contestants = {
        name: Contestant(architecture, replace(recipe, **VARIANTS[name]), train, torch.device(device))
        for name in variants
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(ROUNDS), desc="training speed", leave=False, disable=None):
        for name, contestant in contestants.items():
            seconds[name].append(contestant.run(STEPS))
    rates = {
        name: STEPS * recipe.batch_size / float(np.median(column[ROUNDS // 3 :])) for name, column in seconds.items()
    }
    table = Table(title=f"training, {size} net on {device}, {torch.get_num_threads()} threads")
    for heading in ("variant", "images/s", f"against {variants[0]}"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / rates[variants[0]]:.2f}")
    Console().print(table)
    if json is not None:
        write_json(json, {"threads": torch.get_num_threads(), "versions": versions(), "images_per_s": rates})


if __name__ == "__main__":
    keep_buffers()
    tyro.cli(main)
