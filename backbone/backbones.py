"""Backbones by name: registered factories, the trained ones that are shipped, and folders of training runs."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .json_files import read_json
from .macs import Macs
from .protocol import Backbone
from .registry import Registry, unknown_name
from .token_merging import TokenMergingViT, merge_in_stem, unmerged
from .vit import ViT
from .weights import load_weights

SHIPPED = Path(__file__).parent / "shipped"
TOKEN_MERGING = "tome:"
RUN = "run.json"

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
        name: registered or shipped name, or the path of a folder that `vitskip pretrain` or `vitskip train` left, of
            which the latter holds what joint training made of the backbone; "tome:COUNT:NAME" is the `ViT` of that
            name whose block 0 always runs and merges COUNT tokens (`merge_in_stem`), of a run whose net merges tokens
            that many instead.

    Raises:
        ValueError: if the name is unknown, a file is not what it should be, or the factory gives something that is
            no `Backbone`.
    """
    if name.startswith(TOKEN_MERGING):
        count, inner = _merging(name)
        return _merge(count, load_backbone(inner)).eval()
    card = card_of(name) or _run_of(name)
    if not card and name not in _BACKBONES and name.startswith(("timm:", "torchvision:")):
        raise ValueError(
            f"backbone: expected one trained on this data set, got {name!r}; fine-tune it by `vitskip pretrain "
            "--start`, or register_backbone what `timm_backbone` or `torchvision_backbone` makes of it"
        )
    backbone = _load_card(card) if card else _BACKBONES[name]()
    _check_members(name, backbone)
    return backbone.eval()


def _check_members(name: str, backbone: Any) -> None:
    """Refuse what lacks a part of the protocol, or counts the MACs of other blocks than it has."""
    members = {*Backbone.__annotations__, *(name for name in vars(Backbone) if not name.startswith("_"))}
    missing = sorted(member for member in members if not hasattr(backbone, member))
    if missing:
        raise ValueError(
            f"backbone {name!r}: expected its factory to give a Backbone, got {type(backbone).__name__} "
            f"without {', '.join(missing)}"
        )
    macs, depth = backbone.macs, backbone.depth
    if not isinstance(macs, Macs) or {len(macs.attention), len(macs.mlp)} != {depth}:
        raise ValueError(f"backbone {name!r}: expected macs to be the Macs of {depth} blocks, got {macs!r}")


def unmerged_name(name: str) -> str:
    """The name of a backbone without the merging of its tokens."""
    return _merging(name)[1] if name.startswith(TOKEN_MERGING) else name


def original_name(name: str) -> str:
    """The name of the dense network that a backbone began as: before its tokens were merged, and joint training."""
    name = unmerged_name(name)
    run = _run_of(name)
    return original_name(_named_in(run)) if run else name


def dataset_of(name: str) -> str | None:
    """The data set that a backbone with a card, or what it began as, was trained on; None where no card tells."""
    card = card_of(original_name(name))
    return read_card(card).get("dataset") if card else None


def architecture_of(name: str) -> dict[str, Any]:
    """What `build_backbone` builds the backbone of a name from, without its weights; empty where only code knows."""
    if name.startswith(TOKEN_MERGING):
        count, inner = _merging(name)
        vit = architecture_of(inner)
        return {"family": "tome", "count": count, "vit": vit.get("vit", vit)} if vit else {}
    card = card_of(name) or _run_of(name)
    return read_card(card)["architecture"] if card else {}


def build_backbone(architecture: Mapping[str, Any]) -> Backbone:
    """Build a backbone with fresh weights from JSON values.

    Args:
        architecture: `family` ("vit", "tome", "torchvision" or "timm"; "vit" if there is none), and the arguments of
            `ViT`, `torchvision_backbone` or `timm_backbone`, of "tome" the `count` of tokens and the `vit`.

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
    card = read_json(path)
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


def _run_of(name: str) -> Path | None:
    """The description of a run directory, a card that names the backbone; None for anything else."""
    run = Path(name) / RUN
    return run if name not in _BACKBONES and run.is_file() else None


def _named_in(run: Path) -> str:
    """The name of the backbone that a run began with."""
    name = read_card(run).get("backbone")
    if not isinstance(name, str) or Path(name).resolve() == run.parent.resolve():
        raise ValueError(f"{run}: expected the name of another backbone, got {name!r}")
    return name


def _load_card(card: Path) -> Backbone:
    """Build a backbone from its card, and give it the weights beside it."""
    architecture, is_run = read_card(card)["architecture"], card.name == RUN
    backbone = load_backbone(_named_in(card)) if is_run and not architecture else build_backbone(architecture)
    beside = {"card": "weights", "run": "backbone"}.get(card.stem, card.stem)
    load_weights(card.with_name(f"{beside}.safetensors"), backbone)
    return backbone


def _merging(name: str) -> tuple[int, str]:
    """COUNT and NAME of tome:COUNT:NAME."""
    count, _, inner = name.removeprefix(TOKEN_MERGING).partition(":")
    if not (count.isdecimal() and inner) or inner.startswith(TOKEN_MERGING):
        raise ValueError(f"backbone: expected {TOKEN_MERGING}COUNT:NAME, got {name!r}")
    return int(count), inner


def _merge(count: int, backbone: Backbone) -> TokenMergingViT:
    vit = unmerged(backbone)
    if not isinstance(vit, ViT):
        raise ValueError(f"backbone: expected a ViT of vitskip's own to merge tokens, got {type(vit).__name__}")
    return merge_in_stem(vit, count)


def _tome(count: int, vit: Mapping[str, Any]) -> Backbone:
    return _merge(count, build_backbone(vit))


def _torchvision(**arguments: Any) -> Backbone:
    from .torchvision_vit import torchvision_backbone  # takes seconds to import, and most need none of it

    return torchvision_backbone(**arguments)


def _timm(**arguments: Any) -> Backbone:
    from .timm_vit import timm_backbone  # an optional dependency

    return timm_backbone(**arguments)


FAMILIES: dict[str, Callable[..., Backbone]] = {"vit": ViT, "tome": _tome, "torchvision": _torchvision, "timm": _timm}

for _card in sorted(SHIPPED.glob("*.json")):
    register_backbone(_card.stem, functools.partial(_load_card, _card))
