"""The command line: each command unwraps its arguments, calls one function, prints a table, and writes JSON."""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from vitskip.agents import DynamicViT
from vitskip.agents.adaptation import adapt as adapt_net
from vitskip.agents.baselines import whole_network
from vitskip.agents.run_directory import Run, read, versions
from vitskip.backbone import Dataset, load_backbone, load_dataset
from vitskip.backbone.allocator import keep_buffers
from vitskip.backbone.datasets import Split, validation_splits
from vitskip.envs.config import check_device
from vitskip.eval.comparison import tuned_dense
from vitskip.eval.demo import demo as run_demo
from vitskip.eval.evaluation import evaluate as evaluate_net
from vitskip.eval.evaluation import validation_masks
from vitskip.eval.measurement import Measurement, measure
from vitskip.eval.static_networks import static_rivals
from vitskip.eval.tables import benchmark_table, comparison_table
from vitskip.eval.throughput import BATCH_SIZES
from vitskip.eval.throughput import benchmark as benchmark_net

from .agent_cli import compare, distill, report, sweep, train
from .backbone_cli import depth, download, latency, pretrain
from .output import OutputFile, console, watch_others, write_result


def evaluate(
    run: tyro.conf.Positional[Path],
    dataset: str | None = None,
    data_root: str | None = None,
    rival: tuple[str, ...] = (),
    budget: float | None = None,
    static_mask_images: int = 256,
    part: Literal["validation", "test"] = "test",
    json: OutputFile = None,
) -> None:
    """Hold a run against the dense network and every baseline at equal compute.

    Args:
        run: run directory.
        dataset: registered name; what the run was trained on if not given.
        data_root: folder of the data set, if it is not where it was in training.
        rival: further backbones, by name or folder, e.g. shallower ones; mixed in pairs they make one more baseline.
        budget: mean share of the dense net's compute, of an agent that was trained for several; the middle one of them
            if not given.
        static_mask_images: validation images on which static masks are tried; 0 leaves that baseline out.
        part: where it is measured; "validation" to choose among runs, so that the test part stays untouched. There an
            agent that learnt on one half ("validation-even") is measured on the other, and one that learnt on all of it
            is flattered.
        json: also write the numbers here.
    """
    record = read(run)
    net = DynamicViT.load(run, budget=budget)
    learnt: Split = _environment(record).get("split", "train")
    splits = ("validation", "test") if part == "test" else validation_splits(learnt)
    validation, measured = (_split(record, split, dataset, data_root) for split in splits)
    images, unit = static_mask_images, net.action_unit
    others = static_rivals(net.backbone, rival)
    masks = validation_masks(net.backbone, validation, images, unit) if images else None
    evaluation = evaluate_net(net, validation, measured, masks, others, _dense_references(record, measured))
    name, shown = dataset or _environment(record)["dataset"], net.shown_budget if net.budgets else None
    learnt_on = ", on which it learnt" if splits[1] == learnt else ""
    at = "" if shown is None else f", at a budget of {100 * float(shown):g}%"
    title = f"{name}, {splits[1]} part{learnt_on}, equal compute{at}"
    console.print(comparison_table(title, evaluation.dense, evaluation.rows(run.name)))
    about = {"run": str(run), "dataset": name, "part": splits[1], "budget": shown, "versions": versions()}
    write_result(json, {**about, **evaluation.summary()})


def _dense_references(run: Run, images: Dataset) -> dict[str, Measurement]:
    """Dense networks that a run's own is not, by their names in tables: what it began with, and that tuned as long."""
    found = _original(run, images)
    if run.record.get("train", {}).get("joint"):
        folder = tuned_dense(run)
        if folder is not None:
            found["tuned dense"] = measure(DynamicViT.load(folder), images)
        else:
            console.print(
                "left out a dense network tuned as long: `vitskip compare` trains one beside its runs", soft_wrap=True
            )
    return found


def _original(run: Run, images: Dataset) -> dict[str, Measurement]:
    """The dense network that a run began with; none if it is the run's own, or is gone."""
    try:
        original = run.load_original()
    except ValueError as error:
        console.print(f"left out the original dense network: {error}", markup=False, soft_wrap=True)
        return {}
    return {} if original is None else {"original dense": measure(whole_network(original), images)}


def benchmark(
    run: tyro.conf.Positional[Path],
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seconds: float = 4.0,
    budget: float | None = None,
    rival: tuple[str, ...] = (),
    adapt: bool = False,
    dataset: str | None = None,
    data_root: str | None = None,
    device: str = "cpu",
    json: OutputFile = None,
) -> None:
    """Time a run against its own dense network, in turn on the same real test images.

    Args:
        run: run directory.
        batch_sizes: images in a batch.
        seconds: roughly, for each batch size.
        budget: mean share of the dense net's compute, of an agent that was trained for several; the middle one of them
            if not given.
        rival: further backbones, by name or folder, e.g. shallower ones, timed beside it.
        adapt: first find, on validation images, the small batches in which deciding is slower than running all blocks,
            and run all there.
        dataset: registered name; what the run was trained on if not given.
        data_root: folder of the data set, if it is not where it was in training.
        device: where to run.
        json: also write the numbers here.
    """
    others = watch_others()
    net, record = DynamicViT.load(run, device=str(check_device(device)), budget=budget), read(run)
    images = _split(record, "test", dataset, data_root).images
    adapted = adapt_net(net, _split(record, "validation", dataset, data_root).images) if adapt else {}
    if net.undecided_sizes:
        console.print(f"runs all blocks in batches of about {', '.join(map(str, sorted(net.undecided_sizes)))}")
    rivals = {name: load_backbone(name) for name in rival}
    result = benchmark_net(net, images, batch_sizes=batch_sizes, seconds=seconds, rivals=rivals)
    console.print(benchmark_table(result), others())
    setting = {"run": str(run), "budget": budget, "device": device, "versions": versions(), "adapted": adapted}
    write_result(json, {**setting, **result.summary()})


def demo(out: Path = Path("runs/demo"), seed: int = 0, scale: float = 1.0, json: OutputFile = None) -> None:
    """Train A2C and PPO on the embedded task, compare with every baseline, and draw pictures.

    Args:
        out: folder to write.
        seed: of training.
        scale: of the training steps; below 1 for a quick look.
        json: also write the results here.
    """
    write_result(json, run_demo(out, seed=seed, scale=scale, console=console))


def main() -> None:
    """Entry point of `vitskip`."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        console.print(version("vitskip"))
        return
    keep_buffers()
    commands = (download, pretrain, depth, latency, train, distill, evaluate, benchmark, compare, report, sweep, demo)
    try:
        while arguments[:1] == ["--import"]:
            _import(*arguments[1:2])
            arguments = arguments[2:]
        tyro.extras.subcommand_cli_from_dict(
            {command.__name__: command for command in commands},
            prog="vitskip",
            description="Layer skipping in Vision Transformers. `vitskip --import MODULE COMMAND ...` first imports a "
            "Python module, which may register backbones and data sets of yours.",
            args=arguments,
        )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "\nstopped; `pretrain`, `train`, `compare` and `sweep` go on from the last checkpoint when given again, if "
            "there is one: the first is written after a minute",
            soft_wrap=True,
        )
        raise SystemExit(130) from None


def _import(module: str = "") -> None:
    """A module of the user's, from the working directory or installed."""
    if not module:
        raise ValueError("--import: expected the name of a Python module, got nothing")
    sys.path.insert(0, "")
    import_module(module)


def _split(run: Run, split: Split, dataset: str | None, data_root: str | None) -> Dataset:
    """A part of the data set that a run was trained on, or of another one."""
    env = _environment(run)
    if not dataset and "dataset" not in env:
        raise ValueError(f"dataset: expected --dataset, as {run.path} does not tell what it learnt on")
    return load_dataset(dataset or env["dataset"], split, data_root or env.get("data_root"))


def _environment(run: Run) -> dict[str, Any]:
    """Arguments of the environment that a run was trained in, if it was."""
    return run.record.get("train", {}).get("env", {})
