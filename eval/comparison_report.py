"""What `vitskip compare` found, as tables and as the points of a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone.json_files import read_json
from .figures import Point
from .frontier import hypervolume
from .grid import Grid
from .statistics import mean_interval

OFF_BUDGET = 0.02  # share of the dense compute by which a network may miss a budget before its cell says so
MANY_SEEDS = 3  # of which an interval of their mean tells something

Evaluations = Sequence[dict[str, Any]]  # of the cells, as `compare` returns them
REQUIRED = frozenset({"algorithm", "regime", "budget", "seed", "net", "dense", "rivals", "net_minus", "oracles"})


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """What a comparison has found so far.

    Args:
        path: its folder, finished or not, or the JSON file that it wrote.

    Raises:
        FileNotFoundError: if there is nothing, or no finished cell.
        ValueError: if a file holds something else.
    """
    files = [path] if path.is_file() else sorted(path.glob("*/evaluation-*.json"))
    if not files:
        raise FileNotFoundError(
            f"comparison: expected a folder of `vitskip compare` with finished cells, or its JSON file, got {path}"
        )
    found = []
    for file in files:
        values = read_json(file)
        cells = values if isinstance(values, list) else [values]
        if not cells or not all(isinstance(cell, dict) and cell.keys() >= REQUIRED for cell in cells):
            raise ValueError(f"{file}: expected what `vitskip compare` writes, with {', '.join(sorted(REQUIRED))}")
        found += cells
    by_seed = sorted(found, key=lambda cell: (cell["seed"], cell["algorithm"], cell["budget"]))
    return by_seed if path.is_dir() else found


def by_regime(evaluations: Evaluations) -> Evaluations:
    """The same; an algorithm that comes in several regimes has each of them in its name."""
    regimes: dict[str, set[str]] = {}
    for evaluation in evaluations:
        regimes.setdefault(evaluation["algorithm"], set()).add(evaluation["regime"])
    several = {algorithm for algorithm, found in regimes.items() if len(found) > 1}
    return [
        {**evaluation, "algorithm": f"{evaluation['algorithm']} ({evaluation['regime']})"}
        if evaluation["algorithm"] in several
        else evaluation
        for evaluation in evaluations
    ]


def accuracy_grid(evaluations: Evaluations) -> Grid:
    """Test accuracy of each algorithm and baseline at each budget: mean over seeds, 95% interval of many.

    The hypervolume is that of a network at all budgets, up to the dense compute; that of a baseline is the mean over
    the agents that it stands beside. Signs tell what paired tests on the same images found in every seed. A baseline is
    shown at the compute of the agents that hold the budget, if any does. Where each algorithm has trained a net of its
    own, a column tells what all blocks of that reach, and a baseline is the mean over those nets.
    """
    evaluations = by_regime(evaluations)
    budgets, regimes = _budgets(evaluations), dict.fromkeys(evaluation["regime"] for evaluation in evaluations)
    full = "; ".join(f"{name} {100 * accuracy:.2f}" for name, accuracy in _full_networks(evaluations).items())
    joint = any(regime.startswith("joint") for regime in regimes)
    lines = []
    for name, rows in _series(evaluations).items():
        paths = np.mean([row["distinct_paths"] for row in rows])
        bits = [row["path_bits"] for row in rows]
        told = "-" if None in bits else f"{np.mean(bits):.1f}"
        cells = (_cell(_at(budget, rows)) for budget in budgets)
        own = [_own_full_net(rows)] if joint else []
        lines.append([name, *cells, *own, f"{_mean_hypervolume(rows):.3f}", f"{paths:.0f}", told])
    return Grid(
        f"{', '.join(regimes)}: test accuracy [%] at a share of the dense compute; {full}; {_seeds(evaluations)}",
        ["network", *map(_percent, budgets), *["own full net"] * joint, "hypervolume", "paths", "bits"],
        lines,
        "= not half a point worse than any of the full networks; > better than every rival (95%, paired); in brackets "
        "the share that a network spends which exceeds the budget",
    )


def difference_grid(evaluations: Evaluations) -> Grid:
    """Each algorithm's accuracy minus that of each other network at each budget.

    Means over seeds where there are at least `MANY_SEEDS`; fewer have a line each. The 95% interval of one seed is that
    of the paired test on the test images, that of a mean holds the chance of seeds and of images.
    """
    evaluations = by_regime(evaluations)
    budgets = _budgets(evaluations)
    lines = []
    for algorithm in dict.fromkeys(evaluation["algorithm"] for evaluation in evaluations):
        mine = [evaluation for evaluation in evaluations if evaluation["algorithm"] == algorithm]
        for other in dict.fromkeys(name for evaluation in mine for name in evaluation["net_minus"]):
            for seed, cells in _by_few_seeds(mine).items():
                tests = [
                    [e["net_minus"][other] for e in _at(budget, cells) if other in e["net_minus"]] for budget in budgets
                ]
                lines.append([f"{algorithm} - {other}{seed}", *map(_difference, tests)])
    return Grid(
        f"difference in test accuracy [points]; {_seeds(evaluations)}",
        ["networks", *map(_percent, budgets)],
        lines,
        f"in brackets 95%: of the images with fewer than {MANY_SEEDS} seeds, of images and seeds with more",
    )


def _by_few_seeds(evaluations: Evaluations) -> dict[str, Evaluations]:
    """The cells of each seed by what a line of theirs says at its end; all together if there are one or many seeds."""
    seeds = sorted({evaluation["seed"] for evaluation in evaluations})
    if not 1 < len(seeds) < MANY_SEEDS:
        return {"": evaluations}
    return {f", seed {seed}": [cell for cell in evaluations if cell["seed"] == seed] for seed in seeds}


def _seeds(evaluations: Evaluations) -> str:
    count = len({evaluation["seed"] for evaluation in evaluations})
    return f"{count} seed{'s' * (count > 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _difference(tests: Sequence[dict[str, float]]) -> str:
    if not tests:
        return "-"
    values = np.array([test["difference"] for test in tests])
    if 1 < len(tests) < MANY_SEEDS:  # of a comparison that is not finished
        return f"{100 * values.mean():+.2f}"
    image_error = float(np.mean([test["high"] - test["low"] for test in tests])) / 2
    low, high = (tests[0]["low"], tests[0]["high"]) if len(tests) == 1 else mean_interval(values, image_error)
    return f"{100 * values.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _full_networks(evaluations: Evaluations) -> dict[str, float]:
    """Mean accuracy of the full networks by name: the cells' own, and those that joint ones are held against."""
    known = [{"dense": evaluation["dense"], **evaluation.get("references", {})} for evaluation in evaluations]
    names = dict.fromkeys(name for networks in known for name in networks)
    return {name: float(np.mean([n[name]["accuracy"] for n in known if name in n])) for name in names}


def frontiers(evaluations: Evaluations) -> dict[str, list[Point]]:
    """(MACs fraction, test accuracy) at each budget, means over seeds, of all networks but the oracle, and of dense."""
    evaluations, points = by_regime(evaluations), {}
    for name, rows in _series(evaluations).items():
        by_budget = [_at(budget, rows) for budget in _budgets(evaluations)]
        if "oracle" not in name:
            points[name.strip()] = [_mean_point(found) for found in by_budget if found]
    return points | {name: [(1.0, accuracy)] for name, accuracy in _full_networks(evaluations).items()}


def _budgets(evaluations: Evaluations) -> list[float]:
    return sorted({evaluation["budget"] for evaluation in evaluations})


def _at(budget: float, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["budget"] == budget]


def _mean_point(rows: Sequence[dict[str, Any]]) -> Point:
    macs, accuracy = (float(np.mean([row[key] for row in rows])) for key in ("macs_fraction", "accuracy"))
    return macs, accuracy


def _series(evaluations: Evaluations) -> dict[str, list[dict[str, Any]]]:
    """Numbers of each cell by network: the algorithms, then the baselines at their compute."""
    networks: dict[str, list[dict[str, Any]]] = {evaluation["algorithm"]: [] for evaluation in evaluations}
    for evaluation in evaluations:
        cell = {name: evaluation[name] for name in ("algorithm", "budget", "seed")}
        own = {**evaluation["net"], "full": evaluation["dense"]["accuracy"], "signs": _signs(evaluation)}
        networks[evaluation["algorithm"]].append({**cell, **own})
        at_its_compute = abs(evaluation["net"]["macs_fraction"] - evaluation["budget"]) <= OFF_BUDGET
        for rival, numbers in {**evaluation["rivals"], "oracle (agrees)": evaluation["oracles"]["agrees"]}.items():
            networks.setdefault(f"  {rival}", []).append({**cell, **numbers, "held": at_its_compute})
    return networks


def _signs(evaluation: dict[str, Any]) -> set[str]:
    level = all(evaluation["no_worse_by_half_a_point"].values())
    ahead = all(evaluation["net_minus"][rival]["low"] > 0 for rival in evaluation["rivals"])
    return ({"="} if level else set()) | ({">"} if ahead else set())


def _own_full_net(rows: Sequence[dict[str, Any]]) -> str:
    """What all blocks of an algorithm's own nets reach, in the mean; baselines have none."""
    full = _by_seed([row for row in rows if "full" in row], "full")
    return f"{100 * full.mean():.2f}" if len(full) else "-"


def _mean_hypervolume(rows: Sequence[dict[str, Any]]) -> float:
    """Over algorithms and seeds, of each at all budgets: more of them would dominate more by chance."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault((row["algorithm"], row["seed"]), []).append((row["macs_fraction"], row["accuracy"]))
    return float(np.mean([hypervolume(*np.array(points).T) for points in groups.values()]))


def _by_seed(rows: Sequence[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """Mean of a number over the rows of each seed."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row["seed"], []).append(row[key])
    return np.array([np.mean(of_seed) for of_seed in values.values()], np.float64)


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds, interval of many, and the signs that all rows have; baselines have a row for each algorithm."""
    if not rows:
        return "-"
    rows = [row for row in rows if row.get("held", True)] or rows
    values = _by_seed(rows, "accuracy")
    signs = "".join(sorted(set.intersection(*(row.get("signs", set()) for row in rows))))
    interval = ""
    if len(values) >= MANY_SEEDS:
        low, high = mean_interval(values)
        interval = f" [{100 * low:.2f}, {100 * high:.2f}]"
    spent = np.mean([row["macs_fraction"] for row in rows])
    exceeded = f" ({100 * spent:.0f}%)" if spent - rows[0]["budget"] > OFF_BUDGET else ""
    return f"{100 * values.mean():.2f}{interval}{exceeded}{' ' * bool(signs)}{signs}"
