"""The deployable network: a backbone and a policy, images to logits, skipping for real. Plain torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from ..backbone import Backbone
from ..backbone.backbones import architecture_of, original_name
from ..backbone.masked import run_units
from ..backbone.paths import units_of_block_0
from ..backbone.protocol import ActionUnit, unit_runner
from ..backbone.registry import unknown_name
from ..backbone.token_merging import unmerged
from ..envs.config import check_device
from ..envs.observation import ObservationKind, ObservationLayout
from . import run_directory
from .observer import Observer, State
from .policy import Policy

Mode = Literal["dense", "gather"]
OVERSHOOT = 0.1  # beyond [0, 1], as bicubic resizing has it
FEW_ROWS = 4  # up to which an operation costs more than its arithmetic, so that deciding ahead saves time


@dataclass(frozen=True)
class Trace:
    """What the last batch went through.

    Attributes:
        keep_mask: units that ran, bool [B, U].
        macs: of each image with policy and every use of the head, int64 [B].
    """

    keep_mask: Bool[Tensor, "B U"]
    macs: Int64[Tensor, " B"]


Routed = tuple[Float[Tensor, "B K"], Trace]  # logits, and what it took to come to them


class DynamicViT(nn.Module):
    """A Vision Transformer that decides for each image which (half-)blocks to run.

    Args:
        backbone: the ViT.
        policy: decides; its layout must be the backbone's, to whose device it is moved.
        action_unit: "block" or "half".
        mode: "gather" compacts the rows that run and computes nothing else; "dense" computes every unit on every
            row and selects, as a reference. Both route alike and agree in logits to rounding.

    Attributes:
        last_trace: of the latest forward; None before it.
        shown_budget: what a policy that was trained for several budgets sees as the share of compute to spend, one
            number, or one for each image [B, 1]; others do not look at it. `set_budget` sets it.
        undecided_sizes: powers of two; batches whose size is nearest to one of them run all units on all tokens,
            nothing decided and nothing merged. `vitskip.agents.adaptation.adapt` measures where that is faster; none
            at first.
        budgets: for each budget of such a policy, the lean with which it spent that on validation images.

    Raises:
        ValueError: if the policy was made for another backbone or looks too late, or the mode is unknown.
    """

    _macs_of_units: Tensor  # int64 [U]
    _units_left: Tensor  # after each unit, int64 [U]

    def __init__(
        self, backbone: Backbone, policy: Policy, *, action_unit: ActionUnit = "block", mode: Mode = "gather"
    ) -> None:
        super().__init__()
        expected = ObservationLayout.of(backbone, policy.layout.kind, action_unit, policy.layout.shows_budget)
        if policy.layout != expected:
            raise ValueError(f"policy: expected one for {expected}, got one for {policy.layout}")
        if policy.look_after >= backbone.depth:
            depth = backbone.depth
            raise ValueError(
                f"look_after: expected fewer than the {depth} blocks of the backbone, got {policy.look_after}"
            )
        if mode not in get_args(Mode):
            raise unknown_name("mode", mode, get_args(Mode))
        self.backbone, self.policy = backbone, policy
        self.action_unit: ActionUnit = action_unit
        self.mode: Mode = mode
        self.last_trace: Trace | None = None
        self.shown_budget: float | Tensor = 0.5
        self.undecided_sizes: frozenset[int] = frozenset()
        self.budgets: dict[float, float] = {}
        self._lean = 0.0
        self._macs = backbone.macs
        self._unit_macs = self._macs.units(action_unit)
        self._observer = Observer(expected, sum(self._unit_macs))
        self.register_buffer("_macs_of_units", torch.tensor(self._unit_macs), persistent=False)
        self.register_buffer("_units_left", torch.arange(expected.num_units).flip(0), persistent=False)
        self.to(next(backbone.parameters()).device)

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Logits of images, float32 in [0, 1] or uint8, not normalised; leaves a `last_trace`.

        Images of another size than the backbone's are resized. Runs without gradients, in torch's inference mode.

        Raises:
            ValueError: if the images are not square and coloured, or not in that range.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected shape [B, 3, S, S], got {list(images.shape)}")
        if images.is_floating_point() and len(images):
            low, high = (value.item() for value in images.aminmax())
            if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
                raise ValueError(f"images: expected values in [0, 1], not normalised, got [{low:.4g}, {high:.4g}]")
        with torch.inference_mode():
            logits, trace = self._run(images)
        self.last_trace = Trace(trace.keep_mask.clone(), trace.macs.clone())
        return logits.clone()  # copies made outside of that mode can be used wherever gradients flow

    def _run(self, images: Shaped[Tensor, "B 3 H W"]) -> Routed:
        if self.undecided_sizes and len(images) and 1 << round(math.log2(len(images))) in self.undecided_sizes:
            return self._run_all(images)
        tokens = self.backbone.embed(images)
        if self.policy.look_after:
            return self._run_upfront(tokens)
        plan = self.policy.plan(len(images))
        return self._run_sequentially(tokens) if plan is None else self._run_plan(tokens, plan)

    @torch.no_grad()
    def look(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B O"]:
        """What an upfront policy sees of images: the observation after the blocks that always run."""
        return self._run_first(self.backbone.embed(images))[1]

    def _run_all(self, images: Shaped[Tensor, "B 3 H W"]) -> Routed:
        macs = torch.full((len(images),), self._macs.dense, device=images.device)
        keep_mask = torch.ones_like(macs, dtype=torch.bool)[:, None].expand(-1, len(self._unit_macs))
        return unmerged(self.backbone)(images), Trace(keep_mask, macs)

    @property
    def first_unit(self) -> int:
        """The first one that is decided; those before it always run, before an upfront policy looks."""
        return self.policy.look_after * units_of_block_0(self.action_unit)

    def _run_first(self, tokens: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B O"]]:
        first = self.first_unit
        for unit in range(first):
            tokens = self._run_unit(unit, tokens)
        spent = torch.full((len(tokens),), sum(self._unit_macs[:first]), dtype=torch.float64, device=tokens.device)
        return tokens, self._observer.before(slice(first, first + 1), self._observe(tokens, spent).observation)

    def _run_upfront(self, tokens: Float[Tensor, "B N D"]) -> Routed:
        """The first blocks, one look, one host read of all decisions, then the chosen blocks only."""
        tokens, observation = self._run_first(tokens)
        keep_mask, first = self.policy.decide(observation), self.first_unit
        keep_mask[:, :first] = True
        return self._run_plan(tokens, keep_mask.cpu(), first)

    def _run_plan(self, tokens: Float[Tensor, "B N D"], keep_mask: Bool[Tensor, "B U"], first: int = 0) -> Routed:
        if self.mode == "gather":
            tokens = run_units(self.backbone, tokens, keep_mask, self.action_unit, first)
        else:
            for unit, kept in enumerate(keep_mask.to(tokens.device).unbind(1)[first:], first):
                tokens = torch.where(kept[:, None, None], self._run_unit(unit, tokens), tokens)
        return self.backbone.classify(tokens), self.trace_of(keep_mask.to(tokens.device))

    def _run_sequentially(self, tokens: Float[Tensor, "B N D"]) -> Routed:
        """Look where tokens are new; with few rows decide all units to come at once, as if all were skipped.

        What that says of units after the first RUN is wrong, and decided again when it has run.
        """
        everything = torch.arange(len(tokens), device=tokens.device)
        ahead = len(tokens) <= FEW_ROWS and not self.policy.remembers  # a memory takes every step, skipped or not
        state = self._observe(tokens, torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device))
        keep_mask = torch.zeros(len(tokens), len(self._unit_macs), dtype=torch.bool, device=tokens.device)
        deciding, shown, memory = everything, state.observation, None
        for unit, macs in enumerate(self._unit_macs):
            if len(deciding):
                coming = slice(unit, None if ahead else unit + 1)
                run, memory = self.policy.step(self._observer.before(coming, shown), memory)
                keep_mask[:, coming].index_copy_(0, deciding, run.view(len(deciding), -1))
            rows = keep_mask[:, unit].nonzero().squeeze(1)
            active = state
            if len(rows) == len(tokens):
                active = state = self._observe(self._run_unit(unit, state.tokens), state.spent + macs)
            elif len(rows):
                active_tokens = self._run_rows_of(unit, state.tokens, rows)
                active = self._observe(active_tokens, state.spent.index_select(0, rows) + macs, rows)
                state.write(rows, active)
            deciding, shown = (rows, active.observation) if ahead else (everything, state.observation)
        return state.logits, self.trace_of(keep_mask, (keep_mask * self._units_left).sum(1) if ahead else 0)

    def _run_unit(self, unit: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return unit_runner(self.backbone, self.action_unit)(unit, tokens)

    def _run_rows_of(self, unit: int, tokens: Float[Tensor, "B N D"], rows: Int64[Tensor, " R"]) -> Tensor:
        """The new tokens of some rows; with mode "dense" all rows are computed, and these selected."""
        if self.mode == "dense":
            return self._run_unit(unit, tokens)[rows]
        return self._run_unit(unit, tokens.index_select(0, rows))

    def _observe(
        self, tokens: Float[Tensor, "R N D"], spent: Float[Tensor, " R"], rows: Int64[Tensor, " R"] | None = None
    ) -> State:
        """Ask the head of new tokens, all rows' or some."""
        budget = self.shown_budget
        shown = budget if rows is None or not isinstance(budget, Tensor) else budget[rows]
        return self._observer.observe(tokens, self.backbone.classify(tokens), spent, shown)

    def trace_of(self, keep_mask: Bool[Tensor, "B U"], decided_again: Int64[Tensor, " B"] | int = 0) -> Trace:
        """What it takes to come to these paths, one decision for each unit and those that are decided again."""
        macs, policy = self._macs, self.policy
        looks: Int64[Tensor, " B"] | int = keep_mask.sum(1)  # the last head call gives the logits
        decisions: Int64[Tensor, " B"] | int = keep_mask.shape[1] + decided_again
        if policy.is_blind or policy.look_after:
            looks = decisions = int(not policy.is_blind)
        spent = (keep_mask * self._macs_of_units).sum(1)
        return Trace(keep_mask, macs.stem + spent + macs.head + decisions * policy.macs + looks * macs.head)

    def lean_to(self, lean: float) -> None:
        """Shift every decision towards RUN by this much log-odds, in place of any shift before."""
        self.policy.lean(lean - self._lean)
        self._lean = lean

    def set_budget(self, budget: float) -> None:
        """Choose the mean share of the dense compute to spend, of a policy that was trained for several budgets.

        Raises:
            ValueError: if the policy was not, or the budget is outside those.
        """
        if not self.budgets and self.policy.layout.shows_budget:
            raise ValueError(f"budget: expected a network that `calibrate` has fitted to several, got {budget} of none")
        if not self.budgets:
            raise ValueError(f"budget: expected none, as the policy was not trained for several, got {budget}")
        least, most = min(self.budgets), max(self.budgets)
        if not least <= budget <= most:
            raise ValueError(f"budget: expected a share of the dense compute in [{least}, {most}], got {budget}")
        self.shown_budget = budget
        budgets = sorted(self.budgets)
        self.lean_to(float(np.interp(budget, budgets, [self.budgets[known] for known in budgets])))

    def save(
        self,
        path: str | Path,
        *,
        backbone_name: str,
        record: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write a run directory: `run.json`, `backbone.safetensors`, `policy.safetensors`.

        Args:
            path: folder; made if missing.
            backbone_name: that builds the backbone's architecture on loading.
            record: further JSON values to keep (configuration, seed, results).
            dtype: of the backbone's weights in the file, e.g. float16 for half the size; as they are if not given.
        """
        description = {
            "backbone": backbone_name,
            "architecture": architecture_of(backbone_name),
            "original": original_name(backbone_name),
            "action_unit": self.action_unit,
            "observation": self.policy.layout.kind,
            "rule": self.policy.rule_name,
            "rule_arguments": self.policy.rule.arguments,
            "budgets": sorted(self.budgets.items()) if self.policy.layout.shows_budget else None,
        }
        lean = self._lean
        if self.budgets:
            self.lean_to(0.0)  # each budget brings its own
        run_directory.write(Path(path), description, record or {}, self.backbone, self.policy, dtype)
        if self.budgets:
            self.lean_to(lean)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "cpu", mode: Mode = "gather", budget: float | None = None
    ) -> "DynamicViT":
        """Read a run directory made by `save` or `vitskip train`. Nothing in it is executed.

        Args:
            path: the folder, or the name of a shipped agent.
            device: where to put the network.
            mode: "gather" or "dense".
            budget: as for `set_budget`; the middle one of an agent of several budgets if not given.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is corrupt, truncated, foreign, or does not fit the others.
        """
        run = run_directory.read(Path(path))
        backbone = run.load_backbone()
        kind: ObservationKind = run.observation
        layout = ObservationLayout.of(backbone, kind, run.action_unit, run.budgets is not None)
        policy = run.load_policy(layout)
        net = cls(backbone, policy, action_unit=run.action_unit, mode=mode).to(check_device(device)).eval()
        net.budgets = {float(known): float(lean) for known, lean in run.budgets or ()}
        if net.budgets or budget is not None:
            net.set_budget(sorted(net.budgets)[len(net.budgets) // 2] if budget is None else budget)
        return net
