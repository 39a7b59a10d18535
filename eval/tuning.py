"""Defaults under one stated budget: a few settings around each algorithm's own, judged on the validation part.

python -m vitskip.eval.tuning [OUT] [--algorithms ppo a2c ...] [--json PATH]

Resumes where it was stopped; runs that are finished are only read. The test part is not touched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from ..agents.algorithms import ALGORITHMS
from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import check_settings, versions, write_json
from ..agents.training import TrainConfig, train
from ..backbone import load_dataset
from ..envs import EnvConfig
from .measurement import measure

FACTORS = {"learning_rate": (1 / 3, 3.0), "ent_coef": (1 / 3, 3.0), "batch_size": (1 / 2, 2.0)}


def settings_of(name: str) -> list[dict[str, Any]]:
    """An algorithm's defaults ({}), and one of its hyperparameters changed at a time."""
    defaults = ALGORITHMS[name].hyperparameters
    varied = [(key, factor) for key, factors in FACTORS.items() if key in defaults for factor in factors]
    return [{}, *({key: type(defaults[key])(defaults[key] * factor)} for key, factor in varied)]


def main(
    out: tyro.conf.Positional[Path] = Path("runs/tuning"),
    algorithms: tuple[str, ...] = (),
    budget: float = 0.3,
    seeds: tuple[int, ...] = (0,),
    total_timesteps: int = 400_000,
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = EnvConfig(),  # noqa: B008 - frozen
    json: Path | None = None,
) -> None:
    """Train what is missing, and print validation accuracy by setting.

    Args:
        out: folder of the run directories.
        algorithms: names; all if not given.
        budget: mean share of the dense net's MACs that all hold.
        seeds: of training; the accuracy is the mean over them.
        total_timesteps: environment steps of each run.
        env: environment arguments.
        json: also write the numbers here.
    """
    names = algorithms or tuple(ALGORITHMS)
    trials = [(name, setting) for name in names for setting in settings_of(name)]
    rows = []
    for name, setting in tqdm(trials, desc="tuning", unit="setting", disable=None):
        found = []
        for seed in seeds:
            config = TrainConfig(name, total_timesteps, seed, None, setting, env.changed(), budget)
            found.append(_validated(config, out / f"{name}{_suffix(setting)}-seed{seed}"))
        row = {key: sum(values[key] for values in found) / len(found) for key in found[0]}
        rows.append({"algorithm": name, "setting": setting, **row})
    Console(width=120).print(tuning_table(rows, budget))
    if json is not None:
        arguments = {"budget": budget, "seeds": seeds, "total_timesteps": total_timesteps, "env": env.arguments()}
        write_json(json, {"settings": arguments, "versions": versions(), "trials": rows})


def _suffix(setting: dict[str, Any]) -> str:
    return "".join(f"-{name}-{value:.2g}" for name, value in setting.items())


def _validated(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Accuracy and compute on validation of a run, trained if it is missing."""
    check_settings(folder, config.record)
    if not (folder / "run.json").is_file():
        train(config, folder, progress_bar=False)
    env = config.env_config
    found = measure(DynamicViT.load(folder), load_dataset(env.dataset, "validation", env.data_root))
    return {"accuracy": found.accuracy, "macs_fraction": found.macs_fraction}


def tuning_table(trials: Sequence[dict[str, Any]], budget: float) -> Table:
    """A row for each algorithm: its defaults, and what each change makes of them."""
    table = Table(title=f"validation accuracy [%] at {100 * budget:.0f}% of the dense compute")
    for heading in ("algorithm", "defaults", "one setting changed"):
        table.add_column(heading, justify="right" if heading == "defaults" else "left")
    for name in dict.fromkeys(trial["algorithm"] for trial in trials):
        mine = [trial for trial in trials if trial["algorithm"] == name]
        default = next(trial["accuracy"] for trial in mine if not trial["setting"])
        changes = (
            f"{key} {value:.2g}: {100 * (trial['accuracy'] - default):+.2f}"
            for trial in mine
            for key, value in trial["setting"].items()
        )
        table.add_row(name, f"{100 * default:.2f}", escape(", ".join(changes)))
    return table


if __name__ == "__main__":
    tyro.cli(main)
