"""Commands that train agents and compare them: `vitskip train`, `distill`, `compare`, `report` and `sweep`."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from vitskip.agents import DynamicViT
from vitskip.agents.algorithms import ALGORITHMS
from vitskip.agents.backbone_tuner import JointConfig
from vitskip.agents.budget import calibrate, check_budget, macs_fraction
from vitskip.agents.distillation import DistillConfig
from vitskip.agents.distillation import distill as distill_agent
from vitskip.agents.image_runner import ImageRunner
from vitskip.agents.run_directory import is_run, read, refuse_run, versions
from vitskip.agents.training import CALIBRATION_IMAGES, TrainConfig
from vitskip.agents.training import train as train_agent
from vitskip.backbone import load_dataset
from vitskip.backbone.datasets import validation_splits
from vitskip.envs import EnvConfig
from vitskip.eval.comparison import compare as compare_cells
from vitskip.eval.comparison import make_cells
from vitskip.eval.comparison_report import (
    OFF_BUDGET,
    accuracy_grid,
    by_regime,
    difference_grid,
    frontiers,
    read_evaluations,
)
from vitskip.eval.figures import draw_accuracy_over_compute, draw_speed_ups
from vitskip.eval.grid import Grid
from vitskip.eval.sweep import make_trials, sweep_grid
from vitskip.eval.sweep import sweep as sweep_trials
from vitskip.eval.throughput_report import is_benchmark, read_speed_ups, speed_up_grid

from .output import OutputFile, console, write_result

EnvFlags = Annotated[EnvConfig, tyro.conf.OmitArgPrefixes]
JointFlags = Annotated[JointConfig, tyro.conf.arg(name="joint")]


def train(
    out: tyro.conf.Positional[Path],
    env: EnvFlags,
    algorithm: str = "ppo",
    total_timesteps: int = 1_000_000,
    seed: int = 0,
    num_envs: int | None = None,
    hyperparameters: str = "{}",
    budget: float | None = None,
    joint: bool = False,
    joint_training: JointFlags = JointConfig(),  # noqa: B008 - frozen
    curriculum: float = 0.0,
    upfront: int = 0,
    json: OutputFile = None,
) -> None:
    """Train an agent to skip blocks of a backbone; leaves a run directory.

    Args:
        out: run directory to write.
        env: environment arguments.
        algorithm: name, e.g. "ppo", "a2c", "reinforce"; a wrong one lists them all.
        total_timesteps: environment steps; an episode has one per block, with `--upfront` a single one.
        seed: of images, weights and sampling.
        num_envs: images side by side; the algorithm's default if not given.
        hyperparameters: JSON object that overrides the algorithm's defaults, e.g. '{"ent_coef": 0.01}'.
        budget: mean share of the dense net's compute to hold; the cost weight is then steered. One agent of several
            budgets is trained with `--budgets` instead.
        joint: train the ViT, too, on the paths that the agent takes.
        joint_training: how.
        curriculum: share of the steps over which the blocks become free to be skipped, from the last to the first.
        upfront: decide all blocks at once, after so many of them; 0 decides one by one.
        json: also write the record here.
    """
    overrides = _json_object("hyperparameters", hyperparameters)
    config = TrainConfig(
        algorithm,
        total_timesteps,
        seed,
        num_envs,
        overrides,
        env.changed(),
        budget=budget,
        joint=_joint(joint, joint_training),
        curriculum=curriculum,
        upfront=upfront,
    )
    _tell_published(algorithm, config)
    learning_starts = config.record["hyperparameters"].get("learning_starts", 0)
    if learning_starts >= total_timesteps:
        console.print(f"{algorithm} learns nothing in {total_timesteps} steps: learning_starts is {learning_starts}")
    finished = is_run(out)
    if (out / "checkpoint.safetensors").is_file():
        console.print(f"{out}: goes on from its checkpoint", markup=False, soft_wrap=True)
    result, record = train_agent(config, out), read(out).record
    if finished:
        console.print(f"{out}: was finished, nothing was trained", markup=False, soft_wrap=True)
    last = {name: column[-1] for name, column in result.curve.items() if column}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
    lines = [f"{out}: last rollout: {numbers or 'none; nothing is learnt in so few timesteps'}"]
    for budget, spent in zip(config.budgets, record["calibrated_macs_fraction"], strict=True):
        lines.append(f"deployed at {100 * budget:g}%: {_deployed(spent, budget)}")
    lines.append(f"curves: tensorboard --logdir {out}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    write_result(json, record)


def distill(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    config: Annotated[DistillConfig, tyro.conf.OmitArgPrefixes] = DistillConfig(),  # noqa: B008 - frozen
    budget: float | None = None,
    data_root: str | None = None,
    json: OutputFile = None,
) -> None:
    """Teach a planner, which decides all blocks at once, what a sequential agent does with the images it learnt on.

    Args:
        run: run directory of the teacher.
        out: run directory to write, a new one.
        config: how the planner learns.
        budget: mean share of the dense net's compute, corrected on validation images; the teacher's if not given. A
            teacher of several budgets is asked for this one.
        data_root: folder of the data set, if it is not where it was in training.
        json: also write the record here.
    """
    refuse_run(out)
    check_budget(budget)
    record = read(run)
    if "env" not in record.record.get("train", {}):
        raise ValueError(f"run: expected one of `vitskip train`, which tells what it learnt on, got {run}")
    teacher = DynamicViT.load(run, budget=budget if record.budgets else None)
    env = record.record["train"]["env"]
    teacher_set, validation = (
        load_dataset(env["dataset"], split, data_root or env["data_root"])
        for split in (env["split"], validation_splits(env["split"])[0])
    )
    net = distill_agent(teacher, teacher_set.images, config)
    runner = ImageRunner(validation.first(CALIBRATION_IMAGES))
    wanted = macs_fraction(teacher, runner) if budget is None else budget
    spent = calibrate(net, runner, wanted)
    description = {**record.record, "distilled_from": str(run), "distill": asdict(config), "macs_fraction": spent}
    net.save(out, backbone_name=record.backbone, record=description)
    console.print(f"{out}: {_deployed(spent, wanted)}", markup=False, soft_wrap=True)
    write_result(json, description)


def compare(
    out: tyro.conf.Positional[Path],
    env: EnvFlags,
    algorithms: tuple[str, ...] = ("ppo", "a2c", "reinforce"),
    at: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.75),
    seeds: tuple[int, ...] = (0,),
    total_timesteps: int = 1_000_000,
    joint: bool = False,
    joint_training: JointFlags = JointConfig(),  # noqa: B008 - frozen
    curriculum: float = 0.0,
    upfront: int = 0,
    rival: tuple[str, ...] = (),
    static_mask_images: int = 256,
    figure: OutputFile = None,
    json: OutputFile = None,
) -> None:
    """Train algorithms at several budgets and seeds, and hold them against every baseline; resumes what is missing.

    Args:
        out: folder of the run directories.
        env: environment arguments.
        algorithms: names.
        at: shares of the dense net's compute. Each has its own agent, or with `--budgets` there is one for all.
        seeds: of training.
        total_timesteps: environment steps of each run.
        joint: train the ViT, too, on the paths that the agent takes.
        joint_training: how.
        curriculum: share of the steps over which the blocks become free to be skipped.
        upfront: decide all blocks at once, after so many of them; 0 decides one by one.
        rival: further backbones, by name or folder, e.g. shallower ones; mixed in pairs they make one more baseline.
        static_mask_images: validation images on which all static masks are tried; 0 leaves that baseline out.
        figure: also draw accuracy over compute into this PNG file.
        json: also write all numbers here.
    """
    base = TrainConfig(
        total_timesteps=total_timesteps,
        env=env.changed(),
        joint=_joint(joint, joint_training),
        curriculum=curriculum,
        upfront=upfront,
    )
    cells = make_cells(base, out, algorithms, at, seeds)
    for algorithm in algorithms:
        _tell_published(algorithm, base)
    evaluations = compare_cells(cells, rivals=rival, static_mask_images=static_mask_images)
    _show(evaluations, figure)
    write_result(json, evaluations)


def report(
    result: tyro.conf.Positional[Path],
    others: tyro.conf.Positional[tuple[Path, ...]] = (),
    out: OutputFile = None,
    figure: OutputFile = None,
    json: OutputFile = None,
) -> None:
    """Print what `vitskip compare` has found so far, or what `vitskip benchmark` measured, and write it as Markdown.

    Args:
        result: the folder that `vitskip compare` was given, or the JSON file that it wrote; or one that `vitskip
            benchmark` wrote.
        others: further ones of `vitskip benchmark`, a line for each.
        out: Markdown file to write.
        figure: also draw accuracy over compute, or speed-up over batch size, into this PNG file.
        json: also write all numbers into one file.
    """
    paths = (result, *others)
    if all(map(is_benchmark, paths)):
        values, rivals = read_speed_ups(paths)
        grids = (speed_up_grid(values),)
        _print(grids)
        if figure is not None:
            draw_speed_ups(values, _with_folder(figure), lines=rivals)
    elif others:
        other = next(path for path in paths if not is_benchmark(path))
        raise ValueError(f"report: expected each of several to be a file of `vitskip benchmark --json`, got {other}")
    else:
        values = read_evaluations(result)
        grids = _show(values, figure)
    if out is not None:
        _with_folder(out).write_text("\n".join(grid.markdown() for grid in grids))
    write_result(json, values)


def sweep(
    out: tyro.conf.Positional[Path],
    env: EnvFlags,
    algorithms: tuple[str, ...] = tuple(ALGORITHMS),
    budget: float = 0.3,
    vary: str | None = None,
    seeds: tuple[int, ...] = (0,),
    total_timesteps: int = 400_000,
    json: OutputFile = None,
) -> None:
    """Try settings of algorithms at one budget, on validation images; resumes what is missing.

    Args:
        out: folder of the run directories.
        env: environment arguments.
        algorithms: names.
        budget: mean share of the dense net's compute that all hold.
        vary: JSON object of the values of hyperparameters, e.g. '{"learning_rate": [0.001, 0.003]}', of which all
            combinations are tried; a few around each algorithm's defaults if not given.
        seeds: of training; accuracies are means over them.
        total_timesteps: environment steps of each run.
        json: also write the numbers here.
    """
    base = TrainConfig(total_timesteps=total_timesteps, env=env.changed(), budget=budget)
    values = None if vary is None else _json_object("vary", vary)
    rows = sweep_trials(make_trials(base, out, algorithms, seeds, values))
    grid = sweep_grid(rows, budget)
    console.print(grid.table())
    arguments = {"budget": budget, "total_timesteps": total_timesteps, "env": env.arguments()}
    write_result(json, {"settings": arguments, "versions": versions(), "trials": rows})


def _show(evaluations: Sequence[dict[str, Any]], figure: Path | None) -> tuple[Grid, ...]:
    grids = accuracy_grid(evaluations), difference_grid(evaluations)
    _print(grids)
    if figure is not None:
        points = frontiers(evaluations)
        algorithms = {evaluation["algorithm"] for evaluation in by_regime(evaluations)}
        draw_accuracy_over_compute(
            points, _with_folder(figure), lines=[name for name in points if name not in algorithms]
        )
    return grids


def _print(grids: Sequence[Grid]) -> None:
    for grid in grids:
        console.print(grid.table())


def _with_folder(path: Path) -> Path:
    """The same path; its folder is there now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _deployed(spent: float, budget: float) -> str:
    """What a network spends, and whether it misses its budget."""
    missed = f", which misses the budget of {100 * budget:.3g}%" if abs(spent - budget) > OFF_BUDGET else ""
    return f"{100 * spent:.1f}% of the dense compute on validation images{missed}"


def _tell_published(algorithm: str, config: TrainConfig) -> None:
    """Say which arguments of the environment come from the algorithm, as they were left at their defaults."""
    published = {name: value for name, value in ALGORITHMS[algorithm].env.items() if name not in config.env}
    if published:
        told = ", ".join(f"{name} {value}" for name, value in published.items())
        console.print(
            f"{algorithm}: as published, with {told}; other values than the usual defaults go before",
            markup=False,
            soft_wrap=True,
        )


def _joint(joint: bool, config: JointConfig) -> JointConfig | None:
    if config != JointConfig() and not joint:
        raise ValueError("joint: expected --joint beside options of joint training, got these alone")
    return config if joint else None


def _json_object(argument: str, text: str) -> dict[str, Any]:
    try:
        values = jsonlib.loads(text)
    except jsonlib.JSONDecodeError as error:
        raise ValueError(f"{argument}: expected a JSON object, got {text!r}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{argument}: expected a JSON object, got {text!r}")
    return values
