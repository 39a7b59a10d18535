"""What `vitskip benchmark` measured of several networks, as one table and as the lines of a picture."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backbone.json_files import read_json
from .grid import Grid
from .statistics import geometric_mean

SpeedUps = Mapping[str, Mapping[int, float]]  # how many times as fast as dense, by network and batch size
REQUIRED = frozenset({"run", "device", "threads", "versions", "sizes"})


def is_benchmark(path: Path) -> bool:
    """Whether a file is one that `vitskip benchmark --json` wrote."""
    if not path.is_file():
        return False
    try:
        values = read_json(path)
    except ValueError:
        return False
    return isinstance(values, dict) and values.keys() >= REQUIRED


def read_speed_ups(paths: Iterable[Path]) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Of the networks of some benchmarks, each followed by its rivals, and which of the names are rivals'.

    A rival that stands in several files is that of the first.

    Args:
        paths: files for which `is_benchmark`.

    Raises:
        ValueError: if two files are of the same network at the same budget.
    """
    networks: dict[str, dict[int, float]] = {}
    rivals: list[str] = []
    for path in paths:
        values = read_json(path)
        name = _name(values)
        if name in networks:
            raise ValueError(f"{path}: expected each network once, got {name} again")
        networks[name] = {row["batch_size"]: row["speed_up"] for row in values["sizes"]}
        for rival in values["sizes"][0].get("rival_speed_ups", {}):
            if rival not in networks:
                networks[rival] = {row["batch_size"]: row["rival_speed_ups"][rival] for row in values["sizes"]}
                rivals.append(rival)
    return networks, rivals


def speed_up_grid(networks: SpeedUps) -> Grid:
    """How many times as fast as the dense network at each batch size, and the means over them."""
    sizes = sorted({size for speed_ups in networks.values() for size in speed_ups})
    lines = []
    for name, speed_ups in networks.items():
        values = np.array(list(speed_ups.values()))
        cells = [_ratio(speed_ups[size]) if size in speed_ups else "-" for size in sizes]
        lines.append([name, *cells, _ratio(values.mean()), _ratio(geometric_mean(values))])
    return Grid("speed-up over dense at batch", ["network", *map(str, sizes), "mean", "geo. mean"], lines)


def _name(values: Mapping[str, Any]) -> str:
    """What was timed and how, e.g. "cifar10-ppo at 40%, adapted"."""
    budget = values.get("budget")
    at = "" if budget is None else f" at {100 * budget:g}%"
    return values["run"] + at + (", adapted" if values.get("adapted") else "")


def _ratio(value: float) -> str:
    return f"{value:.2f}"
