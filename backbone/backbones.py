"""Backbones by name: registered factories, and the trained ones that are shipped."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

from .protocol import Backbone
from .registry import Registry
from .vit import ViT
from .weights import load_weights

SHIPPED = Path(__file__).parent / "shipped"

BackboneFactory = Callable[[], Backbone]
"""Builds the backbone with its weights, on the CPU."""

_BACKBONES: Registry[BackboneFactory] = Registry("backbone")


def register_backbone(name: str, factory: BackboneFactory) -> None:
    """Make a ViT loadable by name, e.g. `gym.make("ViTSkip-v0", backbone=name)`.

    Args:
        name: a new name.
        factory: builds the backbone, with its weights, on the CPU.

    Raises:
        ValueError: if the name is taken.
    """
    _BACKBONES.register(name, factory)


def load_backbone(name: str) -> Backbone:
    """Build a registered backbone, in eval mode on the CPU; every call gives a new one.

    Raises:
        ValueError: if the name is unknown, or the factory gives something that is no `Backbone`.
    """
    backbone = _BACKBONES[name]()
    if not isinstance(backbone, Backbone):
        raise ValueError(f"backbone {name!r}: expected its factory to give a Backbone, got {type(backbone).__name__}")
    return backbone.eval()


def load_shipped(name: str) -> ViT:
    """Build a ViT that is shipped with its card (JSON) and weights (safetensors)."""
    card = json.loads((SHIPPED / f"{name}.json").read_text())
    vit = ViT(**card["architecture"])
    load_weights(SHIPPED / f"{name}.safetensors", vit)
    return vit


register_backbone("digits-vit12", functools.partial(load_shipped, "digits-vit12"))
