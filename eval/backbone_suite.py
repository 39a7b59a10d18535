"""The CIFAR backbones: the skip-tolerant nets, their plain twin, and the shallow nets that a user would pick instead.

python -m vitskip.eval.backbone_suite cifar10 --data-root FOLDER [--only NAME ...] [--device cuda]

Resumes where it was stopped; nets that are finished are only read.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..backbone import load_dataset
from ..backbone.allocator import keep_buffers
from ..backbone.backbones import build_backbone
from ..backbone.json_files import read_json, write_json
from ..backbone.recipe import Recipe
from .figures import Point, draw_accuracy_over_compute
from .pretraining import pretrain_and_measure

TINY = {"embed_dim": 128, "num_heads": 4, "mlp_ratio": 2.0, "patch_size": 8, "stem": "conv"}  # 17 tokens
SMALL = {"embed_dim": 96, "num_heads": 3, "mlp_ratio": 2.0, "patch_size": 4, "stem": "conv"}  # 65, for two CPU cores
LARGE = {"embed_dim": 192, "num_heads": 6, "mlp_ratio": 4.0, "patch_size": 4, "stem": "conv"}  # for a GPU
TINY_RECIPE = Recipe(epochs=40, label_smoothing=0.1, full_share=0.5, augmentation="cifar")
SMALL_RECIPE = replace(TINY_RECIPE, epochs=24, optimizer="muon", learning_rate=3e-3, precision="bfloat16")
LARGE_RECIPE = replace(SMALL_RECIPE, epochs=70, batch_size=1024, augmentation="cifar-strong")
Size = Literal["tiny", "small", "large"]
SIZES: dict[Size, tuple[dict[str, Any], Recipe]] = {
    "tiny": (TINY, TINY_RECIPE),
    "small": (SMALL, SMALL_RECIPE),
    "large": (LARGE, LARGE_RECIPE),
}
SHALLOW = (4, 3, 2, 6, 8)


def suite(size: Size) -> dict[str, tuple[dict[str, Any], Recipe]]:
    """Architectures and recipes by name, the most important ones first; all get the same number of epochs."""
    architecture, recipe = SIZES[size]
    plain, deep = replace(recipe, skip="none"), {**architecture, "depth": 12}
    nested = replace(recipe, skip="tail", full_share=1.0)
    nets = {"vit12": (deep, recipe), "vit12-nested": (deep, nested), "vit12-plain": (deep, plain)}
    return nets | {f"vit{depth}-plain": ({**architecture, "depth": depth}, plain) for depth in SHALLOW}


def main(
    dataset: tyro.conf.Positional[str],
    data_root: str | None = None,
    out: Path = Path("runs/backbones"),
    size: Size = "small",
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    device: str = "cpu",
    figure: Path | None = None,
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Train what is missing, and print one table.

    Args:
        dataset: "cifar10", "cifar100" or another registered name.
        data_root: folder of the data set.
        out: folder for the nets.
        size: "tiny" and "small" train on two cores ("small" wants bfloat16 instructions), "large" wants a GPU.
        only: train these only, e.g. vit12.
        device: where to train.
        figure: also draw accuracy over compute into this PNG file.
        json_path: write the table here, too.
    """
    cards: dict[str, dict[str, Any]] = {}
    for name, (architecture, recipe) in suite(size).items():
        folder = out / f"{dataset}-{size}-{name}"
        if not (folder / "card.json").is_file() and (not only or name in only):
            _train(folder, dataset, data_root, architecture, recipe, device)
        if (folder / "card.json").is_file():
            cards[name] = read_json(folder / "card.json")
    Console(width=120).print(_table(dataset, cards))
    if json_path is not None:
        write_json(json_path, cards)
    if figure is not None:
        draw_accuracy_over_compute(_frontiers(cards), figure, lines=list(cards["vit12"]["test"]["accuracy"]))


def _train(
    folder: Path, dataset: str, data_root: str | None, architecture: dict[str, Any], recipe: Recipe, device: str
) -> None:
    train = load_dataset(dataset, "train", data_root)
    sizes = {"image_size": train.images.shape[-1], "num_classes": len(train.classes)}
    torch.manual_seed(recipe.seed)
    backbone = build_backbone({**sizes, **architecture}).to(device)
    words = " ".join(_flag(name, value) for name, value in {**architecture, **vars(recipe)}.items())
    command = f"vitskip pretrain --out {folder.name} --dataset {dataset} --device {device} {words}"
    pretrain_and_measure(
        folder,
        backbone,
        {"family": "vit", **sizes, **architecture},
        recipe,
        dataset=dataset,
        data_root=data_root,
        command=command,
        static_mask_images=256 if architecture["depth"] == 12 else 0,
    )


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    return f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"


def _frontiers(cards: dict[str, dict[str, Any]]) -> dict[str, list[Point]]:
    """(MACs over those of vit12, test accuracy): of vit12 by its ways of skipping, and of the plain nets together."""
    if "vit12" not in cards:
        raise ValueError(f"figure: expected vit12 to be trained, got {', '.join(cards) or 'nothing'}")
    tolerant = cards["vit12"]
    points = {
        way: list(zip(tolerant["test"]["macs_fraction"], column, strict=True))
        for way, column in tolerant["test"]["accuracy"].items()
    }
    plain = [card for name, card in cards.items() if name.endswith("-plain")]
    if plain:
        points["plain nets of 2 to 12 blocks"] = [
            (card["macs"] / tolerant["macs"], card["test"]["full_accuracy"]) for card in plain
        ]
    return points


def _table(dataset: str, cards: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{dataset}: test accuracy [%] of the full net, and at the compute of so many blocks")
    for heading in ("net", "params", "MACs [M]", "full", "way of skipping", "2", "3", "4", "6", "8", "10"):
        table.add_column(escape(heading), justify="left" if heading in ("net", "way of skipping") else "right")
    for name, card in cards.items():
        first = (
            name,
            f"{card['parameters']:,}",
            f"{card['macs'] / 1e6:.1f}",
            f"{100 * card['test']['full_accuracy']:.2f}",
        )
        ways = card["test"]["accuracy"] if card["architecture"]["depth"] == 12 else {"-": []}
        for way, column in ways.items():
            levels = [f"{100 * column[k - 1]:.1f}" if column else "" for k in (2, 3, 4, 6, 8, 10)]
            table.add_row(*first, way, *levels)
            first = ("", "", "", "")
    return table


if __name__ == "__main__":
    keep_buffers()
    tyro.cli(main)
