"""The layers hold, and the contracts that guard them can be broken."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"vitskip": ".", "backbone": "backbone", "envs": "envs", "agents": "agents", "eval": "eval"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The sources as one plain package, to be changed at will."""
    package = tmp_path / "vitskip"
    for folder, place in FOLDERS.items():
        (package / place).mkdir(exist_ok=True)
        for source in (ROOT / folder).glob("*.py"):
            shutil.copy(source, package / place)
    return package


def lint(package: Path) -> tuple[int, str]:
    """Exit code and output of import-linter under the project's own contracts."""
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", script, "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_sources_keep_every_contract(package: Path) -> None:
    code, output = lint(package)
    assert code == 0, output
    assert "5 kept, 0 broken" in output


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("backbone/macs.py", "from ..agents import dynamic_vit", "Nothing imports upward"),
        ("backbone/macs.py", "import vitskip", "Nothing imports the front door"),
        ("backbone/macs.py", "from . import vit", "No cycles within a folder"),
        ("backbone/macs.py", "import gymnasium", "Backbones know no reinforcement learning"),
        ("agents/dynamic_vit.py", "import gymnasium", "Deployment needs neither Gymnasium nor SB3"),
        ("agents/dynamic_vit.py", "from ..envs import single", "Deployment needs neither Gymnasium nor SB3"),
    ],
)
def test_forbidden_import_is_reported(package: Path, module: str, line: str, contract: str) -> None:
    with (package / module).open("a") as source:
        source.write(f"\n{line}\n")
    code, output = lint(package)
    assert code == 1, output
    assert f"{contract} BROKEN" in output


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vitskip", "torch"),
        ("vitskip.agents.dynamic_vit", "stable_baselines3"),
        ("vitskip.agents.dynamic_vit", "torchvision"),
        ("vitskip.cli", "sklearn"),
    ],
)
def test_import_is_light(module: str, heavy: str, tmp_path: Path) -> None:
    script = f"import sys, {module}; sys.exit('{heavy} is imported' if '{heavy}' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shapes_are_those_of_arrays() -> None:
    """jaxtyping wants a class in front of the shape, which `NDArray[...]` is not from NumPy 2.5 on."""
    sources = [source for folder in FOLDERS for source in (ROOT / folder).glob("*.py")]
    assert len(sources) > 50
    assert not [source.name for source in sources if re.search(r"\b[A-Z]\w+\[NDArray\[.*?\], \"", source.read_text())]
