"""What a unit costs an agent: its share in the MACs of all units, or in the time that they take."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backbone.protocol import ActionUnit, Backbone
from ..backbone.registry import unknown_name

LATENCY = "latency:"  # and a file that `vitskip latency` has written
LATENCY_FORMAT = "vitskip-latency"


def check_cost(name: str) -> None:
    """Raise ValueError for what is neither "macs" nor "latency:FILE"; the file is read when it is needed."""
    if name != "macs" and (not isinstance(name, str) or not name.removeprefix(LATENCY) or not name.startswith(LATENCY)):
        raise unknown_name("cost", name, ("macs", f"{LATENCY}FILE"))


def cost_shares(name: str, backbone: Backbone, action_unit: ActionUnit) -> NDArray[np.float64]:
    """Share of each unit in the cost of all units, [U], summing to 1.

    Args:
        name: "macs", or "latency:FILE" with a table of measured times.
        backbone: whose units they are.
        action_unit: "block" or "half".

    Raises:
        ValueError: if the cost is unknown, or the table is broken or of other units.
        FileNotFoundError: if there is no such table.
    """
    check_cost(name)
    if name == "macs":
        costs = np.array(backbone.macs.units(action_unit), np.float64)
    else:
        costs = _read_latency(Path(name.removeprefix(LATENCY)), len(backbone.macs.units(action_unit)), action_unit)
    return costs / costs.sum()


def _read_latency(path: Path, units: int, action_unit: ActionUnit) -> NDArray[np.float64]:
    """Seconds that each unit takes, [U]."""
    if not path.is_file():
        raise FileNotFoundError(f"cost: expected a table of `vitskip latency`, found no file at {path}")
    try:
        table = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cost: expected JSON in {path}, got: {error}") from error
    if not isinstance(table, dict) or table.get("format") != LATENCY_FORMAT:
        raise ValueError(f"cost: expected a table of `vitskip latency` in {path}, got something else")
    seconds = table.get("seconds")
    if table.get("action_unit") != action_unit or not isinstance(seconds, list) or len(seconds) != units:
        found = len(seconds) if isinstance(seconds, list) else seconds
        raise ValueError(
            f"cost: expected the times of {units} units ({action_unit}) in {path}, "
            f"got {found} ({table.get('action_unit')})"
        )
    if not all(isinstance(value, int | float) and 0 < value < float("inf") for value in seconds):
        raise ValueError(f"cost: expected times of more than 0 seconds in {path}, got {seconds}")
    return np.array(seconds, np.float64)
