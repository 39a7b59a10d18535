"""The real CIFAR images of `../shared/data`, where that folder is there."""

import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitskip.backbone.datasets import Dataset, load_dataset

pytestmark = pytest.mark.data
SPLITS = ("train", "validation", "test")
SOURCE = Path(__file__).parents[2] / "shared" / "data"


def pixels_of(dataset: Dataset) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in dataset.images)


@functools.cache
def unpack(name: str, out: Path, *options: str) -> Path:
    if not (SOURCE / name).is_dir():
        pytest.skip(f"needs the images of {SOURCE / name}")
    subprocess.run([sys.executable, str(SOURCE / "unpack.py"), name, str(out), *options], check=True)
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Dataset]]:
    """The three splits of a real CIFAR, unpacked once."""

    @functools.cache
    def load(name: str) -> dict[str, Dataset]:
        root = unpack(name, tmp_path_factory.mktemp(name), "--npz")
        return {split: load_dataset(name, split, root) for split in SPLITS}

    return load


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_the_real_splits_have_their_sizes(
    name: str, num_classes: int, real: Callable[[str], dict[str, Dataset]]
) -> None:
    splits = real(name)
    assert [len(splits[split]) for split in SPLITS] == [45_000, 5_000, 10_000]
    assert (splits["test"].labels.bincount(minlength=num_classes) == 10_000 // num_classes).all()
    both = torch.cat([splits["train"].labels, splits["validation"].labels])
    assert (both.bincount(minlength=num_classes) == 50_000 // num_classes).all()
    share = splits["validation"].labels.bincount(minlength=num_classes) / (5_000 / num_classes)
    assert ((share - 1).abs() < 4 * (num_classes / 5_000) ** 0.5).all()  # four deviations of a random draw
    assert splits["train"].labels[:1000].unique().numel() == num_classes  # shuffled


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_the_real_pixels_have_the_published_moments(
    name: str, mean: tuple[float, ...], deviation: tuple[float, ...], real: Callable[[str], dict[str, Dataset]]
) -> None:
    splits = real(name)
    images = torch.cat([splits["train"].images, splits["validation"].images])
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels]).double() / channels.shape[1]
    values = torch.arange(256).double() / 255
    first, second = counts @ values, counts @ values**2
    assert first.tolist() == pytest.approx(mean, abs=1e-4)
    assert (second - first**2).sqrt().tolist() == pytest.approx(deviation, abs=1e-4)


@pytest.mark.parametrize(("name", "repeated"), [("cifar10", (0, 0, 0)), ("cifar100", (14, 2, 10))])
def test_the_real_training_and_validation_images_are_disjoint(
    name: str, repeated: tuple[int, int, int], real: Callable[[str], dict[str, Dataset]]
) -> None:
    """Repeats within the published training and test images, and between them, are known."""
    train, validation, test = (pixels_of(real(name)[split]) for split in SPLITS)
    assert not train & validation
    published = train + validation
    assert (published.total() - len(published), test.total() - len(test), len(published & test)) == repeated


def test_the_real_images_are_the_same_as_files(tmp_path: Path, real: Callable[[str], dict[str, Dataset]]) -> None:
    root = unpack("cifar10", tmp_path)
    files = load_dataset("imagefolder", "test", root)
    arrays = real("cifar10")["test"]
    assert files.classes == arrays.classes
    assert pixels_of(files) == pixels_of(arrays)
