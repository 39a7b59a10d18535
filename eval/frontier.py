"""Accuracy over compute: what a set of networks attains, and which of them to mix at a budget."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Numbers = Float[NDArray[np.floating], " M"]


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


def _is_below(macs: Numbers, accuracy: Numbers, left: int, middle: int, right: int) -> bool:
    """Whether `middle` lies strictly below the line from `left` to `right`."""
    rise = (accuracy[middle] - accuracy[left]) * (macs[right] - macs[left])
    return bool(rise < (accuracy[right] - accuracy[left]) * (macs[middle] - macs[left]))
