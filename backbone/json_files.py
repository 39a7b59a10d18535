"""JSON on disk: written whole or not at all, and read with errors that name the file."""

import json
import math
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Read the value of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all; numbers that are not finite become null, as JSON knows none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
