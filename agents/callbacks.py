"""What TensorBoard shows of skipping: compute, run rates, paths, and a picture of who skips what."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure

from ..envs.core import SkipCore

BANDS = 5  # rows of the skip map, from easy to hard


class SkipStatistics(BaseCallback):
    """Logs what skipping came to in the episodes that ended in each rollout.

    MACs fraction, units run, run rate of each unit, distinct paths, and every `figure_every` rollouts a skip map
    (run rate by unit and difficulty).

    Args:
        figure_every: rollouts between skip maps.

    Attributes:
        curve: columns over rollouts: environment steps, mean return, success rate, MACs fraction.
        spent: in the latest of them, MACs fraction at each budget, with key None without budgets.
    """

    def __init__(self, figure_every: int = 25) -> None:
        super().__init__()
        self.figure_every = figure_every
        self.curve: dict[str, list[float]] = {
            name: [] for name in ("timesteps", "episode_return", "success_rate", "macs_fraction")
        }
        self.spent: dict[float | None, float] = {}
        self._episodes: list[dict[str, Any]] = []

    def get_state(self) -> dict[str, Any]:
        return {"curve": self.curve}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.curve = state["curve"]

    def _on_step(self) -> bool:
        self._episodes += [info for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        if not self._episodes:
            return
        masks = np.array([info["keep_mask"] for info in self._episodes])
        means = {
            "timesteps": float(self.num_timesteps),
            "episode_return": float(np.mean([info["episode"]["r"] for info in self._episodes])),
            "success_rate": float(np.mean([info["is_success"] for info in self._episodes])),
            "macs_fraction": float(np.mean([info["macs_fraction"] for info in self._episodes])),
        }
        self.logger.record("skip/macs_fraction", means["macs_fraction"])
        by_budget: dict[float | None, list[float]] = {}
        for info in self._episodes:
            by_budget.setdefault(info.get("budget"), []).append(info["macs_fraction"])
        self.spent = {budget: float(np.mean(fractions)) for budget, fractions in by_budget.items()}
        for budget, spent in self.spent.items():
            if budget is not None:
                self.logger.record(f"skip/macs_fraction_at_{100 * budget:g}", spent)
        self.logger.record("skip/units_run", float(masks.sum(1).mean()))
        self.logger.record("skip/distinct_paths", len(np.unique(masks, axis=0)))
        for unit, rate in enumerate(masks.mean(0)):
            self.logger.record(f"skip_rate/unit_{unit:02d}_runs", float(rate), exclude="stdout")
        if len(self.curve["timesteps"]) % self.figure_every == 0:
            difficulty = np.array([info["difficulty"] for info in self._episodes])
            figure = Figure(draw_skip_map(masks, difficulty), close=True)
            self.logger.record("skip/map", figure, exclude=("stdout", "log", "json", "csv"))
        for name, mean in means.items():
            self.curve[name].append(mean)
        self._episodes = []


class Curriculum(BaseCallback):
    """Makes the units free to be skipped one after the other, from the last to the first; the others run.

    Args:
        core: whose `forced_units` to lower.
        share: of the training steps after which all units are free, in (0, 1].
    """

    def __init__(self, core: SkipCore, share: float) -> None:
        super().__init__()
        self.core, self.share = core, share

    def _on_rollout_start(self) -> None:
        progress = self.num_timesteps / (self.share * self.model._total_timesteps)
        self.core.forced_units = max(0, math.ceil((1 - progress) * (self.core.num_units - 1)))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.core.forced_units = 0


def draw_skip_map(keep_mask: NDArray[np.bool_], difficulty: NDArray[np.float64]) -> MatplotlibFigure:
    """Run rate of each unit, for images sorted into bands of difficulty (one band where it is unknown).

    Args:
        keep_mask: bool [N, U].
        difficulty: [N] in [0, 1]; anything else where unknown.
    """
    known = bool((difficulty >= 0).all()) and len(difficulty) >= BANDS
    bands = np.array_split(np.argsort(difficulty, kind="stable"), BANDS) if known else [np.arange(len(keep_mask))]
    rates = np.stack([keep_mask[band].mean(0) for band in bands])
    figure = MatplotlibFigure(figsize=(0.5 * keep_mask.shape[1] + 2, 0.45 * len(bands) + 1.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(rates, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set(xlabel="unit", xticks=range(keep_mask.shape[1]), yticks=range(len(bands)))
    axes.set_yticklabels(["all images"] if not known else ["easiest", *[""] * (BANDS - 2), "hardest"])
    figure.colorbar(image, label="run rate")
    return figure
