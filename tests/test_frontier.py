"""What a set of networks attains, on known arrays."""

import math

import numpy as np
import pytest

from vitskip.eval.frontier import hypervolume, neighbours, path_information, upper_envelope

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


def test_hypervolume_by_hand() -> None:
    macs, accuracy = np.array([0.6, 0.2, 0.5, 1.0, 1.2]), np.array([0.9, 0.5, 0.4, 0.95, 0.99])
    assert hypervolume(macs[1:2], accuracy[1:2]) == pytest.approx(0.8 * 0.5)
    assert hypervolume(macs[:3], accuracy[:3]) == pytest.approx(0.4 * 0.5 + 0.4 * 0.9)  # the third is dominated
    assert hypervolume(macs, accuracy) == pytest.approx(0.4 * 0.5 + 0.4 * 0.9)  # beyond the reference: nothing
    raised = hypervolume(macs, accuracy, max_macs_fraction=1.1, min_accuracy=0.6)
    assert raised == pytest.approx(0.4 * 0.3 + 0.1 * 0.35)
    assert hypervolume(macs, accuracy, min_accuracy=1.0) == 0
    assert hypervolume(macs[4:], accuracy[4:]) == 0
    assert hypervolume(np.array([0.0]), np.array([1.0])) == 1


def test_hypervolume_is_the_share_of_points_that_are_dominated() -> None:
    rng = np.random.default_rng(0)
    macs, accuracy = rng.random(6), rng.random(6)
    points = rng.random((200_000, 2))
    dominated = ((points[:, :1] >= macs) & (points[:, 1:] <= accuracy)).any(1)
    assert hypervolume(macs, accuracy) == pytest.approx(dominated.mean(), abs=0.005)


def test_path_information_by_hand() -> None:
    paths = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    correction = 3 / (2 * 400 * math.log(2))
    assert path_information(np.repeat(paths, 100, 0)) == pytest.approx(2 + correction)
    assert path_information(np.repeat(paths[:1], 100, 0)) == 0
    skewed = np.repeat(paths[:2], [10, 90], 0)
    entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    assert path_information(skewed) == pytest.approx(entropy + 1 / (200 * math.log(2)))


def test_the_correction_takes_most_of_the_bias_away() -> None:
    """Eight equally likely paths on forty images, many times over."""
    rng = np.random.default_rng(0)
    paths = np.array([[path >> bit & 1 for bit in range(3)] for path in range(8)], bool)
    plain, corrected = [], []
    for _ in range(300):
        drawn = paths[rng.integers(8, size=40)]
        share = np.unique(drawn, axis=0, return_counts=True)[1] / 40
        plain.append(-(share * np.log2(share)).sum())
        corrected.append(path_information(drawn))
    assert np.mean(plain) < 2.9
    assert np.mean(corrected) == pytest.approx(3, abs=0.03)
