"""A run on disk: JSON and safetensors, everything to reload it, nothing that runs code."""

import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ..backbone import Backbone, load_backbone
from ..backbone.backbones import build_backbone, original_name
from ..backbone.json_files import read_json, write_json
from ..backbone.protocol import ActionUnit
from ..backbone.weights import load_weights, save_weights
from ..envs.config import EnvConfig
from ..envs.observation import ObservationKind, ObservationLayout
from .policy import Policy

SHIPPED = Path(__file__).parent / "shipped"  # run directories that come with the package, by name
FORMAT = "vitskip-run"
FORMAT_VERSION = 1
PACKAGES = ("vitskip", "torch", "torchvision", "numpy", "gymnasium", "stable-baselines3", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """The description of a run directory, checked.

    Attributes:
        path: the folder.
        backbone: name of the backbone.
        architecture: that `build_backbone` builds it from; empty where only the name knows.
        original: name of the dense network that the backbone began as; see `original_name`.
        action_unit: "block" or "half".
        observation: "belief", "confidence" or "tokens".
        rule: name of the policy's rule.
        rule_arguments: its arguments.
        budgets: of an agent that is shown one: (budget, lean) pairs, none before calibration; None for any other.
        record: further JSON values: configuration, seed, versions, results.
    """

    path: Path
    backbone: str
    architecture: dict[str, Any]
    original: str
    action_unit: ActionUnit
    observation: ObservationKind
    rule: str
    rule_arguments: dict[str, Any]
    budgets: list[list[float]] | None
    record: dict[str, Any]

    def load_backbone(self) -> Backbone:
        """Build the backbone and give it the weights of this run."""
        try:
            backbone = build_backbone(self.architecture) if self.architecture else load_backbone(self.backbone)
        except ValueError as error:
            raise ValueError(f"{self.path / 'run.json'}: {error}; register_backbone makes your own known") from error
        load_weights(self.path / "backbone.safetensors", backbone)
        return backbone

    def load_original(self) -> Backbone | None:
        """The dense network that joint training, or merging of tokens, began with; None if it is the run's own."""
        joint = self.record.get("train", {}).get("joint")
        return load_backbone(self.original) if joint or self.original != self.backbone else None

    def load_policy(self, layout: ObservationLayout) -> Policy:
        """Build the policy and give it the weights of this run."""
        try:
            policy = Policy(self.rule, layout, **self.rule_arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path / 'run.json'}: expected a policy that fits the backbone, got: {error}"
            ) from error
        load_weights(self.path / "policy.safetensors", policy)
        return policy


def write(
    path: Path,
    description: dict[str, Any],
    record: dict[str, Any],
    backbone: Backbone,
    policy: nn.Module,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a run directory; `run.json` goes first and comes last, so that a folder that has it is complete.

    The backbone's weights are stored as `dtype`, if it is given.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").unlink(missing_ok=True)
    save_weights(path / "backbone.safetensors", backbone, dtype)
    save_weights(path / "policy.safetensors", policy)
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, **description}
    write_json(path / "run.json", {**head, "record": {**record, "versions": versions()}})


def read(path: Path) -> Run:
    """Read and check `run.json` of a run directory, or of a shipped one by its name.

    Raises:
        FileNotFoundError: if there is no run directory.
        ValueError: if `run.json` is not one of ours.
    """
    path = _find(path)
    file = path / "run.json"
    values = read_json(file)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{file}: expected a file with format {FORMAT!r}, got something else")
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{file}: expected format_version {FORMAT_VERSION}, got {values.get('format_version')!r}")
    values.setdefault("architecture", {})
    values.setdefault("budgets", None)
    if "original" not in values and isinstance(values.get("backbone"), str):
        values["original"] = original_name(values["backbone"])
    expected = {
        "backbone": str,
        "architecture": dict,
        "original": str,
        "action_unit": str,
        "observation": str,
        "rule": str,
        "rule_arguments": dict,
        "record": dict,
    }
    for key, kind in expected.items():
        if not isinstance(values.get(key), kind):
            raise ValueError(f"{file}: expected {key!r} to be a {kind.__name__}, got {values.get(key)!r}")
    choices = {"action_unit": ("block", "half"), "observation": get_args(ObservationKind)}
    for key, valid in choices.items():
        if values[key] not in valid:
            raise ValueError(f"{file}: expected {key!r} to be one of {', '.join(valid)}, got {values[key]!r}")
    budgets = values["budgets"]
    if budgets is not None and not (isinstance(budgets, list) and all(map(_is_pair, budgets))):
        raise ValueError(f"{file}: expected 'budgets' to be pairs of a share and a lean, got {budgets!r}")
    return Run(path, **{key: values[key] for key in (*expected, "budgets")})


def is_run(path: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (path / "run.json").is_file()


def refuse_run(path: Path) -> None:
    """Raise ValueError for a folder that holds a finished run, which something else would be written over."""
    if is_run(path):
        raise ValueError(f"out: expected a folder without a run, got {path}; choose another one, or remove this one")


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Make sure that a finished run is the one that these settings would train; data and device may be others.

    Args:
        path: the folder; if there is no run yet, all is well.
        settings: some or all of what `vitskip train` records, by name.

    Raises:
        ValueError: if a setting is another one.
    """
    if not is_run(path):
        return
    record = read(path).record
    if "distilled_from" in record:
        raise ValueError(f"{path}: expected a run that was trained, got a planner taught by {record['distilled_from']}")
    recorded = record.get("train", {})
    for name, value in settings.items():
        found, expected = (comparable(wanted) for wanted in (recorded.get(name), value))
        if found != expected:
            if isinstance(found, dict) and isinstance(expected, dict):  # what differs tells more than all of both
                names = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
                found, expected = ({key: whole.get(key) for key in names} for whole in (found, expected))
            raise ValueError(
                f"{path}: expected a run with {name} {expected}, got {found}; choose another folder, or remove this one"
            )


def comparable(value: Any) -> Any:
    """A setting; the environment's without where it runs, and with defaults for arguments that came after a run."""
    if not isinstance(value, dict) or "data_root" not in value:
        return value
    filled = json.loads(json.dumps(asdict(EnvConfig()))) | value
    return {key: item for key, item in filled.items() if key not in ("data_root", "device")}


def _find(path: Path) -> Path:
    shipped = SHIPPED / path
    for folder in (path, shipped) if path.name == str(path) else (path,):
        if is_run(folder):
            return folder
    raise FileNotFoundError(
        "run directory: expected a folder with run.json, as `vitskip train` writes, or one of "
        f"{', '.join(shipped_runs())}, got {path}"
    )


def _is_pair(values: Any) -> bool:
    if not isinstance(values, list) or len(values) != 2:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values) and 0 < values[0] < 1


def shipped_runs() -> list[str]:
    """Names of the agents that come with the package."""
    return sorted(file.parent.name for file in SHIPPED.glob("*/run.json"))


def versions() -> dict[str, str]:
    """Versions of Python, the machine, its GPU if there is one, and the packages that a result depends on."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
