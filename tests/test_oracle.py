"""The oracle on known predictions, by brute force, and on the tiny net."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys  # noqa: F401 - registers the tiny names
from numpy.typing import NDArray

from vitskip.agents.static_masks import StaticMasks
from vitskip.backbone import load_backbone, load_dataset, run_masked
from vitskip.eval.oracle import CRITERIA, Codebook, codebook_masks, run_codebook

LABELS = np.array([0, 1, 2, 3, 4, 5])
PREDICTION = np.array(
    [
        [0, 9, 2, 8, 9, 5],  # 10 MACs
        [0, 1, 9, 9, 4, 9],  # 20
        [0, 1, 2, 8, 9, 5],  # 40
        [0, 1, 2, 8, 9, 9],  # 80: all units
    ]
)
CHOICES = {"agrees": [0, 1, 0, 0, 0, 1], "settled": [0, 1, 2, 2, 2, 3], "correct": [0, 1, 0, 0, 1, 0]}


@pytest.fixture
def codebook() -> Codebook:
    return book(PREDICTION, LABELS)


def book(prediction: NDArray[np.int64], labels: NDArray[np.int64]) -> Codebook:
    keep_mask = np.tri(4, dtype=bool)
    difficulty = np.linspace(0, 1, len(labels))
    return Codebook(keep_mask, np.array([10, 20, 40, 80]), 80, prediction, labels, difficulty)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_cheapest_good_mask(codebook: Codebook, criterion: str) -> None:
    oracle = codebook.oracle(criterion)
    chosen = CHOICES[criterion]
    assert oracle.macs.tolist() == codebook.macs[chosen].tolist()
    assert np.array_equal(oracle.keep_mask, codebook.keep_mask[chosen])
    assert oracle.correct.tolist() == (PREDICTION[chosen, range(6)] == LABELS).tolist()
    assert oracle.dense_macs == 80
    if criterion != "correct":
        assert oracle.accuracy == (PREDICTION[-1] == LABELS).mean()  # by agreement it is right as often as the full net
    else:
        assert oracle.accuracy == (PREDICTION == LABELS).any(0).mean()


@pytest.mark.parametrize(
    ("budget", "macs"),
    [
        (1, [10, 10, 10, 10, 10, 10]),
        (10, [10, 10, 10, 10, 10, 10]),
        (11.5, [10, 10, 10, 10, 10, 10]),
        (11.7, [10, 20, 10, 10, 10, 10]),
        (16.5, [10, 20, 10, 10, 10, 10]),
        (16.7, [10, 20, 40, 10, 10, 10]),
        (26.7, [10, 20, 40, 40, 40, 10]),
        (38.4, [10, 20, 40, 40, 40, 80]),
        (500, [10, 20, 40, 40, 40, 80]),
    ],
)
def test_what_costs_most_is_left_out_first(codebook: Codebook, budget: float, macs: list[int]) -> None:
    assert codebook.oracle("settled", budget).macs.tolist() == macs


@pytest.mark.parametrize("criterion", CRITERIA)
def test_no_choice_meets_the_criterion_more_often(criterion: str) -> None:
    """All ways to give one of four masks to each of four images."""
    rng = np.random.default_rng(1)
    for _ in range(3):
        codebook = book(rng.integers(3, size=(4, 4)), rng.integers(3, size=4))
        good = codebook._good(criterion)
        for budget in (12, 20, 33.0, 47.5, 80):
            choices = np.array(list(itertools.product(range(4), repeat=4)))
            affordable = choices[codebook.macs[choices].mean(1) <= budget]
            most = good[affordable, range(4)].sum(1).max()
            oracle = codebook.oracle(criterion, budget)
            taken = [codebook.macs.tolist().index(cost) for cost in oracle.macs]
            assert oracle.macs.mean() <= budget
            assert good[taken, range(4)].sum() == most


def test_its_own_compute_is_enough(codebook: Codebook) -> None:
    for criterion in CRITERIA:
        free = codebook.oracle(criterion)
        assert np.array_equal(codebook.oracle(criterion, float(free.macs.mean())).macs, free.macs)


def test_the_gap_is_taken_at_the_networks_compute(codebook: Codebook) -> None:
    cheapest = codebook.oracle("settled", 10)  # right on the images 0, 2 and 5
    network = replace(cheapest, macs=np.array([10, 10, 10, 10, 10, 20]))
    assert network.correct.tolist() == [True, False, True, False, False, True]
    gaps = [codebook.gap(network, criterion).difference for criterion in CRITERIA]
    assert gaps == pytest.approx([1 / 6] * 3)  # enough for one image more
    dear = replace(cheapest, macs=np.full(6, 80))
    gaps = [codebook.gap(dear, criterion).difference for criterion in CRITERIA]
    assert gaps == pytest.approx([0, 0, 2 / 6])  # image 5 is wrong when it agrees with the full net


def test_an_unknown_criterion(codebook: Codebook, unchecked: None) -> None:
    with pytest.raises(ValueError, match="unknown criterion 'agree': expected one of agrees, correct, settled"):
        codebook.oracle("agree")


def test_the_masks_of_a_codebook() -> None:
    assert codebook_masks(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    keep_mask = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
    static_masks = StaticMasks(keep_mask, np.array([0.1, 0.6, 0.5, 0.8, 0.7, 0.9]))
    found = codebook_masks(3, static_masks)
    assert {tuple(mask) for mask in found.astype(int).tolist()} == {(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)}
    assert len(found) == 4


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_a_codebook_of_the_tiny_net(action_unit: str) -> None:
    backbone, dataset = load_backbone("tiny-vit4"), load_dataset("tiny-digits", "test")
    units = backbone.macs.units(action_unit)
    masks = np.random.default_rng(0).random((5, len(units))) < 0.5
    codebook = run_codebook(backbone, dataset, np.unique(masks, axis=0), action_unit, batch_size=30)
    assert codebook.keep_mask[-1].all() and codebook.macs[-1] == backbone.macs.total
    assert (np.diff(codebook.macs) >= 0).all()
    assert {tuple(mask) for mask in masks.tolist()} <= {tuple(mask) for mask in codebook.keep_mask.tolist()}
    fixed = backbone.macs.stem + backbone.macs.head
    for keep, macs, prediction in zip(codebook.keep_mask, codebook.macs, codebook.prediction, strict=True):
        assert macs == fixed + sum(itertools.compress(units, keep))
        with torch.no_grad():
            keep_mask = torch.from_numpy(keep).expand(len(dataset), -1)
            expected = run_masked(backbone, dataset.images, keep_mask, action_unit).argmax(1)
        assert np.array_equal(prediction, expected.numpy())
    oracle = codebook.oracle()
    assert oracle.accuracy == (codebook.prediction[-1] == dataset.labels.numpy()).mean()
    assert 0 < oracle.macs_fraction < 1 and math.isfinite(oracle.difficulty_correlation)
