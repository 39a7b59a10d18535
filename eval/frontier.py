"""Accuracy over compute: what a set of networks attains, which of them to mix at a budget, what their paths tell."""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.special import entr

Numbers = Float[np.ndarray, " M"]


def upper_envelope(macs: Numbers, accuracy: Numbers) -> NDArray[np.int64]:
    """The networks on the upper concave envelope of (macs, accuracy).

    Giving a part of the images to one network and the rest to another attains every point of the line between them,
    so this is the Pareto frontier of the networks and all mixtures of two of them.

    Args:
        macs: compute of each network, in any unit.
        accuracy: of each network.

    Returns:
        Indices, cheapest first, each dearer and more accurate than the one before; of equals the first.
    """
    envelope: list[int] = []
    for index in np.lexsort((-accuracy, macs)).tolist():
        if envelope and accuracy[index] <= accuracy[envelope[-1]]:
            continue
        while len(envelope) > 1 and _is_below(macs, accuracy, envelope[-2], envelope[-1], index):
            envelope.pop()
        envelope.append(index)
    return np.array(envelope, np.int64)


def neighbours(macs: Numbers, accuracy: Numbers, target: float) -> tuple[int, int]:
    """The cheaper and the dearer network whose mixture that costs `target` on average is the most accurate.

    Twice the same where `target` is below the cheapest network, or beyond the one from which on compute buys nothing.

    Args:
        macs: compute of each network.
        accuracy: of each network, measured where the choice may be made: on validation.
        target: wanted mean compute, in the unit of `macs`.
    """
    envelope = upper_envelope(macs, accuracy)
    dearer = int(np.searchsorted(macs[envelope], target))
    if dearer == len(envelope):
        return int(envelope[-1]), int(envelope[-1])
    return int(envelope[max(dearer - 1, 0)]), int(envelope[dearer])


def hypervolume(
    macs_fraction: Numbers, accuracy: Numbers, *, max_macs_fraction: float = 1.0, min_accuracy: float = 0.0
) -> float:
    """Area of what the networks dominate: cost no less than one of them, and are no more accurate.

    One number for a whole trade-off (Zitzler and Thiele, 1998); of the networks themselves, without mixtures.

    Args:
        macs_fraction: compute of each network.
        accuracy: of each network.
        max_macs_fraction: first half of the reference point: what costs more counts for nothing.
        min_accuracy: second half: what is less accurate counts for nothing.

    Returns:
        At least 0; with the default reference (the dense compute, no accuracy) at most 1.
    """
    order = np.argsort(macs_fraction, kind="stable")
    edges = np.append(np.minimum(macs_fraction[order], max_macs_fraction), max_macs_fraction)
    heights = np.maximum.accumulate(np.maximum(accuracy[order] - min_accuracy, 0))
    return float((np.diff(edges) * heights).sum())


def path_information(keep_mask: Bool[np.ndarray, "N U"]) -> float:
    """Mutual information of image and path, in bits, where the image decides the path: then it is the path's entropy.

    That of the frequencies plus (paths - 1) / (2 N) nats (Miller, 1955; Madow): frequencies alone give too little.
    Still too little where paths are nearly as many as images.

    Args:
        keep_mask: the path of each image.
    """
    _, counts = np.unique(keep_mask, axis=0, return_counts=True)
    nats = entr(counts / counts.sum()).sum() + (len(counts) - 1) / (2 * counts.sum())
    return float(nats) / math.log(2)


def _is_below(macs: Numbers, accuracy: Numbers, left: int, middle: int, right: int) -> bool:
    """Whether `middle` lies strictly below the line from `left` to `right`."""
    rise = (accuracy[middle] - accuracy[left]) * (macs[right] - macs[left])
    return bool(rise < (accuracy[right] - accuracy[left]) * (macs[middle] - macs[left]))
