"""Results as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..agents.dynamic_vit import DynamicViT
from ..backbone import Dataset
from ..envs.config import EnvConfig
from ..envs.core import SkipCore
from ..envs.single import episode_frame
from ..envs.viewer import draw_strip

Point = tuple[float, float]  # MACs fraction, accuracy
CURVE_POINTS = 50


def draw_reward_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Return, accuracy and compute over environment steps, one line per agent, of means over neighbouring rollouts."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"episode_return": "episode return", "success_rate": "accuracy", "macs_fraction": "MACs over dense"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for name, curve in curves.items():
            steps, values = (_binned(curve[part]) for part in ("timesteps", column))
            axes.plot(steps / 1e6, values, label=name)
        axes.set(title=title, xlabel="environment steps [millions]")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def _binned(values: Sequence[float]) -> NDArray[np.float64]:
    """Means of neighbours, at most `CURVE_POINTS` of them: what many short rollouts say of few images is noise."""
    return np.array([part.mean() for part in np.array_split(values, min(len(values), CURVE_POINTS))])


def draw_accuracy_over_compute(points: Mapping[str, Sequence[Point]], path: Path, *, lines: Sequence[str] = ()) -> None:
    """Accuracy over compute, joined in order of compute, one colour per network; names in `lines` are thin.

    Thin lines far below all others leave the picture; the legend says so.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    bottom, top = shown_range(points, lines)
    for name, values in points.items():
        macs, accuracy = 100 * np.array(sorted(values)).T
        thin, label = name in lines, name if accuracy.max() >= 100 * bottom else f"{name} (below)"
        axes.plot(macs, accuracy, "o--" if thin else "D-", label=label, markersize=4 if thin else 7, linewidth=1.2)
    axes.set(xlabel="compute, policy included [% of dense MACs]", ylabel="test accuracy [%]")
    axes.set_ylim(100 * bottom, 100 * top)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def shown_range(points: Mapping[str, Sequence[Point]], lines: Sequence[str]) -> tuple[float, float]:
    """Accuracies at the bottom and the top of a picture: networks that are not in `lines` have the upper third."""
    accuracies = {name: [accuracy for _, accuracy in values] for name, values in points.items()}
    every = [accuracy for values in accuracies.values() for accuracy in values]
    thick = [accuracy for name, values in accuracies.items() if name not in lines for accuracy in values]
    best, lowest = max(every), min(thick or every)
    bottom = max(min(every), lowest - 2 * (best - lowest))
    margin = 0.05 * (best - bottom) or 0.01
    return bottom - margin, best + margin


def draw_speed_ups(networks: Mapping[str, Mapping[int, float]], path: Path, *, lines: Sequence[str] = ()) -> None:
    """How many times as fast as the dense network over batch sizes, one colour each; names in `lines` are thin."""
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="black", linewidth=0.8)
    for name, speed_ups in networks.items():
        thin, (sizes, values) = name in lines, zip(*sorted(speed_ups.items()), strict=True)
        axes.plot(sizes, values, "o--" if thin else "D-", label=name, markersize=4 if thin else 6, linewidth=1.2)
    sizes = sorted({size for speed_ups in networks.values() for size in speed_ups})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.set(xlabel="images in a batch", ylabel="times as fast as dense")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def draw_episodes(net: DynamicViT, dataset: Dataset, index: Sequence[int], path: Path) -> None:
    """The ends of some episodes, one below the other, as the environment renders them.

    Args:
        net: whose decisions to show, at its budget where it has several.
        dataset: where the images are.
        index: which images.
        path: PNG file to write.
    """
    rows = np.arange(len(index))
    layout = net.policy.layout
    budgets = (net.shown_budget,) if layout.shows_budget and isinstance(net.shown_budget, float) else ()
    config = EnvConfig(observation=layout.kind, action_unit=net.action_unit, budgets=budgets)
    core = SkipCore(net.backbone, dataset, config, len(rows))
    core.reset(rows, np.array(index, np.int64))
    net(dataset.images[list(index)].to(core.device))
    assert net.last_trace is not None
    for actions in net.last_trace.keep_mask.T.cpu().numpy():
        core.step(actions.astype(np.int64))
    Image.fromarray(draw_strip([episode_frame(core, int(row)) for row in rows], columns=2)).save(path, optimize=True)
