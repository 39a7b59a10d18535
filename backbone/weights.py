"""Weights on disk: our own as safetensors, those of other libraries as they come. Loading never executes anything."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
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

    Raises:
        ValueError: if a number is not finite, which `load_weights` would refuse; nothing is written.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    if not_finite := _not_finite(tensors):
        raise ValueError(f"weights: expected finite numbers to write to {path}, got: {_shown(not_finite)}")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors))
    partial.replace(path)


def load_weights(path: Path, module: HasState) -> None:
    """Read a module's state from a file made by `save_weights`; the module's own dtypes are kept.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no intact safetensors file or holds other tensors than the module.
    """
    stored, expected = _read_safetensors(path), module.state_dict()
    problems = _misfits(stored, expected) + _not_finite(stored)
    if problems:
        raise ValueError(
            f"weights: expected the tensors of this network in {path}, got {len(problems)} that do not fit: "
            f"{_shown(problems)}"
        )
    module.load_state_dict({name: stored[name].to(tensor.dtype) for name, tensor in expected.items()})


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file from elsewhere.

    Args:
        path: a `.safetensors` file, or else one by `torch.save` of a state dictionary, which may lie under "model" or
            "state_dict".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, would execute something, or holds other things than named tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a state dictionary, found no file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"weights: expected a state dictionary in {path}, got a file that is damaged or holds more than tensors "
            f"({type(error).__name__}); what is no tensor could execute code, so it is not loaded"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"weights: expected named tensors in {path}, got: {type(content).__name__}")
    others = [
        f"{name!r} of type {type(entry).__name__}"
        for name, entry in content.items()
        if not isinstance(name, str) or not isinstance(entry, Tensor)
    ]
    if others:
        raise ValueError(f"weights: expected named tensors in {path}, got: {_shown(others)}")
    return dict(content)


def load_pretrained(path: Path, stored: Mapping[str, Tensor], module: HasState, *, heads: tuple[str, ...]) -> None:
    """Put weights into a module; a classifier of other classes is left out with a warning, for fine-tuning.

    Args:
        path: where the weights come from, for messages.
        stored: tensors by the names that `module` knows, old ones included.
        module: takes the weights; its own dtypes are kept.
        heads: what the names of the classifier's tensors begin with.

    Raises:
        ValueError: if anything but the classifier does not fit, or a number is not finite.
    """
    own_head = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(heads)}
    problems = _misfits({name: tensor for name, tensor in stored.items() if name.startswith(heads)}, own_head)
    if problems:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(heads)} | own_head
    if not_finite := _not_finite(stored):
        raise ValueError(f"weights: expected finite numbers in {path}, got: {_shown(not_finite)}")
    try:
        module.load_state_dict(stored)
    except RuntimeError as error:
        raise ValueError(
            f"weights: expected the tensors of this network in {path}, got: {shorten(str(error), 400)}"
        ) from error
    if problems:
        warnings.warn(
            f"weights: the head in {path} does not fit this network ({_shown(problems)}); everything else is loaded, "
            "the head stays untrained",
            stacklevel=4,  # who called the function that builds the backbone
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a safetensors file, found none at {path}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"weights: expected an intact safetensors file at {path}, got: {error}") from error


def _misfits(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What is missing, too much, or of another shape."""
    problems = [f"{name} missing" for name in expected if name not in stored]
    problems += [f"{name} unexpected" for name in stored if name not in expected]
    return problems + [
        f"{name} has shape {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]


def _not_finite(stored: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} is not finite" for name, tensor in stored.items() if not torch.isfinite(tensor).all()]


def _shown(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
