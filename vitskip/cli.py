"""The command line: each command unwraps its arguments, calls one function, prints a table, and writes JSON."""

import json as jsonlib
import sys
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
from vitskip.backbone import Dataset, ViT, load_backbone, load_dataset
from vitskip.backbone.pretrain import pretrain as pretrain_backbone
from vitskip.backbone.weights import save_weights
from vitskip.envs import EnvConfig
from vitskip.envs.config import check_device
from vitskip.eval.demo import demo as run_demo
from vitskip.eval.depth import depth_profile
from vitskip.eval.evaluation import evaluate as evaluate_net
from vitskip.eval.evaluation import validation_masks
from vitskip.eval.tables import benchmark_table, comparison_table, depth_table
from vitskip.eval.throughput import BATCH_SIZES
from vitskip.eval.throughput import benchmark as benchmark_net

console = Console(width=None if sys.stdout.isatty() else 120)  # tables whole in files and pipes
EnvFlags = Annotated[EnvConfig, tyro.conf.OmitArgPrefixes]


def pretrain(
    out: Path = Path("runs/digits-vit12"),
    dataset: str = "digits-60k",
    data_root: str | None = None,
    embed_dim: int = 64,
    depth: int = 12,
    num_heads: int = 2,
    mlp_ratio: float = 1.0,
    patch_size: int = 8,
    epochs: int = 12,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Train a skip-tolerant ViT; leaves OUT.safetensors (weights) and OUT.json (card), and prints accuracy by depth.

    Args:
        out: path without ending.
        dataset: registered name.
        data_root: folder of the data set, where it lives in files.
        embed_dim: token width.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over embed_dim.
        patch_size: pixels.
        epochs: passes over the training images.
        seed: of weights, order, masks and augmentation.
        json: also write the card here.
    """
    train = load_dataset(dataset, "train", data_root)
    architecture = {
        "image_size": train.images.shape[-1],
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "num_classes": len(train.classes),
        "mlp_ratio": mlp_ratio,
    }
    torch.manual_seed(seed)
    vit = ViT(**architecture)
    result = pretrain_backbone(vit, train, epochs=epochs, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(out.with_suffix(".safetensors"), vit, torch.float16)
    profile = depth_profile(vit, load_dataset(dataset, "test", data_root))
    card = {
        "architecture": architecture,
        "training": {"dataset": dataset, "epochs": epochs, "seed": seed, "steps": result.steps, "loss": result.loss},
        "seconds": result.seconds,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "test_accuracy_of_first_k_blocks": profile.accuracy.tolist(),
    }
    write_json(out.with_suffix(".json"), card)
    console.print(depth_table(profile))
    _write(json, card)


def depth(
    backbone: str = "digits-vit12",
    dataset: str = "digits",
    split: Literal["validation", "test"] = "test",
    data_root: str | None = None,
    json: Path | None = None,
) -> None:
    """Print a backbone's accuracy after its first k blocks, by difficulty.

    Args:
        backbone: registered name.
        dataset: registered name.
        split: part to measure on.
        data_root: folder of the data set, where it lives in files.
        json: also write the numbers here.
    """
    profile = depth_profile(load_backbone(backbone), load_dataset(dataset, split, data_root))
    console.print(depth_table(profile))
    values = {
        "accuracy": profile.accuracy.tolist(),
        "by_difficulty": profile.by_difficulty.tolist(),
        "blocks_needed": profile.blocks_needed.tolist(),
        "rank_correlation": profile.correlation,
    }
    _write(json, {"backbone": backbone, "dataset": dataset, "split": split, "versions": versions(), **values})


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
    commands = (pretrain, depth, train, evaluate, benchmark, demo)
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
