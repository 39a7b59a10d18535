"""Commands that make and measure backbones; those about agents are in `cli`."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from vitskip.agents.run_directory import refuse_run, versions
from vitskip.backbone import load_backbone, load_dataset
from vitskip.backbone.backbones import build_backbone
from vitskip.backbone.protocol import ActionUnit
from vitskip.backbone.recipe import Recipe
from vitskip.backbone.start import start_backbone
from vitskip.backbone.vit import Stem
from vitskip.envs.config import backbone_for, check_device
from vitskip.eval.depth import depth_profile
from vitskip.eval.latency import unit_latency
from vitskip.eval.pretraining import pretrain_and_measure
from vitskip.eval.skip_tolerance import skip_tolerance
from vitskip.eval.tables import depth_table, skip_table

from .output import OutputFile, console, watch_others, write_result

RecipeFlags = Annotated[Recipe, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True)
class NewViT:
    """Architecture of a new ViT.

    Attributes:
        embed_dim: token width.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over embed_dim.
        patch_size: pixels.
        stem: one projection of each patch, or convolutions.
    """

    embed_dim: int = 64
    depth: int = 12
    num_heads: int = 2
    mlp_ratio: float = 1.0
    patch_size: int = 8
    stem: Stem = "patch"


VitFlags = Annotated[NewViT, tyro.conf.OmitArgPrefixes]
DIGITS = Recipe(full_share=0.2, distillation=0.0)  # of the embedded task: no teacher, so that depth matters


def pretrain(
    out: Path = Path("runs/digits-vit12"),
    dataset: str = "digits-60k",
    data_root: str | None = None,
    start: str | None = None,
    weights: Path | None = None,
    vit: VitFlags = NewViT(),
    recipe: RecipeFlags = DIGITS,
    static_mask_images: int = 256,
    device: str = "cpu",
    json: OutputFile = None,
) -> None:
    """Train a ViT to tolerate skipping, or fine-tune one; leaves a folder that is a backbone by its path.

    A run that was stopped goes on where it was when the same command is given again. `torchrun` divides each batch.

    Args:
        out: folder for weights, card, checkpoint and TensorBoard events.
        dataset: registered name.
        data_root: folder of the data set, where it lives in files.
        start: what to fine-tune instead of a new ViT: a shipped name, a folder, torchvision:NAME or timm:NAME.
        weights: file of others' weights, for torchvision and timm.
        vit: the new ViT.
        recipe: how it is trained.
        static_mask_images: validation images on which all static masks are tried in the end; 0 leaves them out.
        device: where to train.
        json: also write the card here.
    """
    refuse_run(out)
    if start is not None and vit != NewViT():
        raise ValueError(f"start: expected no architecture beside {start!r}, which has its own, got {vit}")
    train = load_dataset(dataset, "train", data_root)
    image_size, num_classes = train.images.shape[-1], len(train.classes)
    torch.manual_seed(recipe.seed)
    if start is None:
        architecture = {"family": "vit", "image_size": image_size, "num_classes": num_classes, **asdict(vit)}
        backbone = build_backbone(architecture)
    else:
        backbone, architecture = start_backbone(start, num_classes, weights)
    done = pretrain_and_measure(
        out,
        backbone.to(check_device(device)),
        architecture,
        recipe,
        dataset=dataset,
        data_root=data_root,
        command="vitskip " + shlex.join(sys.argv[1:]),
        start=start if weights is None else f"{start} with {weights}",
        static_mask_images=static_mask_images,
    )
    if done is None:  # another process of this run writes and prints
        return
    card, tolerance = done
    console.print(skip_table(tolerance))
    rates = card["result"]["images_per_s"], card["result"]["loader_images_per_s"]
    console.print(
        f"{out}: trained on {rates[0]:,.0f} images/s; batches alone come at {rates[1]:,.0f} images/s",
        markup=False,
        soft_wrap=True,
    )
    write_result(json, card)


def depth(
    dataset: str = "digits",
    backbone: str = "",
    split: Literal["validation", "test"] = "test",
    data_root: str | None = None,
    static_mask_images: int = 256,
    device: str = "cpu",
    json: OutputFile = None,
) -> None:
    """Print what depth is worth: accuracy after the first k blocks by difficulty, and under static and random skipping.

    Args:
        dataset: registered name.
        backbone: registered name, or a folder of `vitskip pretrain`; the one shipped for the data set if not given.
        split: part to measure on; masks and thresholds are chosen on validation in any case.
        data_root: folder of the data set, where it lives in files.
        static_mask_images: validation images on which all static masks are tried; 0 leaves them out.
        device: where to run.
        json: also write the numbers here.
    """
    backbone = backbone or backbone_for(dataset)
    net, part = load_backbone(backbone).to(check_device(device)), load_dataset(dataset, split, data_root)
    profile = depth_profile(net, part)
    console.print(depth_table(profile))
    tolerance = skip_tolerance(net, load_dataset(dataset, "validation", data_root), part, static_mask_images)
    console.print(skip_table(tolerance))
    values = {
        "accuracy": profile.accuracy.tolist(),
        "by_difficulty": profile.by_difficulty.tolist(),
        "blocks_needed": profile.blocks_needed.tolist(),
        "rank_correlation": profile.correlation,
        "skip_tolerance": tolerance.summary(),
    }
    write_result(json, {"backbone": backbone, "dataset": dataset, "split": split, "versions": versions(), **values})


def latency(
    dataset: str = "digits",
    backbone: str = "",
    data_root: str | None = None,
    action_unit: ActionUnit = "block",
    batch_size: int = 64,
    rounds: int = 40,
    device: str = "cpu",
    json: OutputFile = None,
) -> None:
    """Measure how long each (half-)block takes, as a price for agents: `--cost latency:FILE`.

    Args:
        dataset: registered name; its validation images are run.
        backbone: registered name, or a folder of `vitskip pretrain`; the one shipped for the data set if not given.
        data_root: folder of the data set, where it lives in files.
        action_unit: "block", or "half" for attention and MLP apart.
        batch_size: images in a batch.
        rounds: through all units, of which the fastest counts.
        device: where to run.
        json: also write the table here, the FILE of that price.
    """
    others = watch_others()
    backbone = backbone or backbone_for(dataset)
    net, part = load_backbone(backbone).to(check_device(device)).eval(), load_dataset(dataset, "validation", data_root)
    part.check_fits(net)
    found = unit_latency(net, part.images, action_unit=action_unit, batch_size=batch_size, rounds=rounds)
    console.print(found.grid().table(), others())
    write_result(json, {**found.summary(), "backbone": backbone, "dataset": dataset, "versions": versions()})


def download(dataset: tyro.conf.Positional[str], data_root: tyro.conf.Positional[Path]) -> None:
    """Fetch a data set that torchvision knows where to find.

    Args:
        dataset: "cifar10" or "cifar100".
        data_root: folder to put it in; made if missing.
    """
    from vitskip.backbone.image_datasets import download_dataset  # with torchvision, which takes seconds to import

    download_dataset(dataset, data_root)
