"""Weights on disk: safetensors in half precision. Loading never executes anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


@runtime_checkable
class HasState(Protocol):
    """Anything with a state dictionary."""

    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...


def save_weights(path: Path, module: HasState, dtype: torch.dtype | None = None) -> None:
    """Write a module's state, whole or not at all.

    Args:
        path: file to write; an existing one is replaced only once the new one is complete.
        module: whose `state_dict` to save.
        dtype: floating-point tensors are stored in it, e.g. float16 for half the size; as they are by default.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors))
    partial.replace(path)


def load_weights(path: Path, module: HasState) -> None:
    """Read a module's state from a file made by `save_weights`; the module's own dtypes are kept.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no intact safetensors file or holds other tensors than the module.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a safetensors file, found none at {path}")
    try:
        stored = load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"weights: expected an intact safetensors file at {path}, got: {error}") from error
    expected = module.state_dict()
    problems = [f"{name} missing" for name in expected if name not in stored]
    problems += [f"{name} unexpected" for name in stored if name not in expected]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    problems += [f"{name} is not finite" for name, tensor in stored.items() if not torch.isfinite(tensor).all()]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ValueError(
            f"weights: expected the tensors of this network in {path}, got {len(problems)} that do not fit: {shown}"
        )
    module.load_state_dict({name: stored[name].to(tensor.dtype) for name, tensor in expected.items()})
