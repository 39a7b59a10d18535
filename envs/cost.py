"""What a unit costs an agent: its share in the MACs of all units, or in the time that they take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone.json_files import read_json
from ..backbone.protocol import ActionUnit, Backbone
from ..backbone.registry import unknown_name

LATENCY = "latency:"  # and a file that `vitskip latency` has written
LATENCY_FORMAT = "vitskip-latency"


def check_cost(name: str) -> None:
    """Raise ValueError for what is neither "macs" nor "latency:FILE"; the file is read when it is needed."""
    is_table = isinstance(name, str) and name.startswith(LATENCY) and name != LATENCY
    if name != "macs" and not is_table:
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
        costs = _read_latency(Path(name.removeprefix(LATENCY)), backbone.macs.units(action_unit))
    return costs / costs.sum()


def _read_latency(path: Path, macs: Sequence[int]) -> NDArray[np.float64]:
    """Seconds that each unit takes, [U], of a backbone whose units have these MACs."""
    if not path.is_file():
        raise FileNotFoundError(f"cost: expected a table of `vitskip latency`, found no file at {path}")
    table = read_json(path)
    if not isinstance(table, dict) or table.get("format") != LATENCY_FORMAT:
        raise ValueError(f"cost: expected a table of `vitskip latency` in {path}, got something else")
    if table.get("macs") != list(macs):
        raise ValueError(
            f"cost: expected the times of units with {_shown(list(macs))} MACs in {path}, "
            f"got those of a table with {_shown(table.get('macs'))}"
        )
    seconds = table.get("seconds")
    if not (isinstance(seconds, list) and len(seconds) == len(macs) and all(map(_is_time, seconds))):
        raise ValueError(f"cost: expected {len(macs)} times of more than 0 seconds in {path}, got {seconds}")
    return np.array(seconds, np.float64)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _shown(macs: Any) -> str:
    return f"{len(macs)} times {macs[0]}" if isinstance(macs, list) and len(set(map(str, macs))) == 1 else str(macs)
