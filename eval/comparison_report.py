"""What `vitskip compare` found, as a table and as the points of a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from .figures import Point
from .frontier import hypervolume
from .statistics import bootstrap_interval

Evaluations = Sequence[dict[str, Any]]  # of the cells, as `compare` returns them


def accuracy_table(evaluations: Evaluations) -> Table:
    """Test accuracy of each algorithm and baseline at each budget: mean over seeds, and its 95% interval.

    The hypervolume is that of all its networks together, up to the dense compute. Signs tell what paired tests on the
    same images found in every seed.
    """
    budgets, regimes = _budgets(evaluations), dict.fromkeys(evaluation["regime"] for evaluation in evaluations)
    seeds = {evaluation["seed"] for evaluation in evaluations}
    full = "; ".join(f"{name} {100 * accuracy:.2f}" for name, accuracy in _full_networks(evaluations).items())
    table = Table(
        title=f"{', '.join(regimes)}: test accuracy [%] at a share of the dense compute; {full}; {len(seeds)} seed(s)",
        caption="= not half a point worse than any of the full networks; > better than every rival (95%, paired)",
    )
    for heading in ("network", *(f"{100 * budget:.0f}%" for budget in budgets), "hypervolume", "paths", "bits"):
        table.add_column(escape(heading), justify="left" if heading == "network" else "right")
    for name, rows in _series(evaluations).items():
        paths = np.mean([row["distinct_paths"] for row in rows])
        bits = np.mean([row["path_bits"] for row in rows])
        macs, accuracy = (np.array([row[key] for row in rows]) for key in ("macs_fraction", "accuracy"))
        volume = f"{hypervolume(macs, accuracy):.3f}"
        table.add_row(name, *(_cell(_at(budget, rows)) for budget in budgets), volume, f"{paths:.0f}", f"{bits:.1f}")
    return table


def _full_networks(evaluations: Evaluations) -> dict[str, float]:
    """Mean accuracy of the full networks by name: the cells' own, and those that joint ones are held against."""
    known = [{"dense": evaluation["dense"], **evaluation.get("references", {})} for evaluation in evaluations]
    names = dict.fromkeys(name for networks in known for name in networks)
    return {name: float(np.mean([n[name]["accuracy"] for n in known if name in n])) for name in names}


def frontiers(evaluations: Evaluations) -> dict[str, list[Point]]:
    """(MACs fraction, test accuracy) at each budget, means over seeds, of all networks but the oracle, and of dense."""
    points = {}
    for name, rows in _series(evaluations).items():
        by_budget = [_at(budget, rows) for budget in _budgets(evaluations)]
        if "oracle" not in name:
            points[name.strip()] = [_mean_point(found) for found in by_budget if found]
    return points | {name: [(1.0, accuracy)] for name, accuracy in _full_networks(evaluations).items()}


def _budgets(evaluations: Evaluations) -> list[float]:
    return sorted({evaluation["budget"] for evaluation in evaluations})


def _at(budget: float, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["budget"] == budget]


def _mean_point(rows: Sequence[dict[str, Any]]) -> Point:
    macs, accuracy = (float(np.mean([row[key] for row in rows])) for key in ("macs_fraction", "accuracy"))
    return macs, accuracy


def _series(evaluations: Evaluations) -> dict[str, list[dict[str, Any]]]:
    """Numbers of each cell by network: the algorithms, then the baselines at their compute."""
    networks: dict[str, list[dict[str, Any]]] = {evaluation["algorithm"]: [] for evaluation in evaluations}
    for evaluation in evaluations:
        cell = {"budget": evaluation["budget"], "seed": evaluation["seed"]}
        networks[evaluation["algorithm"]].append({**cell, **evaluation["net"], "signs": _signs(evaluation)})
        for rival, numbers in {**evaluation["rivals"], "oracle (agrees)": evaluation["oracles"]["agrees"]}.items():
            networks.setdefault(f"  {rival}", []).append({**cell, **numbers})
    return networks


def _signs(evaluation: dict[str, Any]) -> set[str]:
    level = all(evaluation["no_worse_by_half_a_point"].values())
    ahead = all(evaluation["net_minus"][rival]["low"] > 0 for rival in evaluation["rivals"])
    return ({"="} if level else set()) | ({">"} if ahead else set())


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and interval over seeds, and the signs that all rows have; baselines have a row for each algorithm."""
    if not rows:
        return "-"
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row["accuracy"])
    values = np.array([np.mean(accuracies) for accuracies in by_seed.values()])
    signs = "".join(sorted(set.intersection(*(row.get("signs", set()) for row in rows))))
    low, high = bootstrap_interval(values)
    interval = f" [{100 * low:.2f}, {100 * high:.2f}]" if len(values) > 1 else ""
    return f"{100 * values.mean():.2f}{escape(interval)}{' ' * bool(signs)}{signs}"
