"""`vitskip sweep`: settings of an algorithm, each trained at one budget and judged on the validation part.

What learns on that part is trained twice, on each half of it, and judged on the other. Runs that are finished are only
read; the test part is not touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..agents.algorithms import ALGORITHMS, check_hyperparameters
from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import check_settings, is_run
from ..agents.training import TrainConfig, train
from ..backbone import load_dataset
from ..backbone.datasets import Split, validation_splits
from ..envs.config import EnvArguments
from .comparison import check_each_once
from .grid import Grid
from .measurement import measure

FACTORS = {"learning_rate": (1 / 3, 3.0), "ent_coef": (1 / 3, 3.0), "batch_size": (1 / 2, 2.0)}

Setting = dict[str, Any]  # hyperparameters that differ from the defaults


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        config: what is trained.
        folder: its run directory.
    """

    config: TrainConfig
    folder: Path

    @property
    def judged_on(self) -> Split:
        """Validation images that it has not learnt on."""
        return validation_splits(self.config.env_config.split)[1]


def around_defaults(algorithm: str) -> list[Setting]:
    """An algorithm's defaults ({}), and one of its hyperparameters changed at a time."""
    defaults = ALGORITHMS[algorithm].hyperparameters
    varied = [(name, factor) for name, factors in FACTORS.items() if name in defaults for factor in factors]
    return [{}, *({name: _scaled(defaults[name], factor)} for name, factor in varied)]


def combinations(values: Mapping[str, Any]) -> list[Setting]:
    """The defaults ({}), and all combinations of the values given for each hyperparameter.

    Raises:
        ValueError: if a hyperparameter has no list of values, or one of them twice.
    """
    for name, given in values.items():
        if not isinstance(given, list | tuple) or not given or any(given.count(value) > 1 for value in given):
            raise ValueError(f"vary: expected a list of values for {name}, each once, got {given!r}")
    return [{}, *(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()) if chosen)]


def make_trials(
    base: TrainConfig,
    out: Path,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    vary: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """All settings of all algorithms, first seed first.

    Args:
        base: everything else; it must hold a budget, or accuracies at different compute would be compared. Where its
            environment shows the validation part, there are two trials of each setting, one for each half.
        out: folder of the run directories.
        algorithms: names.
        seeds: of training.
        vary: values of hyperparameters, of which all combinations are tried; a few around each algorithm's defaults,
            one changed at a time, if not given.

    Raises:
        ValueError: for an unknown algorithm or hyperparameter, one without values, no budget, and what comes twice or
            not at all.
    """
    check_each_once(algorithms=algorithms, seeds=seeds)
    if base.budget is None:
        raise ValueError("budget: expected a share of the dense compute in (0, 1), got none")
    trials = []
    for seed in seeds:
        for name in algorithms:
            for setting in around_defaults(name) if vary is None else combinations(vary):
                config = replace(base, algorithm=name, seed=seed, hyperparameters=setting)
                _ = config.env_config  # what is wrong is refused before anything is trained
                check_hyperparameters(name, setting)
                changed = "".join(f"-{key}-{_short(value)}" for key, value in setting.items())
                trials += _cross_fitted(Trial(config, out / f"{name}{changed}-seed{seed}"))
    return trials


def _cross_fitted(trial: Trial) -> list[Trial]:
    """One trial for each half of the validation part, where that is what it learns on."""
    if trial.config.env_config.split != "validation":
        return [trial]
    halves: tuple[Split, ...] = ("validation-even", "validation-odd")
    return [
        Trial(
            replace(trial.config, env=EnvArguments(**{**trial.config.env, "split": half})),
            trial.folder.with_name(f"{trial.folder.name}-{half}"),
        )
        for half in halves
    ]


def sweep(trials: Sequence[Trial], *, progress_bar: bool = True) -> list[dict[str, Any]]:
    """Train and judge what is missing.

    Args:
        trials: from `make_trials`.
        progress_bar: show one.

    Returns:
        Algorithm, setting, seed, what it was judged on, and accuracy and MACs fraction there of each trial, in order.

    Raises:
        ValueError: if a finished run was trained with other settings, before anything is trained.
    """
    for trial in trials:
        check_settings(trial.folder, trial.config.record)
    return [
        {
            "algorithm": trial.config.algorithm,
            "setting": dict(trial.config.hyperparameters),
            "seed": trial.config.seed,
            "split": trial.judged_on,
            **_validated(trial),
        }
        for trial in tqdm(trials, desc="sweep", unit="run", disable=None if progress_bar else True)
    ]


def _validated(trial: Trial) -> dict[str, float]:
    """Accuracy and compute on validation of a run, trained if it is missing."""
    if not is_run(trial.folder):
        train(trial.config, trial.folder, progress_bar=False)
    env = trial.config.env_config
    found = measure(
        DynamicViT.load(trial.folder, device=env.device), load_dataset(env.dataset, trial.judged_on, env.data_root)
    )
    return {"accuracy": found.accuracy, "macs_fraction": found.macs_fraction}


def sweep_grid(rows: Sequence[dict[str, Any]], budget: float) -> Grid:
    """A row for each algorithm: its defaults, and what each other setting makes of them; means over seeds."""
    lines = []
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        found: dict[str, list[float]] = {}
        for row in rows:
            if row["algorithm"] == name:
                setting = " ".join(f"{key} {_short(value)}" for key, value in row["setting"].items())
                found.setdefault(setting, []).append(100 * row["accuracy"])
        default = np.mean(found.pop(""))
        changes = (f"{setting}: {np.mean(accuracies) - default:+.2f}" for setting, accuracies in found.items())
        lines.append((name, f"{default:.2f}", ", ".join(changes)))
    title = f"validation accuracy [%] at {100 * budget:g}% of the dense compute"
    return Grid(title, ("algorithm", "defaults", "other settings, minus the defaults"), lines, texts=(0, 2))


def _scaled(value: float, factor: float) -> float:
    """Two digits of a product, or the nearest integer of one."""
    return round(value * factor) if isinstance(value, int) else float(f"{value * factor:.2g}")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
