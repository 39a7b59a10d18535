"""What `vitskip compare` found, as a table and as the points of a picture."""

from collections.abc import Iterator, Sequence
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
        title=f"{', '.join(regimes)}: test accuracy [%] at a share of the dense compute; {full}; {len(seeds)} seeds",
        caption="= not half a point worse than any of the full networks; > better than every rival (95%, paired)",
    )
    for heading in ("network", *(f"{100 * budget:.0f}%" for budget in budgets), "hypervolume", "paths", "bits"):
        table.add_column(escape(heading), justify="left" if heading == "network" else "right")
    for name, rows in _series(evaluations):
        by_budget = [[row for budget, row in rows if budget == wanted] for wanted in budgets]
        paths = np.mean([row["distinct_paths"] for _, row in rows])
        bits = np.mean([row["path_bits"] for _, row in rows])
        macs, accuracy = (np.array([row[key] for _, row in rows]) for key in ("macs_fraction", "accuracy"))
        volume = f"{hypervolume(macs, accuracy):.3f}"
        table.add_row(name, *map(_cell, by_budget), volume, f"{paths:.0f}", f"{bits:.1f}")
    return table


def _full_networks(evaluations: Evaluations) -> dict[str, float]:
    """Mean accuracy of the full networks by name: the cells' own, and those that joint ones are held against."""
    known = [{"dense": evaluation["dense"], **evaluation.get("references", {})} for evaluation in evaluations]
    names = dict.fromkeys(name for networks in known for name in networks)
    return {name: float(np.mean([n[name]["accuracy"] for n in known if name in n])) for name in names}


def frontiers(evaluations: Evaluations) -> dict[str, list[Point]]:
    """(MACs fraction, test accuracy) at each budget, means over seeds, of all networks but the oracle, and of dense."""
    points = {}
    for name, rows in _series(evaluations):
        by_budget = [[row for at, row in rows if at == budget] for budget in _budgets(evaluations)]
        if "oracle" not in name:
            points[name.strip()] = [_mean_point(found) for found in by_budget if found]
    return points | {name: [(1.0, accuracy)] for name, accuracy in _full_networks(evaluations).items()}


def _budgets(evaluations: Evaluations) -> list[float]:
    return sorted({evaluation["budget"] for evaluation in evaluations})


def _mean_point(rows: Sequence[dict[str, Any]]) -> Point:
    macs, accuracy = (float(np.mean([row[key] for row in rows])) for key in ("macs_fraction", "accuracy"))
    return macs, accuracy


def _series(evaluations: Evaluations) -> Iterator[tuple[str, list[tuple[float, dict[str, Any]]]]]:
    """(network, [(budget, numbers)]): the algorithms, then the baselines at their compute."""
    for algorithm in dict.fromkeys(evaluation["algorithm"] for evaluation in evaluations):
        mine = [evaluation for evaluation in evaluations if evaluation["algorithm"] == algorithm]
        yield (
            algorithm,
            [(evaluation["budget"], {**evaluation["net"], "signs": _signs(evaluation)}) for evaluation in mine],
        )
    rivals = [(e["budget"], {**e["rivals"], "oracle (agrees)": e["oracles"]["agrees"]}) for e in evaluations]
    for rival in dict.fromkeys(name for _, found in rivals for name in found):
        yield f"  {rival}", [(budget, found[rival]) for budget, found in rivals if rival in found]


def _signs(evaluation: dict[str, Any]) -> set[str]:
    level = all(evaluation["no_worse_by_half_a_point"].values())
    ahead = all(evaluation["net_minus"][rival]["low"] > 0 for rival in evaluation["rivals"])
    return ({"="} if level else set()) | ({">"} if ahead else set())


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and interval over seeds, and the signs that all of them have."""
    if not rows:
        return "-"
    values = np.array([row["accuracy"] for row in rows])
    signs = "".join(sorted(set.intersection(*(row.get("signs", set()) for row in rows))))
    low, high = bootstrap_interval(values)
    interval = f" [{100 * low:.2f}, {100 * high:.2f}]" if len(values) > 1 else ""
    return f"{100 * values.mean():.2f}{escape(interval)}{' ' * bool(signs)}{signs}"
