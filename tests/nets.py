"""Dynamic networks on the tiny ViT, one per rule, and their decisions in the environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from toys import tiny_core

from vitskip.agents import DynamicViT, Policy
from vitskip.backbone import Backbone, load_backbone
from vitskip.backbone.protocol import ActionUnit
from vitskip.envs import ObservationLayout, SkipCore
from vitskip.envs.observation import ObservationKind

RULES = ("mlp", "lstm", "early-exit", "mask")
SEED = 3  # of weights with which the tiny images take several routes, whatever is observed and decided upon

SHIFT = {"lstm": 79}  # of the seed, for the same reason


def make_policy(rule: str, layout: ObservationLayout, seed: int = SEED) -> Policy:
    """A policy whose decisions differ from unit to unit and, if the rule can, from image to image.

    The weights are NumPy's draws, which are alike on every machine.
    """
    arguments: dict[str, dict[str, Any]] = {
        "mlp": {"widths": [8, 8]},
        "lstm": {"hidden_size": 6},
        "per-unit": {"samples": False},
        "plan": {"widths": [8]},
        "early-exit": {"threshold": 0.6},
        "mask": {"keep": [unit % 3 != 1 for unit in range(layout.num_units)]},
        "random": {"rate": 0.5},
    }
    policy = Policy(rule, layout, seed=seed, **arguments[rule])
    rng = np.random.default_rng(seed + SHIFT.get(rule, 0))
    for parameter in policy.parameters():
        parameter.data = torch.from_numpy(rng.normal(0, 1.5, parameter.shape).astype(np.float32))
    return policy


def make_net(
    rule: str = "mlp",
    action_unit: ActionUnit = "block",
    kind: ObservationKind = "belief",
    *,
    backbone: Backbone | None = None,
    seed: int = SEED,
    **arguments: Any,
) -> DynamicViT:
    """A dynamic network on the tiny ViT or on a given one."""
    vit = load_backbone("tiny-vit4") if backbone is None else backbone
    policy = make_policy(rule, ObservationLayout.of(vit, kind, action_unit), seed)
    return DynamicViT(vit, policy, action_unit=action_unit, **arguments).eval()


def roll_out(policy: Policy, image_index: Sequence[int], **arguments: Any) -> SkipCore:
    """The environment's core after one episode on each of these test images, decided by `predict`."""
    core = tiny_core(len(image_index), split="test", observation=policy.layout.kind, **arguments)
    core.reset(np.arange(len(image_index)), np.array(image_index, np.int64))
    state, starts = None, np.ones(len(image_index), bool)
    while not core.ended.all():
        actions, state = policy.predict(core.observe().numpy(), state, starts)
        core.step(actions)
        starts[:] = False
    return core


def distinct(keep_mask: NDArray[np.bool_] | torch.Tensor) -> int:
    """Number of different rows."""
    return len(np.unique(np.asarray(keep_mask), axis=0))
