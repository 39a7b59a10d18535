"""Large buffers are kept once glibc is told to, and users' own settings are left alone."""

import os
import platform
import subprocess
import sys

import pytest

from vitskip import cli

# page faults of a buffer of 64 MiB that was written before, once the heap has found its size: a small piece beside the
# first ones may stay in the thread's cache, so that the next does not fit where they were
SCRIPT = """
import resource, torch
from vitskip.backbone.allocator import keep_buffers
{}
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(call: str, **variables: str) -> int:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", SCRIPT.format(call)]
    return int(subprocess.run(command, env=own | variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_large_buffer_costs_its_pages_once() -> None:
    assert faults("") > 2**24 * 4 // 2**21  # at least one for each huge page, where there are such
    assert faults("keep_buffers()") < 8
    assert faults("keep_buffers()", MALLOC_ARENA_MAX="8") > 8  # as the user's environment has it


def test_every_command_has_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "keep_buffers", lambda: calls.append("keep_buffers"))
    monkeypatch.setattr(sys, "argv", ["vitskip", "benchmark", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert calls == ["keep_buffers"]
