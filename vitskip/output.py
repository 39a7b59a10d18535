"""Where results go: tables to the console, JSON values to a file that the user names."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from vitskip.backbone.json_files import write_json

console = Console(width=None if sys.stdout.isatty() else 120)  # tables whole in files and pipes


def _output_file(words: list[str]) -> Path:
    """The file that a user names, refused before any work if it could not be written at the end."""
    path = Path(words[0])
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if path.is_dir():
        raise ValueError(f"expected a file to write, got the folder {path}")
    if there != path and not there.is_dir():
        raise ValueError(f"expected a file to write, got {path} below {there}, which is no folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"expected a file to write, got {path}, but {there} may not be written")
    return path


OutputFile = Annotated[
    Path | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_output_file,
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]


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
