"""`vitskip demo`: train two agents on the embedded task, hold them against every baseline, and draw it."""

from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..agents.run_directory import versions
from ..agents.training import TrainConfig, TrainResult, train
from ..backbone import load_dataset
from ..backbone.json_files import write_json
from ..envs import EnvConfig
from .evaluation import Evaluation, evaluate_against, validation_masks
from .figures import draw_accuracy_over_compute, draw_episodes, draw_reward_curves
from .measurement import Measurement
from .rivals import Rivals
from .statistics import PairedTest, paired_test
from .tables import format_test
from .throughput import Benchmark, benchmark

ALGORITHMS = ("ppo", "a2c")
TIMESTEPS = 1_000_000
BUDGETS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.75)  # each agent learns all of them
SHOWN_BUDGETS = (0.5, 0.3)
LEVELS = (2, 3, 4, 5, 6, 8, 10, 12)  # blocks at which the rivals' curves are drawn
EPISODES = 8  # in the strip
BATCH_SIZES = (1, 256)


def demo(out: Path, *, seed: int = 0, scale: float = 1.0, console: Console) -> dict[str, Any]:
    """Train PPO and A2C, each for all budgets, compare at two of them, draw; everything is left in `out`.

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
    env = EnvConfig(budgets=BUDGETS).changed()
    configs = {name: TrainConfig(name, int(TIMESTEPS * scale), seed, env=env) for name in ALGORITHMS}
    runs = {name: train(config, out / name) for name, config in configs.items()}
    validation, test = load_dataset("digits", "validation"), load_dataset("digits", "test")
    console.print("[bold]2/4[/] rivals: all 4,096 static masks on validation images, then thresholds at equal compute")
    net = runs[ALGORITHMS[0]].net
    rivals = Rivals(net, validation, test, validation_masks(net.backbone, validation))
    evaluations: dict[str, Evaluation] = {}
    timings: dict[str, Benchmark] = {}
    console.print("[bold]3/4[/] measuring: accuracy; throughput, dense and dynamic in turn on the same test images")
    for name, run in runs.items():
        for budget in SHOWN_BUDGETS:
            run.net.set_budget(budget)
            label = f"{name.upper()} at {100 * budget:.0f}%"
            evaluations[label] = evaluate_against(rivals, run.net)
            timings[label] = benchmark(run.net, test.images, batch_sizes=BATCH_SIZES, seconds=3.0)
    console.print("[bold]4/4[/] pictures")
    _draw(out, runs, evaluations, rivals)
    console.print(_table(evaluations, timings))
    results = {
        "seed": seed,
        "scale": scale,
        "versions": versions(),
        "seconds": {name: run.seconds for name, run in runs.items()},
        "agents": {
            name: {**evaluation.summary(), "benchmark": timings[name].summary()}
            for name, evaluation in evaluations.items()
        },
    }
    write_json(out / "results.json", results)
    console.print(f"pictures, run directories and results.json are in {out}/", markup=False, soft_wrap=True)
    console.print(f"reward curves, run rates and skip maps: tensorboard --logdir {out}", markup=False, soft_wrap=True)
    return results


def _draw(out: Path, runs: dict[str, TrainResult], evaluations: dict[str, Evaluation], rivals: Rivals) -> None:
    names = [name.upper() for name in runs]
    draw_reward_curves({name.upper(): run.curve for name, run in runs.items()}, out / "reward_curves.png")
    macs = rivals.net.backbone.macs
    curves: dict[str, list[Measurement]] = {}
    for level in LEVELS:
        target = macs.stem + macs.head + sum(macs.units("block")[:level])
        for name, measurement in rivals.at(target, target).items():
            curves.setdefault(name, []).append(measurement)
    agents = {name: [found.net for label, found in evaluations.items() if label.startswith(name)] for name in names}
    points = {name: [(row.macs_fraction, row.accuracy) for row in rows] for name, rows in {**curves, **agents}.items()}
    draw_accuracy_over_compute(points, out / "accuracy_over_compute.png", lines=tuple(curves))
    index = np.argsort(rivals.test.difficulty[:500].numpy())[:: 500 // EPISODES][:EPISODES].tolist()
    rivals.net.set_budget(SHOWN_BUDGETS[0])
    draw_episodes(rivals.net, rivals.test, index, out / "episodes.png")


def _table(evaluations: dict[str, Evaluation], timings: dict[str, Benchmark]) -> Table:
    table = Table(
        title="test images: agents, and every baseline at each agent's compute",
        caption="lead: the agent's accuracy minus this network's, on the same images, with its 95% interval [points]; "
        "no worse: not by half a point",
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
        table.add_row(f"[bold]{name}[/]", *_numbers(evaluation.net), *rates, *speed_ups)
        for rival, row in {"run-all (dense)": dense, **evaluation.rivals}.items():
            test = paired_test(evaluation.net.correct, row.correct)
            table.add_row(
                f" {rival}", *_numbers(row), *("",) * 4, f"{format_test(test)} {_verdict(test, row is dense)}"
            )
    return table


def _verdict(test: PairedTest, is_dense: bool) -> str:
    if is_dense and test.no_worse():
        return "no worse"
    return f"{'wins' if test.low > 0 else 'loses' if test.high < 0 else 'level':<8}"


def _numbers(row: Measurement) -> tuple[str, str, str]:
    return f"{100 * row.accuracy:.1f}", f"{row.units_run:.2f}", f"{100 * row.macs_fraction:.1f}"
