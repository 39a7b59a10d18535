"""JSON on disk."""

import json
import re
from pathlib import Path

import pytest
from interruption import interrupt_writes

from vitskip.backbone.json_files import read_json, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "results.json"
    write_json(file, {"accuracy": 0.5})

    with monkeypatch.context() as patch:
        interrupt_writes(patch)
        with pytest.raises(KeyboardInterrupt):
            write_json(file, {"accuracy": 0.75})
    assert json.loads(file.read_text()) == {"accuracy": 0.5}
    with pytest.raises(TypeError):
        write_json(file, {"accuracy": object()})
    assert json.loads(file.read_text()) == {"accuracy": 0.5}
    write_json(file, {"accuracy": 0.75})
    assert json.loads(file.read_text()) == {"accuracy": 0.75}
    assert list(file.parent.iterdir()) == [file]


def test_json_knows_no_nan(tmp_path: Path) -> None:
    file = tmp_path / "new" / "values.json"
    write_json(file, {"a": [1.5, float("nan")], "b": {"c": (float("inf"), True, "NaN")}})
    assert json.loads(file.read_text()) == {"a": [1.5, None], "b": {"c": [None, True, "NaN"]}}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000], ids=["unfinished", "binary", "deep"])
def test_what_is_no_json_is_refused_by_the_name_of_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "values.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: expected JSON, got: ")):
        read_json(file)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"values\.json"):
        read_json(tmp_path / "values.json")
