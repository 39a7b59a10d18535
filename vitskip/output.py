"""Where results go: tables to the console, JSON values to a file that the user names."""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vitskip.backbone.json_files import write_json

console = Console(width=None if sys.stdout.isatty() else 120)  # tables whole in files and pipes


def other_work() -> str:
    """What to say beside times that are taken now if other work runs on this machine; empty if none does."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load <= cores / 4:
        return ""
    return f"other work ran on this machine (load {load:.1f} on {cores} cores): do not trust these times"


def write_result(path: Path | None, values: Any) -> None:
    """Write JSON values where the user wants them, if so."""
    if path is not None:
        write_json(path, values)
