"""What training starts from: fresh weights, others' weights, or a net trained before whose head is made anew."""

from pathlib import Path
from typing import Any

from .backbones import build_backbone, card_of, load_backbone, read_card
from .protocol import Backbone


def start_backbone(start: str, num_classes: int, weights: str | Path | None = None) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone that training starts from, on the CPU.

    Args:
        start: "torchvision:NAME" or "timm:NAME" (fresh, or with `weights`), a shipped name, or a folder that
            `vitskip pretrain` left.
        num_classes: classes K; a net trained on another number gets a fresh head.
        weights: file of others' weights, for torchvision and timm.

    Returns:
        The backbone, and its architecture as JSON values for its card.

    Raises:
        ValueError: if the name is unknown, or `weights` are given for a net that has its own.
    """
    family, colon, name = start.partition(":")
    if colon:
        architecture = {"family": family, "name": name, "num_classes": num_classes}
        return build_backbone({**architecture, "weights_path": weights} if weights else architecture), architecture
    if weights is not None:
        raise ValueError(f"weights: expected none beside {start!r}, which has its own, got {weights}")
    card = card_of(start)
    if card is None:
        raise ValueError(
            f"start: expected a shipped name, a folder of `vitskip pretrain`, torchvision:NAME or timm:NAME, "
            f"got {start!r}"
        )
    trained, architecture = load_backbone(start), read_card(card)["architecture"]
    if trained.num_classes == num_classes:
        return trained, architecture
    architecture = {**architecture, "num_classes": num_classes}
    fresh = build_backbone(architecture)
    state = fresh.state_dict()
    state |= {name: tensor for name, tensor in trained.state_dict().items() if tensor.shape == state[name].shape}
    fresh.load_state_dict(state)
    return fresh, architecture
