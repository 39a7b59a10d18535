"""Batches are a pure function of seed and step, and divide into shares."""

import pytest
import torch

from vitskip.backbone.augment import AUGMENTATIONS
from vitskip.backbone.batches import Batch, Batches, sample_keep_mask, spread_rows
from vitskip.backbone.datasets import Dataset

ALL = slice(0, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(share: slice = ALL, seed: int = 0, augmentation: str = "cifar-strong") -> Batches:
    images = torch.randint(0, 256, (27, 3, 8, 8), generator=generator()).to(torch.uint8)
    train = Dataset(images, torch.arange(27) % 3, ("a", "b", "c"), torch.zeros(27))
    return Batches(train, AUGMENTATIONS[augmentation], 8, share, units=6, always=1, full_share=0.3, seed=seed)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_a_batch_follows_from_seed_and_step() -> None:
    straight, jumping, other = make(), make(), make(seed=1)
    wanted = [straight[step] for step in range(7)]
    for step in (6, 0, 3, 3):
        assert same(jumping[step], wanted[step])
    assert not same(other[0], wanted[0])
    assert not same(wanted[0], wanted[1])


def test_an_epoch_shows_each_image_once_and_leaves_the_rest_out() -> None:
    batches = make(augmentation="none")
    assert batches.steps_per_epoch == 3
    first, second = (torch.cat([batches[3 * epoch + step].images for step in range(3)]) for epoch in (0, 1))
    assert len(first.flatten(1).unique(dim=0)) == len(second.flatten(1).unique(dim=0)) == 24
    assert not torch.equal(first, second)


def test_shares_make_up_the_batch() -> None:
    whole, left, right = make()[4], make(slice(0, 4))[4], make(slice(4, 8))[4]
    for name in ("images", "targets", "keep_mask"):
        assert torch.equal(torch.cat([getattr(left, name), getattr(right, name)]), getattr(whole, name))
    assert torch.equal(torch.cat([left.full_rows, right.full_rows + 4]), whole.full_rows)


def test_images_and_targets_have_the_form_the_losses_want() -> None:
    batch = make()[0]
    assert (batch.images.dtype, batch.images.shape) == (torch.float32, (8, 3, 8, 8))
    assert 0 <= batch.images.min() <= batch.images.max() <= 1
    assert (batch.targets.dtype, batch.targets.shape) == (torch.float32, (8, 3))
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(8))


def test_the_throughput_counts_this_processs_images() -> None:
    assert make().throughput(0.05) > 100


@pytest.mark.parametrize("always", [1, 2])
def test_the_leading_units_always_run(always: int) -> None:
    keep_mask = sample_keep_mask(500, 6, always, generator())
    assert (keep_mask.shape, keep_mask.dtype) == ((500, 6), torch.bool)
    assert keep_mask[:, :always].all()
    assert not keep_mask[:, always].all()


def test_the_keep_rate_is_drawn_per_image() -> None:
    """Of 20 blocks the share kept is uniform over images, where one rate for all would pile up at its mean."""
    share = sample_keep_mask(4000, 21, 1, generator())[:, 1:].float().mean(1)
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / 12 + 1 / 120, abs=0.01)  # of the rate, and of 20 draws given it
    assert share.min() == 0
    assert share.max() == 1


@pytest.mark.parametrize(("full_share", "count"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.3, 3), (0.01, 1)])
def test_full_rows_are_spread_evenly(full_share: float, count: int) -> None:
    rows = spread_rows(8, full_share, ALL)
    assert len(rows) == count
    assert rows[0] == 0
    assert count == 1 or rows.diff().max() - rows.diff().min() <= 1
