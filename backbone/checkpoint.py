"""The state of a training run on disk, whole or not at all, from which it goes on exactly as if never stopped."""

import json
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
        optimizer: AdamW over its parameters.
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
        """Write the state.

        Args:
            path: file; an existing one is replaced only once the new one is complete.
            identity: JSON values that say which run this is; `load` asks for the same.
        """
        tensors = {f"vit.{name}": tensor for name, tensor in self.vit.state_dict().items()}
        tensors |= {f"average.{i}": tensor for i, tensor in enumerate(self.average)}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in slots.items()}
        rest = {"identity": identity, "step": self.step, "seconds": self.seconds, "curve": self.curve}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(save(stored, {"training": json.dumps(rest)}))
        partial.replace(path)

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Go back to a state that was saved; nothing in the file is executed.

        Raises:
            ValueError: if the file is corrupt, or of a run with another identity.
        """
        try:
            with safe_open(path, "pt") as file:
                rest = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"checkpoint: expected one of a training run at {path}, got: {error}") from error
        ours = json.loads(json.dumps(identity))
        if rest["identity"] != ours:
            changed = sorted(key for key in ours if ours[key] != rest["identity"].get(key))
            raise ValueError(
                f"checkpoint: expected one of this run, but {path} was made with other {', '.join(changed)}; "
                "give the same arguments to go on with it, or another folder to begin anew"
            )
        self._restore(tensors)
        self.step, self.seconds, self.curve = rest["step"], rest["seconds"], rest["curve"]

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"vit": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.vit.load_state_dict(parts["vit"])
        for i, average in enumerate(self.average):
            average.copy_(parts["average"][str(i)])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, slot = name.partition(".")
            state.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
