"""`vitskip demo`: train two agents on the embedded task, hold them against every baseline, and draw it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import versions, write_json
from ..agents.training import TrainConfig, TrainResult, train
from ..backbone import load_dataset
from .evaluation import Evaluation, validation_masks
from .figures import draw_accuracy_over_compute, draw_episodes, draw_reward_curves
from .measurement import Measurement, measure
from .rivals import Rivals
from .statistics import paired_test
from .tables import format_test
from .throughput import Benchmark, benchmark

AGENTS = {  # how each is trained; a larger cost weight buys compute with accuracy
    "ppo": TrainConfig("ppo", 2_000_000, env={"cost_weight": 0.1}),
    "ppo-tight": TrainConfig("ppo", 2_000_000, env={"cost_weight": 0.6}),
    "a2c": TrainConfig("a2c", 1_000_000, env={"cost_weight": 0.1}),
}
LEVELS = (2, 3, 4, 5, 6, 8, 10, 12)  # blocks at which the rivals' curves are drawn
SHOWN = 8  # episodes in the strip
BATCH_SIZES = (1, 256)


@dataclass(frozen=True)
class DemoRow:
    """A network of the demo's table."""

    measurement: Measurement
    timing: Benchmark


def demo(out: Path, *, seed: int = 0, scale: float = 1.0, console: Console) -> dict[str, Any]:
    """Train PPO and A2C, compare, draw; everything is left in `out`.

    Args:
        out: folder for run directories, pictures and `results.json`.
        seed: of training.
        scale: of the training steps; below 1 for a quick look.
        console: where to print.

    Returns:
        The results as JSON values.

    Raises:
        ValueError: for a scale that is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale: expected more than 0, got {scale}")
    out.mkdir(parents=True, exist_ok=True)
    console.print("[bold]1/4[/] training: an agent sees what the head would say now, and skips or runs the next block")
    runs = {
        name: train(replace(config, total_timesteps=int(config.total_timesteps * scale), seed=seed), out / name)
        for name, config in AGENTS.items()
    }
    validation, test = load_dataset("digits", "validation"), load_dataset("digits", "test")
    console.print("[bold]2/4[/] rivals: all 4,096 static masks on validation images, then thresholds at equal compute")
    backbone = runs["ppo"].net.backbone
    masks = validation_masks(backbone, validation)
    evaluations: dict[str, Evaluation] = {}
    rivals = Rivals(runs["ppo"].net, validation, test, masks)
    for name, run in runs.items():
        on_validation = measure(run.net, validation, description="validation")
        on_test = measure(run.net, test, description="test")
        at_compute = rivals.at(float(on_validation.macs.mean()), float(on_test.macs.mean()))
        evaluations[name] = Evaluation(rivals.dense(), on_test, at_compute)
    console.print("[bold]3/4[/] throughput: dense and dynamic in turn on the same test images")
    timings = {
        name: benchmark(run.net, test.images, batch_sizes=BATCH_SIZES, seconds=3.0) for name, run in runs.items()
    }
    console.print("[bold]4/4[/] pictures")
    _draw(out, runs, evaluations, rivals)
    console.print(_table(evaluations, timings))
    results = {
        "seed": seed,
        "scale": scale,
        "versions": versions(),
        "agents": {
            name: {**evaluations[name].summary(), "benchmark": timings[name].summary(), "seconds": run.seconds}
            for name, run in runs.items()
        },
    }
    write_json(out / "results.json", results)
    console.print(f"pictures, run directories and results.json are in {out}/", markup=False, soft_wrap=True)
    console.print(f"reward curves, run rates and skip maps: tensorboard --logdir {out}", markup=False, soft_wrap=True)
    return results


def _draw(out: Path, runs: dict[str, TrainResult], evaluations: dict[str, Evaluation], rivals: Rivals) -> None:
    draw_reward_curves({name.upper(): run.curve for name, run in runs.items()}, out / "reward_curves.png")
    macs = rivals.net.backbone.macs
    curves: dict[str, list[Measurement]] = {}
    for level in LEVELS:
        target = macs.stem + macs.head + sum(macs.units("block")[:level])
        for name, measurement in rivals.at(target, target).items():
            curves.setdefault(name, []).append(measurement)
    agents = {name.upper(): [evaluation.net] for name, evaluation in evaluations.items()}
    points = {name: [(row.macs_fraction, row.accuracy) for row in rows] for name, rows in {**curves, **agents}.items()}
    draw_accuracy_over_compute(points, out / "accuracy_over_compute.png", lines=tuple(curves))
    net: DynamicViT = runs["ppo"].net
    index = np.argsort(rivals.test.difficulty[:500].numpy())[:: 500 // SHOWN][:SHOWN].tolist()
    draw_episodes(net, rivals.test, index, out / "episodes.png")


def _table(evaluations: dict[str, Evaluation], timings: dict[str, Benchmark]) -> Table:
    table = Table(
        title="test images: agents, and every baseline at each agent's compute",
        caption="lead: the agent's accuracy minus this network's, on the same images, with its 95% interval, in points",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headings = ("network", "acc. [%]", "blocks", "MACs [%]", "img/s @1", "@256", "speed-up @1", "@256", "agent's lead")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    dense = next(iter(evaluations.values())).dense
    slow, fast = next(iter(timings.values())).timings
    rates = (f"{slow.dense_throughput:,.0f}", f"{fast.dense_throughput:,.0f}")
    table.add_row("run-all (dense)", *_numbers(dense), *rates, "1.00", "1.00")
    for name, evaluation in evaluations.items():
        table.add_section()
        single, batch = timings[name].timings
        rates = (f"{single.dynamic_throughput:,.0f}", f"{batch.dynamic_throughput:,.0f}")
        speed_ups = (f"{single.speed_up:.2f}", f"{batch.speed_up:.2f}")
        table.add_row(f"[bold]{name.upper()}[/]", *_numbers(evaluation.net), *rates, *speed_ups)
        for rival, row in {"run-all (dense)": dense, **evaluation.rivals}.items():
            test = paired_test(evaluation.net.correct, row.correct)
            verdict = "wins" if test.low > 0 else "loses" if test.high < 0 else "level"
            table.add_row(f"  {rival}", *_numbers(row), *("",) * 4, f"{format_test(test)} {verdict:>5}")
    return table


def _numbers(row: Measurement) -> tuple[str, str, str]:
    return f"{100 * row.accuracy:.1f}", f"{row.units_run:.2f}", f"{100 * row.macs_fraction:.1f}"
