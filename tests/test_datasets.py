"""Data sets: the embedded digits, and errors in what users register."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitskip.backbone import ViT, datasets
from vitskip.backbone.datasets import Dataset, Part, load_dataset, register_dataset, validation_splits
from vitskip.backbone.digits import SIZES, digits, source_digits
from vitskip.backbone.registry import Registry

SPLITS = ("train", "validation", "test")
EACH_SPLIT = pytest.mark.parametrize("split", SPLITS)


def make_dataset(**changes: object) -> Dataset:
    """Four valid images of two classes, but for the changes."""
    fields: dict[str, object] = {
        "images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 0, 1]),
        "classes": ("cat", "dog"),
        "difficulty": torch.full((4,), torch.nan),
    }
    return Dataset(**(fields | changes))


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_DATASETS", Registry("data set"))


@EACH_SPLIT
def test_digits_are_labelled_images_of_every_class(split: str) -> None:
    images, labels, difficulty = digits(split, 200)
    assert (images.dtype, labels.dtype, difficulty.dtype) == (torch.uint8, torch.int64, torch.float32)
    assert (images.shape, labels.shape, difficulty.shape) == ((200, 3, 32, 32), (200,), (200,))
    assert labels.bincount(minlength=10).min() > 5
    assert labels.max() == 9
    assert 0 <= difficulty.min() < 0.05 < 0.95 < difficulty.max() <= 1
    assert images.float().std((1, 2, 3)).min() > 2  # no canvas is blank


@EACH_SPLIT
def test_a_longer_list_begins_with_the_shorter(split: str) -> None:
    long, short = digits(split, 20), digits(split, 5)
    assert all(torch.equal(a[:5], b) for a, b in zip(long, short, strict=True))


def test_the_halves_of_validation_are_every_other_image() -> None:
    whole, *halves = (load_dataset("digits", f"validation{half}") for half in ("", "-even", "-odd"))
    for start, half in enumerate(halves):
        for name in ("images", "labels", "difficulty"):
            assert torch.equal(getattr(half, name), getattr(whole, name)[start::2])
        assert half.classes == whole.classes
    assert sum(map(len, halves)) == len(whole)


def test_halves_are_judged_on_one_another_and_all_else_on_the_whole() -> None:
    assert validation_splits("validation-even") == ("validation-even", "validation-odd")
    assert validation_splits("validation-odd") == ("validation-odd", "validation-even")
    assert {validation_splits(split) for split in SPLITS} == {("validation", "validation")}


def test_chunks_of_rendering_join_without_a_seam() -> None:
    images, labels, difficulty = digits("test", 1003)
    shorter = digits("test", 1001)
    assert all(torch.equal(a[:1001], b) for a, b in zip((images, labels, difficulty), shorter, strict=True))
    assert (len(images), len(labels), len(difficulty)) == (1003, 1003, 1003)
    assert not torch.equal(images[1000:], images[:3])  # no chunk repeats another


def test_images_follow_from_split_and_index_and_nothing_global() -> None:
    torch.manual_seed(1)
    first = digits("train", 10)
    torch.manual_seed(2)
    again, other = digits("train", 10), digits("validation", 10)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({image.numpy().tobytes() for image in first[0]}) == 10


def test_the_splits_share_no_handwritten_digit() -> None:
    sources = {split: {pixels.numpy().tobytes() for pixels in source_digits(split)[0]} for split in SPLITS}
    assert [len(sources[split]) for split in SPLITS] == [1100, 250, 447]
    assert len(set.union(*sources.values())) == 1797


def test_harder_images_are_noisier_and_fainter() -> None:
    images, _, difficulty = digits("validation", 1000)
    corner, whole = (part.float().flatten(2).std(2).mean(1) for part in (images[:, :, :2, :2], images))
    easy, hard = difficulty < 0.3, difficulty > 0.7
    assert corner[hard].median() > 1.5 * corner[easy].median()
    assert whole[hard].median() < 0.9 * whole[easy].median()


def test_digits_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "validation", 30)
    dataset = load_dataset("digits", "validation")
    expected = digits("validation", 30)
    assert len(dataset) == 30
    assert torch.equal(dataset.images, expected[0])
    assert torch.equal(dataset.labels, expected[1])
    assert torch.equal(dataset.difficulty, expected[2])
    assert dataset.classes == tuple("0123456789")


@pytest.mark.usefixtures("empty_registry")
def test_a_registered_factory_gets_split_and_root(tmp_path: Path) -> None:
    calls: list[tuple[str, Path | None]] = []

    def factory(split: str, data_root: Path | None) -> Dataset:
        calls.append((split, data_root))
        return make_dataset()

    register_dataset("mine", factory)
    assert len(load_dataset("mine", "train", str(tmp_path))) == 4
    assert calls == [("train", tmp_path)]


def test_a_taken_name_is_refused_and_stays() -> None:
    before = datasets._DATASETS["digits"]
    with pytest.raises(ValueError, match="data set 'digits' is registered already"):
        register_dataset("digits", lambda split, data_root: make_dataset())
    assert datasets._DATASETS["digits"] is before


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'digit': expected one of .*did you mean 'digits'"):
        load_dataset("digit", "train")
    with pytest.raises(ValueError, match="unknown data set 'zzzzzz'") as error:
        load_dataset("zzzzzz", "train")
    assert "did you mean" not in str(error.value)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(
        ValueError, match="split: expected one of train, validation, validation-even, validation-odd, test, got 'dev'"
    ):
        load_dataset("digits", "dev")


def test_a_missing_data_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_root: expected an existing folder.*'digits'.*nowhere"):
        load_dataset("digits", "train", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images", torch.zeros(4, 3, 8, 8), r"images: expected uint8 \[N, 3, H, W\].*got torch.float32 \(4, 3, 8, 8\)"),
        ("images", torch.zeros(4, 8, 8, dtype=torch.uint8), r"images: .*got torch.uint8 \(4, 8, 8\)"),
        ("images", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "images: expected uint8"),
        ("images", torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "with N > 0"),
        ("labels", torch.tensor([0, 1, 0]), r"labels: expected int64 \[4\], got torch.int64 \(3,\)"),
        ("labels", torch.tensor([0, 1, 0, 1], dtype=torch.int32), r"labels: expected int64 \[4\], got torch.int32"),
        ("labels", torch.tensor([0, 1, 0, 2]), "labels: expected 0..1, one per class"),
        ("labels", torch.tensor([0, 1, 0, -1]), "labels: expected 0..1, one per class"),
        ("difficulty", torch.zeros(3), r"difficulty: expected shape \(4,\), got \(3,\)"),
    ],
)
def test_an_inconsistent_dataset_is_refused(field: str, value: Tensor, message: str) -> None:
    make_dataset()  # valid but for the change
    with pytest.raises(ValueError, match=message):
        make_dataset(**{field: value})


def test_a_validation_part_sorted_by_class_is_refused() -> None:
    """Its first images would be taken for a sample of it."""

    def by_class(split: Part, data_root: Path | None) -> Dataset:
        labels = torch.arange(3).repeat_interleave(40 if split == "validation" else 2)
        images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        return Dataset(images, labels, ("a", "b", "c"), torch.full((len(labels),), torch.nan))

    register_dataset("by-class", by_class)
    assert len(load_dataset("by-class", "test")) == 6
    for split in ("validation", "validation-odd"):
        with pytest.raises(ValueError, match=r"data set 'by-class': expected the validation part in random order"):
            load_dataset("by-class", split)


def test_one_class_leaves_nothing_to_tell_apart() -> None:
    images, backbone = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ViT(image_size=8, patch_size=4, num_classes=1)
    only = Dataset(images, torch.zeros(2, dtype=torch.int64), ("a",), torch.full((2,), torch.nan))
    with pytest.raises(ValueError, match="dataset: expected at least two classes, got a"):
        only.check_fits(backbone)
