"""Runs many command lines of `vitskip` in this one process, as its imports take seconds; for `test_cli.py`.

Reads a JSON list of argument lists, writes a JSON list of [exit code, stdout, stderr].
"""

import contextlib
import io
import json
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import toys  # noqa: F401 - registers the tiny names

from vitskip.backbone import Dataset, register_dataset
from vitskip.backbone.digits import digits


def small_digits(split: Any, data_root: Path | None) -> Dataset:
    """Enough images for a batch of pretraining."""
    del data_root
    images, labels, difficulty = digits(split, 256)
    return Dataset(images, labels, tuple("0123456789"), difficulty)


def run(arguments: list[str]) -> tuple[Any, str, str]:
    """The command that pip installs as `vitskip`, with these arguments."""
    (script,) = entry_points(group="console_scripts", name="vitskip")
    sys.argv = ["vitskip", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            code: Any = script.load()()
        except SystemExit as exit_:
            code = exit_.code
        except BaseException:
            code = "crashed"
            traceback.print_exc()
    return code or 0, stdout.getvalue(), stderr.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    register_dataset("small-digits", small_digits)
    lines = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    out.write_text(json.dumps([run(line) for line in lines]))
