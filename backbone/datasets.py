"""Data sets by name: whole splits held as uint8 tensors."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .protocol import Backbone
from .registry import Registry

Part = Literal["train", "validation", "test"]
Split = Literal["train", "validation", "validation-even", "validation-odd", "test"]


@dataclass(frozen=True)
class Dataset:
    """One split of labelled images.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N] in 0..K-1.
        classes: names of the K classes.
        difficulty: float32 [N] in [0, 1], or NaN where the data set does not know.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    difficulty: Tensor

    def __post_init__(self) -> None:
        tensors = {"images": self.images, "labels": self.labels, "difficulty": self.difficulty}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        count = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3 or not count:
            raise ValueError(
                f"images: expected uint8 [N, 3, H, W] with N > 0, got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise ValueError(f"labels: expected int64 [{count}], got {self.labels.dtype} {tuple(self.labels.shape)}")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            raise ValueError(f"labels: expected 0..{len(self.classes) - 1}, one per class, got values outside")
        if self.difficulty.shape != (count,):
            raise ValueError(f"difficulty: expected shape ({count},), got {tuple(self.difficulty.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def check_fits(self, backbone: Backbone) -> None:
        """Raise ValueError if images are not square, or not of the classes, two or more, that a backbone knows."""
        height, width = self.images.shape[2:]
        if len(self.classes) < 2:
            raise ValueError(f"dataset: expected at least two classes, got {', '.join(self.classes) or 'none'}")
        if height != width or len(self.classes) != backbone.num_classes:
            raise ValueError(
                f"dataset: expected square images of {backbone.num_classes} classes, as the backbone takes, "
                f"got {height}x{width} images of {len(self.classes)} classes; `backbone` names another one"
            )

    def first(self, count: int) -> "Dataset":
        """Its first images, or all of them if there are no more."""
        return Dataset(self.images[:count], self.labels[:count], self.classes, self.difficulty[:count])

    def every(self, step: int, start: int = 0) -> "Dataset":
        """One image in `step`, from `start` on."""
        rows = slice(start, None, step)
        return Dataset(self.images[rows], self.labels[rows], self.classes, self.difficulty[rows])

    def to(self, device: str | torch.device) -> "Dataset":
        """The same split with its images and labels on a device; `difficulty` stays where it is."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


DatasetFactory = Callable[[Part, Path | None], Dataset]
"""Maps (part, data_root) to the part; raises FileNotFoundError where `data_root` lacks the data."""

SORTED_BY_CHANCE = 100  # fewer images may be in the order of their classes by chance

_DATASETS: Registry[DatasetFactory] = Registry("data set")


def register_dataset(name: str, factory: DatasetFactory) -> None:
    """Make a data set loadable by name, e.g. `gym.make("ViTSkip-v0", dataset=name)`.

    Args:
        name: a new name.
        factory: maps (part, data_root) to a `Dataset`; the validation part must be disjoint from the others, and in
            random order, as its first images are taken as a sample of it.

    Raises:
        ValueError: if the name is taken.
    """
    _DATASETS.register(name, factory)


def check_dataset(name: str) -> None:
    """Raise ValueError, with the nearest name, if no data set of that name is registered."""
    _ = _DATASETS[name]


def load_dataset(name: str, split: Split, data_root: str | Path | None = None) -> Dataset:
    """Load one split of a registered data set.

    Args:
        name: registered name; "digits" is embedded and needs no files.
        split: "train", "validation" (for every choice) or "test" (touched once, at the end); "validation-even" and
            "validation-odd" are every other image of the validation part, to learn on one and judge on the other.
        data_root: folder of the data, for data sets that live in files.

    Raises:
        ValueError: if the name or the split is unknown, or the validation part is sorted by class.
        FileNotFoundError: if `data_root` does not exist.
    """
    factory = _DATASETS[name]
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}")
    root = None if data_root is None else Path(data_root).expanduser()
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"data_root: expected an existing folder with the data set {name!r}, got {root}")
    if split in ("train", "test"):
        return factory(split, root)
    validation = factory("validation", root)
    labels = validation.labels
    if len(labels) >= SORTED_BY_CHANCE and len(labels.unique()) > 1 and bool((labels.diff() >= 0).all()):
        raise ValueError(f"data set {name!r}: expected the validation part in random order, got it sorted by class")
    return validation if split == "validation" else validation.every(2, int(split == "validation-odd"))


def validation_splits(learnt: Split) -> tuple[Split, Split]:
    """Where to choose what an agent needs besides (budgets, thresholds), and where to judge it before the test part is.

    The half of the validation part that it learnt on and the other one; of all other splits, the whole part twice.

    Args:
        learnt: what the agent learnt on.
    """
    if learnt == "validation-even":
        return learnt, "validation-odd"
    if learnt == "validation-odd":
        return learnt, "validation-even"
    return "validation", "validation"


def _load_digits(split: Part, data_root: Path | None) -> Dataset:
    """What agents train on: canvases that the shipped backbone has not seen, so that its belief is an honest one."""
    return _digits(split, skip_chunks=PRETRAINING_THOUSANDS if split == "train" else 0)


def _load_pretraining_digits(split: Part, data_root: Path | None) -> Dataset:
    return _digits(split, size=1_000 * PRETRAINING_THOUSANDS if split == "train" else None)


def _digits(split: Part, size: int | None = None, skip_chunks: int = 0) -> Dataset:
    from .digits import digits  # scikit-learn takes seconds to import, and a net on other data needs none of it

    images, labels, difficulty = digits(split, size, skip_chunks=skip_chunks)
    return Dataset(images, labels, tuple("0123456789"), difficulty)


def _load_cifar(name: Literal["cifar10", "cifar100"], split: Part, data_root: Path | None) -> Dataset:
    from .image_datasets import load_cifar  # torchvision takes seconds to import, and digits need none of it

    return _without_difficulty(*load_cifar(name, split, data_root))


def _load_image_folder(size: int | None, split: Part, data_root: Path | None) -> Dataset:
    from .image_datasets import load_image_folder

    return _without_difficulty(*load_image_folder(size, split, data_root))


def _without_difficulty(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Dataset:
    return Dataset(images, labels, classes, torch.full((len(images),), torch.nan))


PRETRAINING_THOUSANDS = 60
register_dataset("digits", _load_digits)
register_dataset("digits-60k", _load_pretraining_digits)
register_dataset("cifar10", functools.partial(_load_cifar, "cifar10"))
register_dataset("cifar100", functools.partial(_load_cifar, "cifar100"))
register_dataset("imagefolder", functools.partial(_load_image_folder, None))
for _size in (32, 64, 96, 128, 224, 384):
    register_dataset(f"imagefolder-{_size}", functools.partial(_load_image_folder, _size))
