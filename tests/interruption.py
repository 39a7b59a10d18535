"""Processes that end while they write."""

from pathlib import Path
from typing import Any

import pytest


def interrupt_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of every file is written, then the process is interrupted."""

    def interrupted(path: Path, content: bytes | str, **arguments: Any) -> None:
        half = content[: len(content) // 2]
        with path.open("wb") as stream:
            stream.write(half.encode() if isinstance(half, str) else half)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    monkeypatch.setattr(Path, "write_bytes", interrupted)
