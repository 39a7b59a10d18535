"""Confidence early exit that spends what it may on validation images: one threshold, or one that falls with depth."""

import numpy as np
from numpy.typing import NDArray

from .prefixes import Prefixes

BISECTIONS = 50
ODDS = 40.0  # log-odds at which a threshold in float32 is surely 0 or 1
SLOPES = np.arange(0, 20.5, 0.5)  # log-odds from the first unit to the last
NEVER = 2.0  # no confidence reaches it
SLACK = 1.002  # of the mean cost, which moves by whole images


def one_threshold(
    prefixes: Prefixes, costs: NDArray[np.int64], target: float, *, blind: bool = True
) -> NDArray[np.float64]:
    """The threshold at which an image's mean cost is `target`, or the nearest that there is.

    Args:
        prefixes: of validation images.
        costs: of leaving after 0, 1, ... U units [U + 1].
        target: mean cost of an image.
        blind: whether the belief before the first unit knows nothing of the image, so that the unit always runs.

    Returns:
        The same value before each unit, but for the first one if that is blind [U].
    """
    return _tuned(prefixes, costs, target, blind, 0.0)


def falling_threshold(
    prefixes: Prefixes, costs: NDArray[np.int64], target: float, *, blind: bool = True
) -> NDArray[np.float64]:
    """The same with log-odds that fall from unit to unit, by as much as makes most images right.

    So that the first units answer what they are very sure of, and deep ones need not wait for more. Right on no fewer
    of the images than with `one_threshold`, whose arguments these are.

    Returns:
        Thresholds before each unit, none above the one before [U].
    """
    found = [_tuned(prefixes, costs, target, blind, slope) for slope in SLOPES]
    most = SLACK * max(target, _spent(prefixes, costs, found[0]))
    within = [thresholds for thresholds in found if _spent(prefixes, costs, thresholds) <= most]
    return max(within, key=lambda thresholds: _accuracy(prefixes, thresholds))


def _tuned(
    prefixes: Prefixes, costs: NDArray[np.int64], target: float, blind: bool, slope: float
) -> NDArray[np.float64]:
    """Thresholds that fall by `slope`, at the level at which the mean cost, which rises with it, reaches `target`."""
    fall = slope * np.linspace(0, 1, len(costs) - 1)

    def at(level: float) -> NDArray[np.float64]:
        thresholds = 1 / (1 + np.exp(fall - level))
        return np.concatenate([[NEVER], thresholds[1:]]) if blind else thresholds

    low, high = -ODDS, 2 * ODDS
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        dear = _spent(prefixes, costs, at(middle)) >= target
        low, high = (low, middle) if dear else (middle, high)
    return at(high)


def _spent(prefixes: Prefixes, costs: NDArray[np.int64], thresholds: NDArray[np.float64]) -> float:
    return float(costs[prefixes.exit_units(thresholds)].mean())


def _accuracy(prefixes: Prefixes, thresholds: NDArray[np.float64]) -> float:
    units = prefixes.exit_units(thresholds)
    return float(prefixes.correct[units, np.arange(len(units))].mean())
