"""Confidence early exit that spends what it may on validation images: one threshold, or one that falls with depth."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .prefixes import Prefixes

BISECTIONS = 40
ODDS = 40.0  # log-odds at which a threshold in float32 is surely 0 or 1
SLOPES = np.arange(0, 20.5, 0.5)  # log-odds from the first unit to the last
SLACK = 1.002  # of the mean cost, which moves by whole images


def one_threshold(prefixes: Prefixes, costs: NDArray[np.int64], target: float) -> NDArray[np.float64]:
    """The threshold at which an image's mean cost is `target`, or the nearest that there is.

    Args:
        prefixes: of validation images.
        costs: of leaving after 0, 1, ... U units [U + 1].
        target: mean cost of an image.

    Returns:
        The same value after each unit [U].
    """
    units = len(costs) - 1
    return _tuned(prefixes, costs, target, lambda level: np.full(units, level), 0.0, 1.0 + 1e-6)


def falling_threshold(prefixes: Prefixes, costs: NDArray[np.int64], target: float) -> NDArray[np.float64]:
    """The same with log-odds that fall from unit to unit, by as much as makes most images right.

    So that the first units answer what they are very sure of, and deep ones need not wait for more. Right on no fewer
    of the images than with `one_threshold`.

    Args:
        prefixes: of validation images.
        costs: of leaving after 0, 1, ... U units [U + 1].
        target: mean cost of an image.

    Returns:
        Thresholds after each unit, none above the one before [U].
    """
    units = len(costs) - 1
    found = [one_threshold(prefixes, costs, target)]
    most = SLACK * max(target, _spent(prefixes, costs, found[0]))
    for slope in SLOPES[1:]:
        fall = slope * np.linspace(0, 1, units)
        found.append(
            _tuned(prefixes, costs, target, lambda level, fall=fall: 1 / (1 + np.exp(fall - level)), -ODDS, 2 * ODDS)
        )
    within = [thresholds for thresholds in found if _spent(prefixes, costs, thresholds) <= most]
    return max(within, key=lambda thresholds: _accuracy(prefixes, thresholds))


def _tuned(
    prefixes: Prefixes,
    costs: NDArray[np.int64],
    target: float,
    thresholds: Callable[[float], NDArray[np.float64]],
    low: float,
    high: float,
) -> NDArray[np.float64]:
    """Thresholds at the level at which the mean cost, which rises with it, reaches `target`."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        dear = _spent(prefixes, costs, thresholds(middle)) >= target
        low, high = (low, middle) if dear else (middle, high)
    return thresholds(high)


def _spent(prefixes: Prefixes, costs: NDArray[np.int64], thresholds: NDArray[np.float64]) -> float:
    return float(costs[prefixes.exit_units(thresholds)].mean())


def _accuracy(prefixes: Prefixes, thresholds: NDArray[np.float64]) -> float:
    units = prefixes.exit_units(thresholds)
    return float(prefixes.correct[units, np.arange(len(units))].mean())
