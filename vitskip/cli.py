"""The command line: each command unwraps its arguments, calls one function, prints a table, and writes JSON."""

import json as jsonlib
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.text import Text

from vitskip.agents import DynamicViT
from vitskip.agents.run_directory import Run, read, versions, write_json
from vitskip.agents.training import TrainConfig
from vitskip.agents.training import train as train_agent
from vitskip.backbone import Dataset, load_backbone, load_dataset
from vitskip.backbone.backbones import build_backbone
from vitskip.backbone.recipe import Recipe
from vitskip.backbone.start import start_backbone
from vitskip.backbone.vit import Stem
from vitskip.envs import EnvConfig
from vitskip.envs.config import check_device
from vitskip.eval.demo import demo as run_demo
from vitskip.eval.depth import depth_profile
from vitskip.eval.evaluation import evaluate as evaluate_net
from vitskip.eval.evaluation import validation_masks
from vitskip.eval.pretraining import pretrain_and_measure
from vitskip.eval.skip_tolerance import skip_tolerance
from vitskip.eval.tables import benchmark_table, comparison_table, depth_table, skip_table
from vitskip.eval.throughput import BATCH_SIZES
from vitskip.eval.throughput import benchmark as benchmark_net

console = Console(width=None if sys.stdout.isatty() else 120)  # tables whole in files and pipes
EnvFlags = Annotated[EnvConfig, tyro.conf.OmitArgPrefixes]
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
    device: str = "cpu",
    json: Path | None = None,
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
        device: where to train.
        json: also write the card here.
    """
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
    _write(json, card)


def depth(
    backbone: str = "digits-vit12",
    dataset: str = "digits",
    split: Literal["validation", "test"] = "test",
    data_root: str | None = None,
    static_mask_images: int = 256,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Print what depth is worth: accuracy after the first k blocks by difficulty, and under static and random skipping.

    Args:
        backbone: registered name, or a folder of `vitskip pretrain`.
        dataset: registered name.
        split: part to measure on; masks and thresholds are chosen on validation in any case.
        data_root: folder of the data set, where it lives in files.
        static_mask_images: validation images on which all static masks are tried; 0 leaves them out.
        device: where to run.
        json: also write the numbers here.
    """
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
    _write(json, {"backbone": backbone, "dataset": dataset, "split": split, "versions": versions(), **values})


def download(dataset: tyro.conf.Positional[str], data_root: tyro.conf.Positional[Path]) -> None:
    """Fetch a data set that torchvision knows where to find.

    Args:
        dataset: "cifar10" or "cifar100".
        data_root: folder to put it in; made if missing.
    """
    from vitskip.backbone.image_datasets import download_dataset  # with torchvision, which takes seconds to import

    download_dataset(dataset, data_root)


def train(
    out: tyro.conf.Positional[Path],
    algorithm: str = "ppo",
    total_timesteps: int = 1_000_000,
    seed: int = 0,
    num_envs: int | None = None,
    hyperparameters: str = "{}",
    env: EnvFlags = EnvConfig(),  # noqa: B008 (frozen)
    json: Path | None = None,
) -> None:
    """Train an agent to skip blocks of a frozen backbone; leaves a run directory.

    Args:
        out: run directory to write.
        algorithm: "ppo" or "a2c".
        total_timesteps: environment steps; an episode has one per block.
        seed: of images, weights and sampling.
        num_envs: images side by side; the algorithm's default if not given.
        hyperparameters: JSON object that overrides the algorithm's defaults, e.g. '{"ent_coef": 0.01}'.
        env: environment arguments.
        json: also write the record here.
    """
    overrides = _json_object("hyperparameters", hyperparameters)
    config = TrainConfig(algorithm, total_timesteps, seed, num_envs, overrides, env.arguments())
    result = train_agent(config, out)
    last = {name: column[-1] for name, column in result.curve.items() if column}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
    console.print(f"{out}: {numbers}\ncurves: tensorboard --logdir {out}", markup=False, soft_wrap=True)
    _write(json, read(out).record)


def evaluate(run: tyro.conf.Positional[Path], static_mask_images: int = 256, json: Path | None = None) -> None:
    """Hold a run against the dense network and every baseline at equal compute, on the test part.

    Args:
        run: run directory.
        static_mask_images: validation images on which all static masks are tried; 0 leaves that baseline out.
        json: also write the numbers here.
    """
    record = read(run)
    net = DynamicViT.load(run)
    validation, test = _split(record, "validation"), _split(record, "test")
    masks = validation_masks(net.backbone, validation, static_mask_images) if static_mask_images else None
    evaluation = evaluate_net(net, validation, test, masks)
    console.print(comparison_table("test part, equal compute", evaluation.dense, evaluation.rows(run.name)))
    _write(json, {"run": str(run), "versions": versions(), **evaluation.summary()})


def benchmark(
    run: tyro.conf.Positional[Path],
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seconds: float = 4.0,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Time a run against its own dense network, in turn on the same real test images.

    Args:
        run: run directory.
        batch_sizes: images in a batch.
        seconds: roughly, for each batch size.
        device: where to run.
        json: also write the numbers here.
    """
    net = DynamicViT.load(run, device=str(check_device(device)))
    result = benchmark_net(net, _split(read(run), "test").images, batch_sizes=batch_sizes, seconds=seconds)
    console.print(benchmark_table(result))
    _write(json, {"run": str(run), "device": device, "versions": versions(), **result.summary()})


def demo(out: Path = Path("runs/demo"), seed: int = 0, scale: float = 1.0, json: Path | None = None) -> None:
    """Train A2C and PPO on the embedded task, compare with every baseline, and draw pictures.

    Args:
        out: folder to write.
        seed: of training.
        scale: of the training steps; below 1 for a quick look.
        json: also write the results here.
    """
    _write(json, run_demo(out, seed=seed, scale=scale, console=console))


def main() -> None:
    """Entry point of `vitskip`."""
    commands = (download, pretrain, depth, train, evaluate, benchmark, demo)
    try:
        tyro.extras.subcommand_cli_from_dict({command.__name__: command for command in commands}, prog="vitskip")
    except (ValueError, OSError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(2) from error


def _split(run: Run, split: Literal["validation", "test"]) -> Dataset:
    """A part of the data set that a run was trained on."""
    env = run.record.get("train", {}).get("env", {})
    return load_dataset(env.get("dataset", "digits"), split, env.get("data_root"))


def _json_object(argument: str, text: str) -> dict[str, Any]:
    try:
        values = jsonlib.loads(text)
    except jsonlib.JSONDecodeError as error:
        raise ValueError(f"{argument}: expected a JSON object, got {text!r}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{argument}: expected a JSON object, got {text!r}")
    return values


def _write(path: Path | None, values: Any) -> None:
    if path is not None:
        write_json(path, values)
