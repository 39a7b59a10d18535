"""Backbones by name: registered factories, the trained ones that are shipped, and folders of `vitskip pretrain`."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .protocol import Backbone
from .registry import Registry, unknown_name
from .token_merging import TokenMergingViT, merge_in_stem
from .vit import ViT
from .weights import load_weights

SHIPPED = Path(__file__).parent / "shipped"
TOKEN_MERGING = "tome:"

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
    """Build a backbone in eval mode on the CPU; every call gives a new one.

    Args:
        name: registered or shipped name, or the path of a folder that `vitskip pretrain` left; "tome:COUNT:NAME" is
            the `ViT` of that name whose block 0 always runs and merges COUNT tokens (`merge_in_stem`).

    Raises:
        ValueError: if the name is unknown, a file is not what it should be, or the factory gives something that is
            no `Backbone`.
    """
    if name.startswith(TOKEN_MERGING):
        return _load_merging(name).eval()
    card = card_of(name)
    backbone = _load_card(card) if card else _BACKBONES[name]()
    if not isinstance(backbone, Backbone):
        raise ValueError(f"backbone {name!r}: expected its factory to give a Backbone, got {type(backbone).__name__}")
    return backbone.eval()


def unmerged_name(name: str) -> str:
    """The name of the dense network that the backbone of a name stands beside; see `unmerged`."""
    return name.removeprefix(TOKEN_MERGING).partition(":")[2] if name.startswith(TOKEN_MERGING) else name


def build_backbone(architecture: Mapping[str, Any]) -> Backbone:
    """Build a backbone with fresh weights from JSON values.

    Args:
        architecture: `family` ("vit", "torchvision" or "timm"; "vit" if there is none), and the arguments of `ViT`,
            `torchvision_backbone` or `timm_backbone`.

    Raises:
        ValueError: if the family is unknown or the arguments do not fit it.
    """
    arguments = dict(architecture)
    family = arguments.pop("family", "vit")
    if family not in FAMILIES:
        raise unknown_name("family of ViTs", family, FAMILIES)
    try:
        return FAMILIES[family](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture: expected arguments of family {family!r}, got {arguments}: {error}") from error


def read_card(path: Path) -> dict[str, Any]:
    """Read a model card: JSON with the `architecture`, and how the net was trained.

    Raises:
        ValueError: if the file is no card.
    """
    try:
        card = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(card, dict) or not isinstance(card.get("architecture"), dict):
        raise ValueError(f"{path}: expected a model card with an architecture, got something else")
    return card


def card_of(name: str) -> Path | None:
    """The card of a shipped backbone or of a folder; None for a registered name, and for one that is unknown."""
    if name in _BACKBONES:
        shipped = SHIPPED / f"{name}.json"
        return shipped if shipped.is_file() else None
    card = Path(name) / "card.json"
    return card if card.is_file() else None


def _load_card(card: Path) -> Backbone:
    """Build a backbone from its card, and give it the weights beside it."""
    backbone = build_backbone(read_card(card)["architecture"])
    beside = "weights" if card.stem == "card" else card.stem
    load_weights(card.with_name(f"{beside}.safetensors"), backbone)
    return backbone


def _load_merging(name: str) -> TokenMergingViT:
    """Build the backbone that is called tome:COUNT:NAME."""
    count, _, inner = name.removeprefix(TOKEN_MERGING).partition(":")
    if not (count.isdecimal() and inner):
        raise ValueError(f"backbone: expected {TOKEN_MERGING}COUNT:NAME, got {name!r}")
    vit = load_backbone(inner)
    if not isinstance(vit, ViT):
        raise ValueError(
            f"backbone {name!r}: expected a ViT of vitskip's own to merge tokens, got {type(vit).__name__}"
        )
    return merge_in_stem(vit, int(count))


def _torchvision(**arguments: Any) -> Backbone:
    from .torchvision_vit import torchvision_backbone  # takes seconds to import, and most need none of it

    return torchvision_backbone(**arguments)


def _timm(**arguments: Any) -> Backbone:
    from .timm_vit import timm_backbone  # an optional dependency

    return timm_backbone(**arguments)


FAMILIES: dict[str, Callable[..., Backbone]] = {"vit": ViT, "torchvision": _torchvision, "timm": _timm}

for _card in sorted(SHIPPED.glob("*.json")):
    register_backbone(_card.stem, functools.partial(_load_card, _card))
