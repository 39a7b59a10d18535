"""The decision process, once: a batch of images moves through the depth, and only rows that said RUN are computed."""

from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbone import Backbone, Dataset
from ..backbone.protocol import num_units, unit_runner
from .config import EnvConfig
from .cost import cost_shares
from .observation import ObservationLayout
from .prefix_cache import PrefixCache
from .reward import TASK_REWARDS, Outcome


class Action(IntEnum):
    """What to do with a block."""

    SKIP = 0
    RUN = 1


class SkipCore:
    """B episodes side by side. The faces in `single`, `vector` and `sb3` only translate.

    Tokens and logits live on the backbone's device. Everything that follows from the actions alone (masks, MACs,
    depth, cost) is kept on the host, so that a step needs one device-to-host read at most, the caller's.
    Rows never influence one another. Rows at the same depth run together; after a partial reset rows are grouped
    by depth.

    Args:
        backbone: ViT, in the mode and on the device where it shall run.
        dataset: images to classify; moved to that device.
        config: names of observation, reward and cost; `backbone`, `dataset` and `device` in it are not looked at.
        num_envs: B.

    Attributes:
        layout: what stands where in an observation.
        num_units: decisions per episode, U.
        cost_share: of each unit in the cost of all, float64 [U], summing to 1.
        cost_weight: what running every unit costs at each budget, float64 [max(1, budgets)], as configured; who steers
            to the budgets changes it.
        budgets: as configured, float64 [budgets]; who asks an agent for another one changes it.
        forced_units: leading units that run whatever the action says; 0, but for a curriculum.
        keep_mask: bool [B, U], units run so far.
        unit_index: int64 [B], next unit to decide; U at the end.
        image_index: int64 [B], the images; -1 where no episode ever began.
        budget_index: int64 [B], which of the configured budgets holds; 0 where there are none.
        logits: [B, K] on the device, what the head says now.
        prefix_cache: states visited before; None where the config gives it no memory. Tokens of a row are then those
            of the last state that was computed for it.

    Raises:
        ValueError: if data set and backbone do not fit one another.
    """

    def __init__(self, backbone: Backbone, dataset: Dataset, config: EnvConfig, num_envs: int) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs: expected an integer of at least 1, got {num_envs!r}")
        dataset.check_fits(backbone)
        self.backbone, self.config, self.num_envs = backbone, config, num_envs
        self.num_units = num_units(backbone, config.action_unit)
        self.layout = ObservationLayout.of(backbone, config.observation, config.action_unit, bool(config.budgets))
        self._run_unit = unit_runner(backbone, config.action_unit)
        self._task = TASK_REWARDS[config.reward]
        if self._task.includes_cost and not config.cost_weight > 0:
            raise ValueError(f"cost_weight: expected more than 0 for reward {config.reward!r}, got 0")
        self._macs = np.array(backbone.macs.units(config.action_unit), np.int64)
        self._fixed_macs, self._dense_macs = backbone.macs.stem + backbone.macs.head, backbone.macs.dense
        self.cost_share = cost_shares(config.cost, backbone, config.action_unit)
        self.cost_weight = np.full(max(1, len(config.budgets)), float(config.cost_weight))
        self.budgets = np.array(config.budgets)
        self.forced_units = 0
        self.device = next(backbone.parameters()).device
        self.dataset = dataset
        self._images, self._labels = dataset.images.to(self.device), dataset.labels.to(self.device)
        self._host_labels = dataset.labels.cpu().numpy()
        self._difficulty = np.nan_to_num(dataset.difficulty.cpu().numpy().astype(np.float64), nan=-1)
        self._full_logits: Tensor | None = None  # [N, K], filled as images appear
        self._one_hot = np.eye(self.num_units + 1, self.num_units, dtype=np.float32)
        self.keep_mask = np.zeros((num_envs, self.num_units), bool)
        self.unit_index = np.full(num_envs, self.num_units)
        self.image_index = np.full(num_envs, -1)
        self.budget_index = np.zeros(num_envs, np.int64)
        dtype = next(backbone.parameters()).dtype
        self.tokens = torch.zeros(num_envs, backbone.num_tokens, backbone.embed_dim, dtype=dtype, device=self.device)
        self.logits = torch.zeros(num_envs, backbone.num_classes, dtype=dtype, device=self.device)
        progress_size = self.layout.progress.stop - self.layout.progress.start
        self._no_progress = torch.zeros(1, progress_size, device=self.device)
        progress = self._no_progress.expand(num_envs, -1)
        self._view = self.layout.observe(self.logits, progress, self.tokens)  # observations, but for the progress
        self.prefix_cache = self._make_prefix_cache() if config.prefix_cache else None

    @property
    def ended(self) -> NDArray[np.bool_]:
        """[B], rows whose episode is over or has not begun."""
        return self.unit_index == self.num_units

    @torch.no_grad()
    def reset(
        self, rows: NDArray[np.int64], image_index: NDArray[np.int64], budget_index: NDArray[np.int64] | None = None
    ) -> None:
        """Begin an episode on some rows.

        Args:
            rows: int64 [R], without repeats.
            image_index: int64 [R] in 0..N-1, the image of each.
            budget_index: int64 [R], which budget each has; the first if not given.

        Raises:
            ValueError: if an image index is out of range.
        """
        if image_index.size and not (image_index.min() >= 0 and image_index.max() < len(self.dataset)):
            raise ValueError(f"image index: expected 0..{len(self.dataset) - 1}, got {image_index.tolist()}")
        self.keep_mask[rows], self.unit_index[rows], self.image_index[rows] = False, 0, image_index
        self.budget_index[rows] = 0 if budget_index is None else budget_index
        self._reach(rows, None)

    @torch.no_grad()
    def step(self, actions: NDArray[np.integer], active: NDArray[np.bool_] | None = None) -> Tensor:
        """Skip or run the next unit of every active row.

        Args:
            actions: integers [B], SKIP or RUN; not looked at where a row is not active.
            active: bool [B], rows that take part; all by default. None of them may have ended.

        Returns:
            Rewards, float32 [B] on the device; 0 where a row is not active.

        Raises:
            ValueError: if an action is neither SKIP nor RUN, or the shape is wrong.
        """
        active = np.ones(self.num_envs, bool) if active is None else active
        run = self._checked(actions, active) | (self.unit_index < self.forced_units)
        assert not (active & self.ended).any()
        for unit in np.unique(self.unit_index[active & run]):
            running = np.flatnonzero(active & run & (self.unit_index == unit))
            self._reach(running, int(unit))
        rows = np.flatnonzero(active)
        units = self.unit_index[rows]
        self.keep_mask[rows, units] = run[rows]
        cost = np.zeros(self.num_envs, np.float32)
        if not self._task.includes_cost:
            cost[rows] = self.cost_weight[self.budget_index[rows]] * self.cost_share[units] * run[rows]
        self.unit_index[rows] += 1
        reward = self._to_device(-cost)
        finished = active & self.ended
        return reward + self._task_reward(finished) if finished.any() else reward

    def cost_of_first(self, units: int) -> NDArray[np.float32]:
        """What running the first units costs each row at the cost weights of now, float32 [B]."""
        share = 0.0 if self._task.includes_cost else self.cost_share[:units].sum()
        return (self.cost_weight[self.budget_index] * share).astype(np.float32)

    def observe(self) -> Tensor:
        """Observations of all rows, float32 [B, O] on the device."""
        spent = (self.keep_mask @ self._macs / self._macs.sum()).astype(np.float32)
        columns = [self._one_hot[self.unit_index], spent[:, None]]
        if self.layout.shows_budget:
            columns.append(self.budgets[self.budget_index, None].astype(np.float32))
        observation = self._view.clone()
        observation[:, self.layout.progress] = self._to_device(np.concatenate(columns, 1))
        return observation

    def weights_changed(self) -> None:
        """Forget what was computed with other weights of the backbone; call it after training them, then reset."""
        self._full_logits = None
        if self.prefix_cache is not None:
            self.prefix_cache.clear()

    def info(self) -> dict[str, NDArray[Any]]:
        """What is known of all rows without asking the device, by key; see `SkipEnv` for their meaning."""
        macs = self._fixed_macs + self.keep_mask @ self._macs
        budget = {"budget": self.budgets[self.budget_index]} if self.layout.shows_budget else {}
        return {
            "index": self.image_index.copy(),
            "block_index": self.unit_index.copy(),
            "macs": macs,
            "macs_fraction": macs / self._dense_macs,
            "label": self._host_labels[self.image_index],
            "difficulty": self._difficulty[self.image_index],
            "keep_mask": self.keep_mask.copy(),
            **budget,
        }

    def _checked(self, actions: NDArray[np.integer], active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iub":
            raise ValueError(f"actions: expected integers [{self.num_envs}], got {actions.dtype} {actions.shape}")
        wrong = active & (actions != Action.SKIP) & (actions != Action.RUN)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"actions: expected 0 (SKIP) or 1 (RUN), got {actions[row]} in row {row}")
        return actions == Action.RUN

    def _reach(self, rows: NDArray[np.int64], unit: int | None) -> None:
        """Bring rows to the state after a unit, or after embedding: computed, or known from an earlier visit."""
        compute = partial(self._compute, unit)
        if self.prefix_cache is not None:
            keys = self.prefix_cache.keys(self.image_index[rows], self.keep_mask[rows])
            keys += 0 if unit is None else 1 << unit
            self.prefix_cache.reach(rows, keys, compute, self.tokens, (self.logits, self._view))
            return
        states = compute(rows)
        if len(rows) == self.num_envs and (rows[:-1] < rows[1:]).all():
            self.tokens, self.logits, self._view = states
            return
        device_rows = self._to_device(rows)
        for target, state in zip((self.tokens, self.logits, self._view), states, strict=True):
            target.index_copy_(0, device_rows, state)

    def _compute(self, unit: int | None, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, logits and view of rows after a unit, or after embedding."""
        if unit is None:
            tokens = self.backbone.embed(self._images[self._to_device(self.image_index[rows])])
        else:
            tokens = self._run_unit(unit, self._current_tokens(rows))
        logits = self.backbone.classify(tokens)
        return tokens, logits, self.layout.observe(logits, self._no_progress.expand(len(rows), -1), tokens)

    def _current_tokens(self, rows: NDArray[np.int64]) -> Tensor:
        if self.prefix_cache is not None:
            return self.prefix_cache.current_tokens(rows, self.image_index[rows], self.keep_mask[rows], self.tokens)
        return self.tokens if len(rows) == self.num_envs else self.tokens.index_select(0, self._to_device(rows))

    def _make_prefix_cache(self) -> PrefixCache:
        return PrefixCache(
            self.config.prefix_cache,
            self.backbone,
            self._images,
            action_unit=self.config.action_unit,
            num_units=self.num_units,
            num_envs=self.num_envs,
        )

    def _task_reward(self, finished: NDArray[np.bool_]) -> Tensor:
        image_index = self._to_device(self.image_index)
        full_logits = self._full_logits_of(self.image_index[finished]) if self._task.needs_full_logits else None
        outcome = Outcome(
            logits=self.logits.float(),
            labels=self._labels[image_index],
            full_logits=None if full_logits is None else full_logits[image_index],
            keep_mask=self._to_device(self.keep_mask),
            cost_weight=self._to_device(self.cost_weight[self.budget_index].astype(np.float32)),
        )
        return torch.where(self._to_device(finished), self._task.compute(outcome), 0.0)

    def _full_logits_of(self, image_index: NDArray[np.int64]) -> Tensor:
        """Table [N, K] of the full net's logits, complete for these images; NaN where never asked for."""
        if self._full_logits is None:
            shape = (len(self.dataset), self.backbone.num_classes)
            self._full_logits = torch.full(shape, torch.nan, device=self.device)
            self._known = np.zeros(len(self.dataset), bool)
        missing = np.unique(image_index[~self._known[image_index]])
        if missing.size:
            rows = self._to_device(missing)
            self._full_logits[rows] = self.backbone(self._images[rows]).float()
            self._known[missing] = True
        return self._full_logits

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
