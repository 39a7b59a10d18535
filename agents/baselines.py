"""Policies that nobody trained, and that every agent must beat."""

from collections.abc import Sequence

from ..backbone import Backbone
from ..backbone.protocol import ActionUnit
from ..envs.observation import ObservationLayout
from .dynamic_vit import DynamicViT
from .policy import Policy


def whole_network(backbone: Backbone, action_unit: ActionUnit = "block") -> DynamicViT:
    """A backbone all of whose units run, in the form of the networks that skip."""
    layout = ObservationLayout.of(backbone, "belief", action_unit)
    return DynamicViT(backbone, run_all(layout), action_unit=action_unit).eval()


def run_all(layout: ObservationLayout) -> Policy:
    """The dense network."""
    return first_k(layout, layout.num_units)


def skip_all(layout: ObservationLayout) -> Policy:
    """Only stem and head."""
    return first_k(layout, 0)


def first_k(layout: ObservationLayout, k: int) -> Policy:
    """The first k units; ValueError unless k is in 0..U."""
    if not 0 <= k <= layout.num_units:
        raise ValueError(f"k: expected 0..{layout.num_units}, got {k}")
    return fixed_mask(layout, [unit < k for unit in range(layout.num_units)])


def fixed_mask(layout: ObservationLayout, keep: Sequence[bool]) -> Policy:
    """The same units on every image."""
    return Policy("mask", layout, keep=keep)


def random_skip(layout: ObservationLayout, rate: float, seed: int = 0) -> Policy:
    """Unit 0, and every other one with probability `rate`."""
    return Policy("random", layout, seed=seed, rate=rate)


def early_exit(layout: ObservationLayout, threshold: float | Sequence[float]) -> Policy:
    """Units until the head's top probability reaches `threshold`, or that of the next unit."""
    return Policy("early-exit", layout, threshold=threshold)
