"""The deployable network: a backbone and a policy, images to logits, skipping for real. Plain torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from ..backbone import Backbone, run_rows
from ..backbone.protocol import ActionUnit, unit_runner
from ..backbone.registry import unknown_name
from ..envs.observation import ObservationKind, ObservationLayout
from . import run_directory
from .policy import PlanningRule, Policy

Mode = Literal["dense", "gather"]


@dataclass(frozen=True)
class Trace:
    """What the last batch went through.

    Attributes:
        keep_mask: units that ran, bool [B, U].
        macs: of each image with policy and every use of the head, int64 [B].
    """

    keep_mask: Bool[Tensor, "B U"]
    macs: Int64[Tensor, " B"]


class DynamicViT(nn.Module):
    """A Vision Transformer that decides for each image which (half-)blocks to run.

    Args:
        backbone: the ViT.
        policy: decides; its layout must be the backbone's.
        action_unit: "block" or "half".
        mode: "gather" compacts the rows that run and computes nothing else; "dense" computes every unit on every
            row and selects, as a reference. Both route alike and agree in logits to rounding.

    Attributes:
        last_trace: of the latest forward; None before it.

    Raises:
        ValueError: if the policy was made for another backbone, or the mode is unknown.
    """

    _one_hot: Tensor  # [U, U]

    def __init__(
        self, backbone: Backbone, policy: Policy, *, action_unit: ActionUnit = "block", mode: Mode = "gather"
    ) -> None:
        super().__init__()
        expected = ObservationLayout.of(backbone, policy.layout.kind, action_unit)
        if policy.layout != expected:
            raise ValueError(f"policy: expected one for {expected}, got one for {policy.layout}")
        if mode not in get_args(Mode):
            raise unknown_name("mode", mode, get_args(Mode))
        self.backbone, self.policy = backbone, policy
        self.action_unit: ActionUnit = action_unit
        self.mode: Mode = mode
        self.last_trace: Trace | None = None
        self._unit_macs = backbone.macs.units(action_unit)
        self.register_buffer("_one_hot", torch.eye(len(self._unit_macs)), persistent=False)

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Logits of images, float32 in [0, 1] or uint8, not normalised; leaves a `last_trace`.

        Raises:
            ValueError: if the images do not have the backbone's size.
        """
        size = self.backbone.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(f"images: expected shape [B, 3, {size}, {size}], got {list(images.shape)}")
        tokens = self.backbone.embed(images)
        if isinstance(self.policy.rule, PlanningRule):
            return self._run_plan(tokens, self.policy.rule.plan(len(images)))
        return self._run_sequentially(tokens)

    def _run_plan(self, tokens: Float[Tensor, "B N D"], keep_mask: Bool[Tensor, "B U"]) -> Float[Tensor, "B K"]:
        for unit, kept in enumerate(keep_mask.cpu().unbind(1)):
            tokens = self._run_unit(unit, tokens, kept.nonzero().squeeze(1).to(tokens.device, non_blocking=True))
        spent = (keep_mask * torch.tensor(self._unit_macs)).sum(1)
        self._leave_trace(keep_mask.to(tokens.device), spent.to(tokens.device))
        return self.backbone.classify(tokens)

    def _run_sequentially(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        logits = self.backbone.classify(tokens)
        keep_mask = torch.zeros(len(tokens), len(self._unit_macs), dtype=torch.bool, device=tokens.device)
        spent = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)  # MACs
        for unit, (depth, macs) in enumerate(zip(self._one_hot, self._unit_macs, strict=True)):
            share = (spent.double() / sum(self._unit_macs)).float()
            progress = torch.cat([depth.expand(len(tokens), -1), share[:, None]], 1)
            run = self.policy.decide(self.policy.layout.observe(logits, progress, tokens))
            rows = run.nonzero().squeeze(1)
            tokens = self._run_unit(unit, tokens, rows)
            logits = self._classify_rows(logits, tokens, rows)
            keep_mask[:, unit] = run
            spent += run * macs
        self._leave_trace(keep_mask, spent, head_calls=keep_mask.sum(1), decisions=keep_mask.shape[1])
        return logits

    def _run_unit(self, unit: int, tokens: Float[Tensor, "B N D"], rows: Tensor) -> Float[Tensor, "B N D"]:
        run = unit_runner(self.backbone, self.action_unit)
        if self.mode == "gather":
            return run_rows(lambda active: run(unit, active), tokens, rows)
        return tokens.index_copy(0, rows, run(unit, tokens)[rows])

    def _classify_rows(
        self, logits: Float[Tensor, "B K"], tokens: Float[Tensor, "B N D"], rows: Tensor
    ) -> Float[Tensor, "B K"]:
        """The head again where tokens have changed; a skipped block leaves the belief as it is."""
        if len(rows) == 0:
            return logits
        if len(rows) == len(logits):
            return self.backbone.classify(tokens)
        return logits.index_copy_(0, rows, self.backbone.classify(tokens[rows]))

    def _leave_trace(
        self,
        keep_mask: Bool[Tensor, "B U"],
        spent: Int64[Tensor, " B"],
        head_calls: Int64[Tensor, " B"] | int = 0,
        decisions: int = 0,
    ) -> None:
        macs = self.backbone.macs
        policy = decisions * self.policy.macs + head_calls * macs.head  # the last head call gives the logits
        self.last_trace = Trace(keep_mask, macs.stem + spent + macs.head + policy)

    def save(self, path: str | Path, *, backbone_name: str, record: dict[str, Any] | None = None) -> None:
        """Write a run directory: `run.json`, `backbone.safetensors`, `policy.safetensors`.

        Args:
            path: folder; made if missing.
            backbone_name: registered name that builds the backbone's architecture on loading.
            record: further JSON values to keep (configuration, seed, results).
        """
        description = {
            "backbone": backbone_name,
            "action_unit": self.action_unit,
            "observation": self.policy.layout.kind,
            "rule": self.policy.rule_name,
            "rule_arguments": self.policy.rule.arguments,
        }
        run_directory.write(Path(path), description, record or {}, self.backbone, self.policy)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu", mode: Mode = "gather") -> "DynamicViT":
        """Read a run directory made by `save` or `vitskip train`. Nothing in it is executed.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is corrupt, truncated, foreign, or does not fit the others.
        """
        run = run_directory.read(Path(path))
        backbone = run.load_backbone()
        kind: ObservationKind = run.observation
        layout = ObservationLayout.of(backbone, kind, run.action_unit)
        policy = run.load_policy(layout)
        return cls(backbone, policy, action_unit=run.action_unit, mode=mode).to(device).eval()
