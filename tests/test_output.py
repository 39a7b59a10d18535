"""What the command line says beside its results."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from vitskip.output import watch_others

WORK = "import time; end = time.time() + 1\nwhile time.time() < end: pass"


def test_work_of_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # of many one would not count
    others = watch_others()
    running = subprocess.Popen([sys.executable, "-c", WORK])
    time.sleep(0.9)
    assert "of 2 cores meanwhile" in others()
    running.wait()


@pytest.mark.parametrize(("seconds_of_others", "said"), [(0.0, False), (0.1, False), (0.5, True)])
def test_own_work_and_a_little_of_others_are_not(
    seconds_of_others: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two seconds of own work, beside an idle core."""
    now = {"user": 500.0, "idle": 700.0, "iowait": 20.0, "steal": 5.0, "guest": 30.0}
    clock = [0.0]
    times = type("Times", (), {"_asdict": lambda self: dict(now)})
    monkeypatch.setattr(psutil, "cpu_times", times)
    monkeypatch.setattr(os, "times", lambda: (clock[0], 0.0, 0.0, 0.0, clock[0]))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    others = watch_others()
    clock[0] = 2.0
    now |= {"user": 502.0, "idle": 718.0, "iowait": 21.0, "steal": 5.0 + seconds_of_others}
    assert bool(others()) == said
