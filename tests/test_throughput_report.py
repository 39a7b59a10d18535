"""Benchmarks side by side: names, ratios, what is no benchmark, and the picture."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitskip.agent_cli import report
from vitskip.eval.throughput_report import is_benchmark, read_speed_ups, speed_up_grid

ONE = {1: 0.5, 8: 2.0}


def write(path: Path, speed_ups: dict[int, float], **changes: Any) -> Path:
    """A file as `vitskip benchmark --json` writes it, of a network beside one that is twice as fast as dense."""
    sizes = [
        {"batch_size": size, "speed_up": speed_up, "rival_speed_ups": {"small": 2.0}}
        for size, speed_up in speed_ups.items()
    ]
    setting = {"run": "agent", "budget": None, "device": "cpu", "versions": {}, "adapted": {}, "threads": 1}
    path.write_text(json.dumps({**setting, "sizes": sizes, **changes}))
    return path


def test_networks_are_told_apart_by_budget_and_adaptation(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.json", ONE, budget=0.33),
        write(tmp_path / "b.json", {1: 1.0, 4: 1.0}, budget=0.33, adapted={"1": 0.5}),
        write(tmp_path / "c.json", ONE),
    ]
    networks, rivals = read_speed_ups(files)
    assert list(networks) == ["agent at 33%", "small", "agent at 33%, adapted", "agent"]
    assert networks["small"] == {1: 2.0, 8: 2.0}  # as in the first file
    assert rivals == ["small"]
    with pytest.raises(ValueError, match=r"d.json: expected each network once, got agent at 33% again"):
        read_speed_ups([*files, write(tmp_path / "d.json", ONE, budget=0.33)])


def test_the_table_has_all_sizes_and_both_means() -> None:
    grid = speed_up_grid({"agent": ONE, "small": {4: 2.0}})
    assert list(grid.headings) == ["network", "1", "4", "8", "mean", "geo. mean"]
    assert grid.rows == [["agent", "0.50", "-", "2.00", "1.25", "1.00"], ["small", "-", "2.00", "-", "2.00", "2.00"]]


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    sizes = [{"batch_size": 1, "speed_up": 1.5}]
    old = {"run": "agent", "device": "cpu", "versions": {}, "threads": 1, "sizes": sizes}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_speed_ups([tmp_path / "old.json"]) == ({"agent": {1: 1.5}}, [])


def test_a_report_of_benchmarks(tmp_path: Path) -> None:
    files = write(tmp_path / "a.json", ONE, budget=0.5), write(tmp_path / "b.json", {1: 1.0, 8: 1.0})
    out, figure, values = (tmp_path / "docs" / name for name in ("table.md", "figure.png", "all.json"))
    report(files[0], files[1:], out, figure, values)
    assert "| agent at 50% | 0.50 | 2.00 | 1.25 | 1.00 |" in out.read_text()
    assert figure.stat().st_size > 1000
    assert json.loads(values.read_text())["agent"] == {"1": 1.0, "8": 1.0}


def test_only_benchmarks_are_taken_together(tmp_path: Path) -> None:
    found = write(tmp_path / "a.json", ONE)
    for name, content in (("broken.json", "{"), ("list.json", "[]"), ("other.json", "{}")):
        (tmp_path / name).write_text(content)
        assert not is_benchmark(tmp_path / name)
        with pytest.raises(ValueError, match=rf"expected each of several to be .*, got .*{name}"):
            report(found, (tmp_path / name,))
    assert is_benchmark(found) and not is_benchmark(tmp_path)
