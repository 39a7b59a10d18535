"""Where results go: tables to the console, JSON values to a file that the user names."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vitskip.agents.run_directory import write_json

console = Console(width=None if sys.stdout.isatty() else 120)  # tables whole in files and pipes


def write_result(path: Path | None, values: Any) -> None:
    """Write JSON values where the user wants them, if so."""
    if path is not None:
        write_json(path, values)
