"""Augmentation: each part against an image-by-image calculation, and rows that depend on their own draws only."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor
from torchvision.transforms import functional as reference

from vitskip.backbone.augment import AUGMENTATIONS, BATCH, Augmentation, AugmentationDraws, draw, with_copies
from vitskip.backbone.datasets import Dataset

EACH_PRESET = pytest.mark.parametrize("name", list(AUGMENTATIONS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, height: int = 12, width: int = 10, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (count, 3, height, width), generator=generator(7)).to(torch.uint8)


def places(count: int, height: int = 8, width: int = 6) -> Tensor:
    """Images whose pixel values tell the place."""
    return torch.arange(height * width, dtype=torch.uint8).view(1, 1, height, width).repeat(count, 3, 1, 1)


def augmented(images: Tensor, draws: AugmentationDraws | None = None, **settings: float) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(images)) % 4
    return Augmentation(**settings).apply(images, labels, 4, draws or draw(len(images), generator()))


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """The image seen that much further down and right, its border repeated."""
    rows, columns = torch.arange(image.shape[1]) + down, torch.arange(image.shape[2]) + right
    return image[:, rows.clamp(0, image.shape[1] - 1)][:, :, columns.clamp(0, image.shape[2] - 1)]


def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the true part of [H, W], which must be a box."""
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert mask.sum() == height * width
    return int(top), int(left), int(height), int(width)


def test_draws_follow_from_the_generator_and_nothing_global() -> None:
    state = torch.get_rng_state()
    first, again, other = (draw(10, generator(seed)) for seed in (0, 0, 1))
    for name, values in asdict(first).items():
        assert values.dtype == torch.float32 and len(values) == 10
        assert torch.equal(values, getattr(again, name))
        assert not torch.equal(values, getattr(other, name))
    for name in AUGMENTATIONS:
        AUGMENTATIONS[name].apply(noise(10), torch.zeros(10, dtype=torch.int64), 2, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_draws_of_an_image_are_the_same_number() -> None:
    columns = torch.cat([values.reshape(500, -1) for values in asdict(draw(500, generator())).values()], 1)
    assert columns.shape == (500, 18)
    assert columns.min() >= 0 and columns.max() < 1
    correlation = torch.corrcoef(columns.T) - torch.eye(18)
    assert correlation.abs().max() < 0.2


@EACH_PRESET
def test_a_slice_of_the_batch_is_augmented_as_in_the_whole(name: str) -> None:
    """What data-parallel processes rely on; the last slice has an odd number of rows."""
    images, labels, draws = noise(23), torch.arange(23) % 5, draw(23, generator())
    whole = AUGMENTATIONS[name].apply(images, labels, 5, draws)
    for rows in (slice(0, 8), slice(8, 10), slice(10, 23), torch.tensor([4, 5, 18, 19])):
        part = AUGMENTATIONS[name].apply(images[rows], labels[rows], 5, draws[rows])
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, part, strict=True))


@EACH_PRESET
def test_other_rows_cannot_change_a_row(name: str) -> None:
    images, draws = noise(8), draw(8, generator())
    changed, others = images.clone(), draw(8, generator(1))
    changed[2:4] = 255 - changed[2:4]
    mixed = AugmentationDraws(
        *(torch.cat([a[:2], b[2:4], a[4:]]) for a, b in zip(vars(draws).values(), vars(others).values(), strict=True))
    )
    labels = torch.arange(8)
    first = AUGMENTATIONS[name].apply(images, labels, 9, draws)
    second = AUGMENTATIONS[name].apply(changed, torch.tensor([0, 1, 8, 8, 4, 5, 6, 7]), 9, mixed)
    for a, b in zip(first, second, strict=True):
        same = [torch.equal(one, other) for one, other in zip(a, b, strict=True)]
        assert same == [True, True, False, False, True, True, True, True]


@EACH_PRESET
def test_images_stay_in_range_and_targets_sum_to_one(name: str) -> None:
    images = noise(64)
    before = images.clone()
    pixels, targets = AUGMENTATIONS[name].apply(images, torch.arange(64) % 4, 4, draw(64, generator()))
    assert (pixels.dtype, pixels.shape, targets.dtype, targets.shape) == (
        torch.float32,
        images.shape,
        torch.float32,
        (64, 4),
    )
    assert pixels.min() >= 0 and pixels.max() <= 1 and targets.min() >= 0
    assert torch.allclose(targets.sum(1), torch.ones(64))
    assert torch.equal(images, before)


def test_no_augmentation_is_the_identity() -> None:
    images = noise(5)
    pixels, targets = augmented(images)
    assert torch.equal(pixels, images / 255)
    assert torch.equal(targets, torch.eye(4)[[0, 1, 2, 3, 0]])


def test_a_shift_moves_each_image_and_repeats_the_border() -> None:
    images = places(300)
    pixels, targets = augmented(images, shift=2)
    seen: set[tuple[int, int]] = set()
    for image in (pixels * 255).round():
        centre = int(image[0, 4, 3])
        down, right = centre // 6 - 4, centre % 6 - 3
        assert torch.equal(image, moved(images[0], down, right).float())
        seen.add((down, right))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert torch.equal(targets, torch.eye(4)[torch.arange(300) % 4])


def test_shifts_are_equally_likely() -> None:
    centres = (augmented(places(5000), shift=2)[0][:, 0, 4, 3] * 255).round().long()
    for steps in (centres // 6 - 4, centres % 6 - 3):
        assert (steps + 2).bincount(minlength=5).tolist() == pytest.approx([1000] * 5, abs=120)


def test_a_shift_may_exceed_the_image() -> None:
    pixels, _ = augmented(places(50, 3, 2), shift=5)
    assert (pixels[:, 0].flatten(1) * 255).round().unique().tolist() == list(range(6))


@pytest.mark.parametrize(("height", "width", "reach"), [(8, 8, 2), (16, 8, 4), (10, 10, 2)])
def test_a_share_of_the_side_is_a_shift(height: int, width: int, reach: int) -> None:
    images = places(2000, height, width)
    pixels = (augmented(images, shift=0.25)[0][:, 0, height // 2, width // 2] * 255).round().long()
    assert (pixels // width - height // 2).unique().tolist() == list(range(-reach, reach + 1))


def test_a_flip_mirrors_half_of_the_images() -> None:
    images = noise(400)
    pixels, _ = augmented(images, flip=True)
    mirrored = torch.tensor([torch.equal(a, b / 255) for a, b in zip(pixels, images.flip(3), strict=True)])
    assert mirrored.sum().item() == pytest.approx(200, abs=40)
    assert torch.equal(pixels[~mirrored], images[~mirrored] / 255)


def test_shift_and_flip_together_are_one_after_the_other() -> None:
    images, draws = noise(60), draw(60, generator())
    pixels, _ = augmented(images, draws, shift=3, flip=True)
    steps = (draws.shift * 7).floor().long() - 3
    for index, (down, right) in enumerate(steps.tolist()):
        expected = moved(images[index], down, right) / 255
        assert torch.equal(pixels[index], expected.flip(2) if draws.flip[index] < 0.5 else expected)


def test_images_in_any_memory_layout_are_augmented_alike() -> None:
    images, draws = noise(20), draw(20, generator())
    other = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    settings = asdict(AUGMENTATIONS["cifar-strong"])
    assert all(map(torch.allclose, augmented(images, draws, **settings), augmented(other, draws, **settings)))


def test_colour_is_torchvisions_jitter_with_factors_of_each_image() -> None:
    images, draws = noise(40, low=100, high=150), draw(40, generator())  # far from where torchvision would clamp
    pixels, _ = augmented(images, draws, colour=0.3)
    factors = 0.7 + 0.6 * draws.colour
    assert factors.min() < 0.72 and factors.max() > 1.28
    for image, changed, (brightness, contrast, saturation) in zip(images / 255, pixels, factors.tolist(), strict=True):
        expected = reference.adjust_contrast(reference.adjust_brightness(image, brightness), contrast)
        expected = reference.adjust_saturation(expected, saturation)
        assert torch.allclose(changed, expected, atol=1e-3)


def test_strong_colour_is_clamped() -> None:
    pixels, _ = augmented(noise(40), colour=1.0)
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_erasing_puts_a_box_of_one_colour_into_a_share_of_the_images() -> None:
    images = noise(2000, 32, 32)
    pixels, targets = augmented(images, erase=0.25)
    changed = (pixels != images / 255).any(1)  # [B, H, W]
    erased = changed.flatten(1).any(1)
    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.04)
    boxes = []
    for mask, image in zip(changed[erased], pixels[erased], strict=True):
        top, left, height, width = box_of(mask)
        assert image[:, mask].std(1).max() == 0
        boxes.append((top, left, height, width))
    top, left, height, width = np.array(boxes).T
    area, aspect = height * width / 1024, height / width
    assert 0.01 < area.min() < 0.03 and 0.3 < area.max() < 0.36
    assert 0.2 < aspect.min() < 0.4 and 2.5 < aspect.max() < 4.5
    assert abs(np.log(aspect).mean()) < 0.15  # tall as often as wide
    assert (top.min(), left.min(), (top + height).max(), (left + width).max()) == (0, 0, 32, 32)
    assert torch.equal(targets, torch.eye(4)[torch.arange(2000) % 4])


def test_the_colour_of_the_box_is_drawn() -> None:
    draws = replace(draw(4, generator()), fill=torch.tensor([[0.25, 0.5, 0.75]]).expand(4, 3))
    images = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    pixels, _ = augmented(images, draws, erase=1.0)
    assert pixels.flatten(2).amin(2).tolist() == [[0.25, 0.5, 0.75]] * 4


def partners(values: Tensor) -> Tensor:
    return values.view(-1, 2, *values.shape[1:]).flip(1).view_as(values)


def test_mixup_blends_each_image_with_its_neighbour() -> None:
    images = noise(40)
    pixels, targets = augmented(images, mixup=0.4)
    plain = images / 255
    share = targets[torch.arange(40), (torch.arange(40) ^ 1) % 4]
    expected = plain + share[:, None, None, None] * (partners(plain) - plain)
    assert torch.allclose(pixels, expected, atol=1e-6)
    assert torch.allclose(targets[torch.arange(40), torch.arange(40) % 4], 1 - share)
    assert len(share.unique()) == 40  # each image has its own


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_share_of_the_partner_is_beta_distributed(alpha: float) -> None:
    _, targets = augmented(noise(2000, 2, 2), mixup=alpha)
    share = targets[torch.arange(2000), (torch.arange(2000) ^ 1) % 4]
    assert kstest(share.numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize(("down", "top"), [(0.0, 0), (0.5, 4), (0.999, 8)])
@pytest.mark.parametrize(("right", "left"), [(0.0, 0), (0.5, 5), (0.999, 10)])
def test_boxes_lie_anywhere_from_corner_to_corner(down: float, top: int, right: float, left: int) -> None:
    place = torch.tensor([[down, right]]).expand(2, 2)
    mix = torch.cat([torch.tensor([[0.0, 0.25]]).expand(2, 2), place], 1)  # at alpha 1 a quarter
    images = torch.stack([torch.zeros(3, 16, 20), torch.full((3, 16, 20), 255)]).to(torch.uint8)
    pixels, _ = augmented(images, replace(draw(2, generator()), mix=mix), cutmix=1.0)
    assert box_of(pixels[0, 0] == 1) == box_of(pixels[1, 0] == 0) == (top, left, 8, 10)
    erase = torch.cat([torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3), place], 1)  # largest and widest
    pixels, _ = augmented(images, replace(draw(2, generator()), erase=erase), erase=1.0)
    first, _, height, width = box_of(pixels[0, 0] > 0)
    assert (height, width) == (5, 20)  # sqrt(0.3 / 3) of 16, and all of 20
    assert first == {0: 0, 4: 6, 8: 11}[top]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_pastes_a_box_whose_area_is_its_share(alpha: float) -> None:
    images = noise(600, 32, 24)
    pixels, targets = augmented(images, cutmix=alpha)
    plain = images / 255
    pasted = (pixels != plain).any(1)
    other = partners(plain)
    assert torch.equal(pixels, torch.where(pasted[:, None], other, plain))
    share = targets[torch.arange(600), (torch.arange(600) ^ 1) % 4]
    corners = []
    for mask, image, partner, target in zip(pasted, plain, other, share, strict=True):
        if mask.any():
            mask = mask | (image == partner).all(0)  # where both are equal by chance, nothing shows
            top, left, height, width = box_of(mask)
            assert height * width / 768 == pytest.approx(target.item(), abs=1e-6)
            assert abs(height / 32 - width / 24) < 0.05  # the image's own aspect
            corners.append((top == 0, left == 0, top + height == 32, left + width == 24))
    assert np.array(corners).any(0).all()
    assert share.mean().item() == pytest.approx(0.5, abs=0.06)
    assert share.var().item() == pytest.approx(beta(alpha, alpha).var(), rel=0.1)


def test_with_both_each_image_gets_one_or_the_other() -> None:
    images = torch.zeros(1000, 3, 16, 16, dtype=torch.uint8)
    images[1::2] = 255
    pixels, targets = augmented(images, mixup=1.0, cutmix=1.0)
    blended = ((pixels > 0) & (pixels < 1)).flatten(1).any(1)
    assert blended.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert (pixels[blended].flatten(1).std(1) < 1e-6).all()  # evenly
    brightness = pixels.mean((1, 2, 3))
    light = targets[:, 1] + targets[:, 3]
    assert torch.allclose(brightness, light, atol=1e-5)  # the target says how much of which


def test_the_last_of_an_odd_number_is_not_mixed() -> None:
    images, draws = noise(5), draw(5, generator())
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}):
        pixels, targets = augmented(images, draws, **settings)
        assert torch.equal(pixels[4], images[4] / 255)
        assert torch.equal(targets[4], torch.eye(4)[0])
        assert not torch.equal(pixels[:4], images[:4] / 255)


def test_the_partner_is_augmented_too() -> None:
    images, draws = noise(2, 16, 16), draw(2, generator(3))
    erased, _ = augmented(images, draws, erase=1.0)
    pixels, targets = augmented(images, draws, erase=1.0, mixup=1.0)
    assert torch.allclose(pixels[0], targets[0, 0] * erased[0] + targets[0, 1] * erased[1], atol=1e-6)


def test_the_presets_are_what_their_names_promise() -> None:
    cifar = {"shift": 4, "flip": True, "colour": 0.2, "erase": 0.25, "mixup": 0.0, "cutmix": 0.0}
    assert {name: asdict(AUGMENTATIONS[name]) for name in AUGMENTATIONS} == {
        "none": asdict(Augmentation()),
        "digits": asdict(Augmentation(shift=2)),
        "cifar": cifar,
        "cifar-strong": cifar | {"mixup": 0.2, "cutmix": 1.0},
        "shift": asdict(Augmentation(shift=0.125)),
        "shift-flip": asdict(Augmentation(shift=0.125, flip=True)),
        "imagefolder": cifar | {"shift": 0.12, "colour": 0.3},
    }
    with pytest.raises(ValueError, match=r"unknown augmentation 'cifar-strnog'.*did you mean 'cifar-strong'"):
        AUGMENTATIONS["cifar-strnog"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": -1}, r"shift: expected pixels \(an int\) or a share in \[0, 1\) \(a float\), got -1"),
        ({"shift": 2.0}, "shift: .* got 2.0"),
        ({"shift": -0.1}, "shift: .* got -0.1"),
        ({"shift": float("nan")}, "shift: .* got nan"),
        ({"colour": 1.1}, "colour: expected a finite number from 0 to 1, got 1.1"),
        ({"erase": -0.1}, "erase: expected a finite number from 0 to 1, got -0.1"),
        ({"mixup": -1.0}, "mixup: expected a finite number from 0 to inf, got -1.0"),
        ({"cutmix": float("inf")}, "cutmix: .* got inf"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


@pytest.mark.usefixtures("unchecked")
def test_draws_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="draws: expected as many as images and labels, got 3 for 4 and 4"):
        augmented(noise(4), draw(3, generator()))
    with pytest.raises(ValueError, match="got 4 for 4 and 3"):
        Augmentation().apply(noise(4), torch.zeros(3, dtype=torch.int64), 2, draw(4, generator()))


def dataset(count: int) -> Dataset:
    return Dataset(noise(count, 8, 8), torch.arange(count) % 2, ("a", "b"), torch.rand(count, generator=generator()))


def test_copies_follow_the_images_and_keep_their_labels() -> None:
    before = dataset(BATCH + 3)
    after = with_copies(before, Augmentation(flip=True), 3)
    assert len(after) == 3 * len(before)
    assert torch.equal(after.images[: len(before)], before.images)
    for values, kept in ((after.labels, before.labels), (after.difficulty, before.difficulty)):
        assert torch.equal(values, kept.repeat(3))
    flipped = []
    for copy in after.images.split(len(before))[1:]:
        same, mirrored = ((copy == image).flatten(1).all(1) for image in (before.images, before.images.flip(3)))
        assert (same ^ mirrored).all()
        flipped.append(mirrored)
    assert 0.4 < torch.cat(flipped).float().mean() < 0.6
    assert not torch.equal(flipped[0], flipped[1])
    assert torch.equal(with_copies(before, Augmentation(flip=True), 3).images, after.images)


def test_one_copy_is_the_image_itself() -> None:
    before = dataset(5)
    assert torch.equal(with_copies(before, AUGMENTATIONS["shift-flip"], 1).images, before.images)


def test_copies_of_mixed_images_are_refused() -> None:
    with pytest.raises(ValueError, match="augmentation: expected one that keeps labels, got MixUp or CutMix"):
        with_copies(dataset(4), AUGMENTATIONS["cifar-strong"], 2)


@pytest.mark.gpu
@EACH_PRESET
def test_a_gpu_gives_the_same_as_the_cpu(name: str) -> None:
    images, labels, draws = noise(32, 32, 32), torch.arange(32) % 4, draw(32, generator())
    cpu = AUGMENTATIONS[name].apply(images, labels, 4, draws)
    gpu = AUGMENTATIONS[name].apply(images.cuda(), labels.cuda(), 4, draws)
    assert all(b.is_cuda and torch.allclose(a, b.cpu(), atol=1e-5) for a, b in zip(cpu, gpu, strict=True))
