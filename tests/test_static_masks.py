"""Enumeration and search of static masks against brute force."""

import numpy as np
import pytest
import torch
import toys  # noqa: F401 - registers the tiny names
from torch import Tensor

from vitskip.agents import enumerate_static_masks
from vitskip.agents.static_masks import StaticMasks, rescore, search_static_masks
from vitskip.backbone import Dataset, ViT, load_backbone, load_dataset, run_masked
from vitskip.backbone.protocol import num_units

COUNT = 40
UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_dataset("tiny-digits", "validation").images[:COUNT]


@pytest.fixture(scope="module")
def labels(images: Tensor) -> Tensor:
    """What the whole net says of every other image, so that the masks differ in accuracy, and the truth of the rest."""
    with torch.no_grad():
        prediction = load_backbone("tiny-vit4")(images).argmax(1)
    dataset: Dataset = load_dataset("tiny-digits", "validation")
    return torch.where(torch.arange(COUNT) % 2 == 0, prediction, dataset.labels[:COUNT])


@pytest.fixture(scope="module")
def masks(images: Tensor, labels: Tensor) -> StaticMasks:
    return enumerate_static_masks(load_backbone("tiny-vit4"), images, labels, chunk=16)  # the last chunk is smaller


def log_likelihood_and_accuracy(
    keep: tuple[bool, ...], images: Tensor, labels: Tensor, action_unit: str
) -> tuple[float, float]:
    """What a mask gives, by running it alone."""
    with torch.no_grad():
        keep_mask = torch.tensor(keep).expand(len(images), -1)
        logits = run_masked(load_backbone("tiny-vit4"), images, keep_mask, action_unit)
    likelihood = -torch.nn.functional.cross_entropy(logits.double(), labels).item()
    return likelihood, (logits.argmax(1) == labels).double().mean().item()


@UNITS
def test_enumeration_equals_brute_force(images: Tensor, labels: Tensor, action_unit: str) -> None:
    masks = enumerate_static_masks(load_backbone("tiny-vit4"), images, labels, action_unit=action_unit, chunk=16)
    count = 2 ** num_units(load_backbone("tiny-vit4"), action_unit)
    assert len(np.unique(masks.keep_mask, axis=0)) == len(masks.keep_mask) == len(masks.accuracy) == count
    for keep, accuracy in list(zip(masks.keep_mask, masks.accuracy, strict=True))[:: count // 16]:
        assert accuracy == log_likelihood_and_accuracy(tuple(keep.tolist()), images, labels, action_unit)[1]
    assert len(np.unique(masks.accuracy)) > 5


def test_chunks_do_not_matter(masks: StaticMasks, images: Tensor, labels: Tensor) -> None:
    whole = enumerate_static_masks(load_backbone("tiny-vit4"), images, labels)
    assert np.array_equal(whole.accuracy, masks.accuracy)
    assert np.array_equal(whole.keep_mask, masks.keep_mask)


@UNITS
@pytest.mark.parametrize("chunk", [16, 100])
def test_the_search_leaves_out_what_is_worth_least_for_its_cost(
    images: Tensor, labels: Tensor, action_unit: str, chunk: int
) -> None:
    backbone = load_backbone("tiny-vit4")
    found = search_static_masks(backbone, images, labels, action_unit=action_unit, chunk=chunk)
    macs = backbone.macs.units(action_unit)
    keep, expected = (True,) * len(macs), {}
    for _ in macs:
        whole, expected[keep] = log_likelihood_and_accuracy(keep, images, labels, action_unit)
        worth = {}
        for unit in np.flatnonzero(keep).tolist():
            without = (*keep[:unit], False, *keep[unit + 1 :])
            likelihood, expected[without] = log_likelihood_and_accuracy(without, images, labels, action_unit)
            worth[without] = (whole - likelihood) / macs[unit]
        keep = min(worth, key=lambda mask: worth[mask])
    assert not any(keep)
    tried = dict(zip(map(tuple, found.keep_mask.tolist()), found.accuracy.tolist(), strict=True))
    assert tried == pytest.approx(expected)
    assert len(found.keep_mask) == len(expected) == 1 + len(macs) * (len(macs) + 1) // 2


@pytest.mark.parametrize("blocks", range(5))
def test_the_best_of_each_size(masks: StaticMasks, blocks: int) -> None:
    sized = [
        (accuracy, keep.tolist())
        for keep, accuracy in zip(masks.keep_mask, masks.accuracy, strict=True)
        if keep.sum() == blocks
    ]
    best = masks.best(blocks)
    assert (max(accuracy for accuracy, _ in sized), best.tolist()) in sized


def test_of_equals_the_earlier_blocks_win(masks: StaticMasks) -> None:
    equal = StaticMasks(masks.keep_mask, np.full(16, 0.5))
    assert equal.best(2).tolist() == [True, True, False, False]
    assert equal.best(0).tolist() == [False] * 4


def test_known_accuracies(masks: StaticMasks) -> None:
    wanted = [False, True, False, True]
    accuracy = np.where((masks.keep_mask == wanted).all(1), 0.9, 0.3)
    known = StaticMasks(masks.keep_mask, accuracy)
    assert known.best(2).tolist() == wanted


@pytest.mark.parametrize("blocks", [-1, 5])
def test_no_mask_has_so_many_blocks(masks: StaticMasks, blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"units: expected 0\.\.4, got {blocks}"):
        masks.best(blocks)


def test_a_deep_net_is_refused() -> None:
    vit = ViT(image_size=8, patch_size=4, embed_dim=4, depth=17, num_heads=1, num_classes=2)
    with pytest.raises(ValueError, match="backbone: expected at most 16 units to enumerate their masks, got 17"):
        enumerate_static_masks(vit, torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))


def test_rescore_keeps_the_best_and_the_prefixes_and_measures_them_again() -> None:
    backbone, images = load_backbone("tiny-vit4"), load_dataset("tiny-digits", "validation")
    first = enumerate_static_masks(backbone, images.images[:16], images.labels[:16])
    second = rescore(first, backbone, images.images[16:], images.labels[16:], candidates=2)
    kept = {tuple(mask) for mask in second.keep_mask.tolist()}
    for level in range(5):
        assert tuple(first.best(level).tolist()) in kept
        assert tuple(unit < level for unit in range(4)) in kept
    assert len(kept) == len(second.keep_mask) <= 5 + 2 * 5
    for mask, accuracy in zip(second.keep_mask, second.accuracy, strict=True):
        keep_mask = torch.from_numpy(mask).expand(len(images) - 16, -1)
        correct = run_masked(backbone, images.images[16:], keep_mask).argmax(1) == images.labels[16:]
        assert accuracy == pytest.approx(correct.double().mean().item())
