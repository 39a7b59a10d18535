"""The state of a training run on disk, whole or not at all, from which it goes on exactly as if never stopped."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .protocol import Backbone


@dataclass
class TrainingState:
    """Everything that changes during training.

    Attributes:
        vit: the network.
        optimizer: over its parameters.
        average: exponential moving average of the parameters, in their order.
        step: optimiser steps taken.
        seconds: wall time spent.
        curve: columns over log points.
    """

    vit: Backbone
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    step: int = 0
    seconds: float = 0.0
    curve: dict[str, list[float]] = field(default_factory=dict)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters; early on faster, so that it forgets the initial weights."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(self.average, list(self.vit.parameters()), None)

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Give the network its averaged parameters."""
        for parameter, average in zip(self.vit.parameters(), self.average, strict=True):
            parameter.copy_(average)

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write the state; see `write_checkpoint`."""
        parts = {
            "vit": self.vit.state_dict(),
            "average": {str(i): tensor for i, tensor in enumerate(self.average)},
            "optimizer": optimizer_tensors(self.optimizer),
        }
        write_checkpoint(path, parts, {"step": self.step, "seconds": self.seconds, "curve": self.curve}, identity)

    @torch.no_grad()
    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Go back to a state that was saved; see `read_checkpoint`."""
        parts, rest = read_checkpoint(path, identity)
        self.vit.load_state_dict(parts["vit"])
        for i, average in enumerate(self.average):
            average.copy_(parts["average"][str(i)])
        load_optimizer(self.optimizer, parts["optimizer"])
        self.step, self.seconds, self.curve = rest["step"], rest["seconds"], rest["curve"]


def write_checkpoint(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Write the state of a training run, whole or not at all.

    Args:
        path: file; an existing one is replaced only once the new one is complete.
        parts: tensors by part and name; no part's name has a dot.
        rest: JSON values.
        identity: JSON values that say which run this is; `read_checkpoint` asks for the same.
    """
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(stored, {"training": json.dumps({"identity": identity, **rest})}))
    partial.replace(path)


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `write_checkpoint` wrote; nothing in the file is executed.

    Returns:
        Tensors by part (empty if it had none) and name, on the CPU, and the JSON values.

    Raises:
        ValueError: if the file is corrupt, or of a run with another identity.
    """
    try:
        with safe_open(path, "pt") as file:
            rest = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safetensors gives no mapping
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"checkpoint: expected one of a training run at {path}, got: {error}") from error
    ours, theirs = json.loads(json.dumps(identity)), rest.pop("identity")
    if theirs != ours:
        changed = sorted(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"checkpoint: expected one of this run, but {path} was made with other {', '.join(changed)}; "
            "give the same arguments to go on with it, or another folder to begin anew"
        )
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, _, inner = name.partition(".")
        parts[part][inner] = tensor
    return parts, rest


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer has gathered, by number of the parameter and name of the slot."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": tensor for i, slots in state.items() for slot, tensor in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer what another one over the same parameters had gathered."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, slot = name.partition(".")
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
