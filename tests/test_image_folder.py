"""Folders of images: parts, order, sizes, and what is wrong with them."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from vitskip.backbone.datasets import Dataset, load_dataset

SPLITS = ("train", "validation", "test")


def write_images(root: Path, *parts: str, sizes: tuple[tuple[int, int], ...] = ((8, 8),), count: int = 10) -> Path:
    """`count` noisy PNG files (width, height in turn) of each of two classes in each part."""
    draw = np.random.default_rng(len(parts))
    for part in parts:
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                width, height = sizes[index % len(sizes)]
                pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{index}.png")
    return root


def decoded(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return pil_to_tensor(image)


def pixels_of(dataset: Dataset) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in dataset.images)


def test_a_folder_with_three_parts_is_read_as_it_is(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "validation", "test")
    for split in SPLITS:
        dataset = load_dataset("imagefolder", split, root)
        files = sorted((root / split).rglob("*.png"))
        expected = {decoded(path).numpy().tobytes(): path.parent.name for path in files}
        seen = {
            image.numpy().tobytes(): dataset.classes[label]
            for image, label in zip(dataset.images, dataset.labels, strict=True)
        }
        assert seen == expected
        assert dataset.images.shape == (20, 3, 8, 8)
        assert dataset.difficulty.isnan().all()


def test_the_order_of_a_folder_follows_from_its_relative_paths(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "val", "test")
    paths = [path.relative_to(root).as_posix() for path in (root / "test").rglob("*.png")]
    paths.sort(key=lambda path: hashlib.sha256(f"0:{path}".encode()).digest())
    dataset = load_dataset("imagefolder", "test", root)
    assert torch.equal(dataset.images, torch.stack([decoded(root / path) for path in paths]))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for part in ("train", "val", "test"):
        (root / part).rename(moved / part)
    again = load_dataset("imagefolder", "test", moved)
    assert torch.equal(again.images, dataset.images) and torch.equal(again.labels, dataset.labels)


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "validation")])
def test_without_a_validation_part_one_is_carved(parts: tuple[str, str], tmp_path: Path) -> None:
    """With `val` but no `test`, the first is the test part, as in ImageNet."""
    root = write_images(tmp_path, *parts)
    train, validation, test = (pixels_of(load_dataset("imagefolder", split, root)) for split in SPLITS)
    assert (train.total(), validation.total()) == (18, 2)
    files = {part: Counter(decoded(path).numpy().tobytes() for path in (root / part).rglob("*.png")) for part in parts}
    assert train + validation == files["train"]
    assert test == files[parts[1]]


def test_training_images_alone_have_no_test_part(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train")
    assert [len(load_dataset("imagefolder", split, root)) for split in ("train", "validation")] == [18, 2]
    with pytest.raises(FileNotFoundError, match=r"expected test/ or val/ beside train/, got .* with neither"):
        load_dataset("imagefolder", "test", root)


@pytest.mark.parametrize(
    ("name", "sizes", "side"),
    [
        ("imagefolder", ((40, 40),), 40),
        ("imagefolder", ((40, 30),), 224),
        ("imagefolder", ((40, 40), (30, 30)), 224),
        ("imagefolder-32", ((40, 40), (64, 48)), 32),
        ("imagefolder-64", ((40, 30), (64, 64)), 64),
    ],
)
def test_images_are_kept_or_cropped_to_one_size(
    name: str, sizes: tuple[tuple[int, int], ...], side: int, tmp_path: Path
) -> None:
    root = write_images(tmp_path, "train", "test", sizes=sizes, count=2)
    dataset = load_dataset(name, "test", root)
    paths = sorted((root / "test").rglob("*.png"), key=lambda p: hash_key(root, p))
    for image, path in zip(dataset.images, paths, strict=True):
        with Image.open(path) as original:
            shorter = resize(original, [side], interpolation=Image.Resampling.BICUBIC, antialias=True)
            assert torch.equal(image, pil_to_tensor(center_crop(shorter, [side, side])))
            if original.size == (side, side):
                assert torch.equal(image, pil_to_tensor(original))  # not a pixel touched


def hash_key(root: Path, path: Path) -> bytes:
    return hashlib.sha256(f"0:{path.relative_to(root).as_posix()}".encode()).digest()


def test_a_wide_image_keeps_its_centre_and_antialiases(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "test", count=1)
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = np.indices((64, 64)).sum(0)[:, :, None] % 2 * 200  # a chessboard of pixels in the middle
    for label in ("cat", "dog"):
        Image.fromarray(wide).save(root / "test" / label / "0.png")
    images = load_dataset("imagefolder-32", "test", root).images.float()
    assert (images[..., 4:-4] - 100).abs().max() < 5  # grey: averaged, not every second pixel


def test_the_size_is_one_for_all_parts(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", sizes=((8, 8),), count=2)
    write_images(root, "test", sizes=((8, 8), (9, 9)), count=2)
    assert {load_dataset("imagefolder", split, root).images.shape[-1] for split in SPLITS} == {224}


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "test", count=1)
    Image.new("L", (8, 8), 7).save(root / "test" / "cat" / "0.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(root / "test" / "dog" / "0.png")
    dataset = load_dataset("imagefolder", "test", root)
    colours = {
        dataset.classes[label]: image[:, 0, 0].tolist()
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    assert colours == {"cat": [7, 7, 7], "dog": [1, 2, 3]}


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder-32"])
@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_a_file_that_cannot_be_decoded_is_named(name: str, content: bytes | str, tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "test")
    path = root / "test" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:120] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"test/dog/3.png: expected an image, got a file that cannot be decoded"):
        load_dataset(name, "test", root)


def test_what_is_missing_in_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder with images in train/<class>/, got None"):
        load_dataset("imagefolder", "train")
    with pytest.raises(FileNotFoundError, match=rf"train/<class>/, got {tmp_path}"):
        load_dataset("imagefolder", "train", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected images in .*/train/<class>/, got: Couldn't find any class"):
        load_dataset("imagefolder", "train", tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"expected images in .*no valid file for the classes cat"):
        load_dataset("imagefolder", "train", tmp_path)


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "test", count=1)
    (root / "test" / "dog").rename(root / "test" / "frog")
    with pytest.raises(ValueError, match=r"expected the same classes in train, test, got dog, frog in one"):
        load_dataset("imagefolder", "train", root)
    write_images(root, "val", "validation", count=1)
    with pytest.raises(ValueError, match=r"expected val/ or validation/, got both"):
        load_dataset("imagefolder", "train", root)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 224, 384])
def test_every_size_has_a_name(size: int, tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "test", count=1)
    assert load_dataset(f"imagefolder-{size}", "test", root).images.shape == (2, 3, size, size)
