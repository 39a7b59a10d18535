"""Where results go: tables to the console, JSON values to a file that the user names."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
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


def watch_others() -> Callable[[], str]:
    """Watch the machine while times are taken.

    Returns:
        Tells what to say beside times taken since; empty if others, a virtual machine's host among them, took less than
        a tenth of the cores.
    """
    began, before, count = time.perf_counter(), _cpu_seconds_of_others(), os.cpu_count() or 1

    def told() -> str:
        cores = (_cpu_seconds_of_others() - before) / (time.perf_counter() - began)
        if cores <= count / 10:
            return ""
        return f"other work took {cores:.1f} of {count} cores meanwhile: do not trust these times"

    return told


def _cpu_seconds_of_others() -> float:
    machine, own = psutil.cpu_times()._asdict(), os.times()
    unused = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is its user's, too
    return sum(seconds for name, seconds in machine.items() if name not in unused) - sum(own[:4])


def write_result(path: Path | None, values: Any) -> None:
    """Write JSON values where the user wants them, if so."""
    if path is not None:
        write_json(path, values)
