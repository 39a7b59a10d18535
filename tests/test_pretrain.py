"""Skip-tolerant pretraining: masks, augmentation, and a short run that must learn."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitskip.backbone.datasets import Dataset
from vitskip.backbone.masked import run_masked
from vitskip.backbone.pretrain import PretrainResult, pretrain, random_shift, sample_keep_mask
from vitskip.backbone.vit import ViT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toy() -> Dataset:
    """64 noisy images of four classes, each class a quadrant that is bright."""
    labels = torch.arange(64) % 4
    images = torch.randint(0, 100, (64, 3, 8, 8), generator=generator())
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 100
    return Dataset(images.to(torch.uint8), labels, ("a", "b", "c", "d"), torch.zeros(64))


def make_vit(num_classes: int = 4) -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=num_classes)


def short_run(vit: ViT, toy: Dataset, seed: int = 0, **changes: float) -> PretrainResult:
    settings = {"epochs": 20, "batch_size": 32, "learning_rate": 1e-2, "shift": 1} | changes
    return pretrain(vit, toy, seed=seed, **settings)


def loss_of(vit: ViT, toy: Dataset, keep_mask: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(run_masked(vit, toy.images, keep_mask), toy.labels).item()


def test_block_0_always_runs() -> None:
    keep_mask = sample_keep_mask(500, 6, 0.0, generator())
    assert (keep_mask.shape, keep_mask.dtype) == ((500, 6), torch.bool)
    assert keep_mask[:, 0].all()
    assert not keep_mask[:, 1].all()


def test_the_keep_rate_is_drawn_per_image() -> None:
    """Of 20 blocks the share kept is uniform over images, where one rate for all would pile up at its mean."""
    share = sample_keep_mask(4000, 21, 0.0, generator())[:, 1:].float().mean(1)
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / 12 + 1 / 120, abs=0.01)  # of the rate, and of 20 draws given it
    assert share.min() == 0
    assert share.max() == 1


def test_full_share_is_the_share_of_rows_that_run_everything() -> None:
    assert sample_keep_mask(100, 6, 1.0, generator()).all()
    extra = sample_keep_mask(4000, 60, 0.3, generator()).all(1).float().mean().item()
    assert extra == pytest.approx(0.3 + 0.7 / 60, abs=0.03)


def test_masks_follow_from_the_generator() -> None:
    first, again, other = (sample_keep_mask(20, 6, 0.2, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_shift_is_the_identity() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 6), generator=generator()).to(torch.uint8)
    assert torch.equal(random_shift(images, 0, generator()), images)


def test_a_shift_moves_each_image_and_repeats_the_border() -> None:
    images = torch.arange(48, dtype=torch.uint8).view(1, 1, 8, 6).expand(200, 3, 8, 6)  # the value tells the place
    shifted = random_shift(images, 2, generator())
    assert (shifted.dtype, shifted.shape) == (torch.uint8, images.shape)
    rows, columns = torch.arange(8), torch.arange(6)
    seen: set[tuple[int, int]] = set()
    for image in shifted:
        down, right = (int(image[0, 4, 3]) // 6 - 4, int(image[0, 4, 3]) % 6 - 3)
        expected = images[0][:, (rows + down).clamp(0, 7)][:, :, (columns + right).clamp(0, 5)]
        assert torch.equal(image, expected)
        seen.add((down, right))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_a_short_run_learns_at_every_depth(toy: Dataset) -> None:
    vit = make_vit()
    masks = {"all": torch.ones(64, 3, dtype=torch.bool), "first": torch.tensor([True, False, False]).expand(64, 3)}
    before = {name: loss_of(vit, toy, mask) for name, mask in masks.items()}
    result = short_run(vit, toy, label_smoothing=0.0)
    assert result.steps == 40
    for name, mask in masks.items():
        assert before[name] > 1.2
        assert loss_of(vit, toy, mask) < 0.5 * before[name]
    assert 0 < result.loss < 1.3
    assert not vit.training


def test_the_same_seed_gives_the_same_weights(toy: Dataset) -> None:
    runs = [make_vit() for _ in range(3)]
    for vit, seed in zip(runs, (0, 0, 1), strict=True):
        torch.manual_seed(torch.seed())  # whatever the global state
        short_run(vit, toy, seed, epochs=2)
    first, again, other = (vit.state_dict() for vit in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_skips_what_its_masks_skip(toy: Dataset) -> None:
    partial, full = make_vit(), make_vit()
    for vit, full_share in ((partial, 0.0), (full, 1.0)):
        short_run(vit, toy, epochs=2, full_share=full_share)  # the same batches and shifts, other masks
    assert not torch.allclose(partial.head.weight, full.head.weight, atol=1e-3)


def test_only_whole_batches_are_used(toy: Dataset) -> None:
    assert short_run(make_vit(), toy, epochs=2, batch_size=48).steps == 2


def test_weight_decay_spares_vectors_and_embeddings(toy: Dataset) -> None:
    light, heavy = make_vit(), make_vit()
    short_run(light, toy, epochs=1, weight_decay=0.0)
    short_run(heavy, toy, epochs=1, weight_decay=60.0)
    shares = {
        name: (parameter.norm() / light.get_parameter(name).norm()).item()
        for name, parameter in heavy.named_parameters()
    }
    assert max(shares["blocks.0.mlp.expand.weight"], shares["patches.weight"]) < 0.75
    assert min(shares["norm.weight"], shares["pos_embed"], shares["cls_token"]) > 0.9


def test_a_data_set_that_does_not_fit_is_refused(toy: Dataset) -> None:
    with pytest.raises(ValueError, match="expected at least 32 images of 10 classes, got 64 of 4"):
        short_run(make_vit(num_classes=10), toy)
    with pytest.raises(ValueError, match="expected at least 65 images of 4 classes, got 64 of 4"):
        short_run(make_vit(), toy, batch_size=65)
