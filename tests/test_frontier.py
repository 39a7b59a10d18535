"""What a set of networks attains, on known arrays."""

import numpy as np
import pytest

from vitskip.eval.frontier import neighbours, upper_envelope

MACS = np.array([40.0, 10.0, 30.0, 20.0, 50.0])
ACCURACY = np.array([0.90, 0.10, 0.60, 0.70, 0.85])


def test_the_envelope_leaves_out_what_a_mixture_beats() -> None:
    assert upper_envelope(MACS, ACCURACY).tolist() == [1, 3, 0]  # 30 is below the line, 50 below 40
    raised = np.where(MACS == 30, 0.81, ACCURACY)
    assert upper_envelope(MACS, raised).tolist() == [1, 3, 2, 0]


def test_on_the_envelope_no_mixture_is_better() -> None:
    rng = np.random.default_rng(0)
    macs, accuracy = rng.integers(1, 12, 30).astype(float), rng.integers(0, 20, 30) / 20
    envelope = upper_envelope(macs, accuracy)
    assert (np.diff(macs[envelope]) > 0).all() and (np.diff(accuracy[envelope]) > 0).all()
    best = np.interp(macs, macs[envelope], accuracy[envelope])
    for low in range(30):
        for high in range(30):
            middle = (macs[low] + macs[high]) / 2
            mixed = (accuracy[low] + accuracy[high]) / 2
            assert mixed <= np.interp(middle, macs[envelope], accuracy[envelope]) + 1e-12
    assert (accuracy <= best).all()


def test_of_equals_the_first_counts() -> None:
    macs, accuracy = np.array([2.0, 1.0, 1.0, 2.0]), np.array([0.5, 0.2, 0.2, 0.5])
    assert upper_envelope(macs, accuracy).tolist() == [1, 0]


def test_a_network_on_the_line_counts() -> None:
    assert upper_envelope(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5, 1.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("target", "pair"),
    [(5, (1, 1)), (10, (1, 1)), (12, (1, 3)), (20, (1, 3)), (20.5, (3, 0)), (40, (3, 0)), (41, (0, 0)), (99, (0, 0))],
)
def test_neighbours_hold_the_target_between_them(target: float, pair: tuple[int, int]) -> None:
    assert neighbours(MACS, ACCURACY, target) == pair
