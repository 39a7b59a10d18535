"""What `vitskip compare` found, as a table and as the points of a picture."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from .figures import Point
from .frontier import hypervolume
from .statistics import bootstrap_interval

Evaluations = Sequence[dict[str, Any]]  # of the cells, as `compare` returns them


def accuracy_table(evaluations: Evaluations) -> Table:
    """Test accuracy of each algorithm and baseline at each budget: mean over seeds, and its 95% interval.

    The hypervolume is that of all its networks together, up to the dense compute.
    """
    budgets = _budgets(evaluations)
    seeds = {evaluation["seed"] for evaluation in evaluations}
    full = "; ".join(f"{name} {100 * accuracy:.2f}" for name, accuracy in _full_networks(evaluations).items())
    table = Table(title=f"test accuracy [%] at a share of the dense compute; {full}; {len(seeds)} seeds")
    for heading in (
        "regime",
        "network",
        *(f"{100 * budget:.0f}%" for budget in budgets),
        "hypervolume",
        "paths",
        "bits",
    ):
        table.add_column(escape(heading), justify="left" if heading in ("regime", "network") else "right")
    for regime, name, rows in _series(evaluations):
        by_budget = [np.array([row["accuracy"] for budget, row in rows if budget == wanted]) for wanted in budgets]
        paths = np.mean([row["distinct_paths"] for _, row in rows])
        bits = np.mean([row["path_bits"] for _, row in rows])
        macs, accuracy = (np.array([row[key] for _, row in rows]) for key in ("macs_fraction", "accuracy"))
        volume = f"{hypervolume(macs, accuracy):.3f}"
        table.add_row(regime, name, *map(_mean, by_budget), volume, f"{paths:.0f}", f"{bits:.1f}")
    return table


def _full_networks(evaluations: Evaluations) -> dict[str, float]:
    """Mean accuracy of the full networks by name: the cells' own, and those that joint ones are held against."""
    known = [{"dense": evaluation["dense"], **evaluation.get("references", {})} for evaluation in evaluations]
    names = dict.fromkeys(name for networks in known for name in networks)
    return {name: float(np.mean([n[name]["accuracy"] for n in known if name in n])) for name in names}


def frontiers(evaluations: Evaluations) -> dict[str, list[Point]]:
    """(MACs fraction, test accuracy) at each budget, means over seeds, of all networks but the oracle, and of dense."""
    one_regime = len({evaluation["regime"] for evaluation in evaluations}) == 1
    points = {}
    for regime, name, rows in _series(evaluations):
        if "oracle" in name:
            continue
        by_budget = [[row for at, row in rows if at == budget] for budget in _budgets(evaluations)]
        label = name.strip() if one_regime else f"{regime}: {name.strip()}"
        points[label] = [_mean_point(found) for found in by_budget if found]
    return points | {name: [(1.0, accuracy)] for name, accuracy in _full_networks(evaluations).items()}


def _budgets(evaluations: Evaluations) -> list[float]:
    return sorted({evaluation["budget"] for evaluation in evaluations})


def _mean_point(rows: Sequence[dict[str, Any]]) -> Point:
    macs, accuracy = (float(np.mean([row[key] for row in rows])) for key in ("macs_fraction", "accuracy"))
    return macs, accuracy


def _series(evaluations: Evaluations) -> Iterator[tuple[str, str, list[tuple[float, dict[str, Any]]]]]:
    """(regime, network, [(budget, numbers)]): the algorithms, then the baselines at their compute."""
    for regime in dict.fromkeys(evaluation["regime"] for evaluation in evaluations):
        mine = [evaluation for evaluation in evaluations if evaluation["regime"] == regime]
        for algorithm in dict.fromkeys(evaluation["algorithm"] for evaluation in mine):
            yield regime, algorithm, [(e["budget"], e["net"]) for e in mine if e["algorithm"] == algorithm]
        rivals = [(e["budget"], {**e["rivals"], "oracle (agrees)": e["oracles"]["agrees"]}) for e in mine]
        for rival in dict.fromkeys(name for _, found in rivals for name in found):
            yield regime, f"  {rival}", [(budget, found[rival]) for budget, found in rivals if rival in found]


def _mean(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "-"
    if len(values) == 1:
        return f"{100 * values[0]:.2f}"
    low, high = bootstrap_interval(values)
    return f"{100 * values.mean():.2f} [{100 * low:.2f}, {100 * high:.2f}]"
