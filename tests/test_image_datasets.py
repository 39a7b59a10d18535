"""CIFAR from torchvision's files and from arrays, and the order and parts that are the same in both.

Nothing here needs a network.
"""

import hashlib
import importlib.util
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100

from vitskip.backbone import datasets
from vitskip.backbone.datasets import Dataset, load_dataset
from vitskip.backbone.digits import SIZES
from vitskip.backbone.image_datasets import CIFAR_CLASSES, download_dataset, hash_order

Pixels = NDArray[np.uint8]
SPLITS = ("train", "validation", "test")


def synthetic(count: int, classes: int, seed: int = 0) -> tuple[Pixels, NDArray[np.int64]]:
    """Images [N, 32, 32, 3] that differ, and labels of every class."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, np.arange(count) % classes


def write_arrays(root: Path, *, classes: int = 10, count: int = 40) -> Path:
    for seed, name in enumerate(("train", "test")):
        images, labels = synthetic(count, classes, seed)
        np.savez(root / f"{name}.npz", images=images, labels=labels)
    return root


def write_batch(path: Path, images: Pixels, **labels: list[int]) -> list[str]:
    """A file as CIFAR's, red plane first, pickled in NumPy's form of that time; its name and MD5."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    now = pickle.dumps({"data": rows, **labels}, protocol=2)
    then = now.replace(b"numpy._core.", b"numpy.core.", 1).replace(b"\x89\x88", b"K\x00K\x01", 1)  # dtype("u1", 0, 1)
    path.write_bytes(then)
    return [path.name, hashlib.md5(then).hexdigest()]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the images of `write_arrays` in torchvision's layout, in another order, and has torchvision expect it."""

    def write(name: str) -> Path:
        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        folder = tmp_path / "published" / source.base_folder
        folder.mkdir(parents=True)
        key, num_classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
        for seed, (attribute, files) in enumerate({"train_list": ("b", "a"), "test_list": ("t",)}.items()):
            images, labels = synthetic(120, num_classes, seed)
            chunks = np.array_split(np.random.default_rng(9).permutation(120), len(files))
            batches = [
                write_batch(folder / file, images[rows], **{key: labels[rows].tolist()})
                for file, rows in zip(files, chunks, strict=True)
            ]
            monkeypatch.setattr(source, attribute, batches)
        meta = pickle.dumps({source.meta["key"]: list(CIFAR_CLASSES[name])})
        (folder / source.meta["filename"]).write_bytes(meta)
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": hashlib.md5(meta).hexdigest()})
        return tmp_path / "published"

    return write


def same(first: Dataset, second: Dataset) -> bool:
    equal = torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    return equal and first.classes == second.classes


def pixels_of(dataset: Dataset) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in dataset.images)


def test_the_order_is_the_published_one() -> None:
    """Golden: a change here moves images between training and validation of nets that are trained already."""
    contents = [bytes([index, 255 - index]) for index in range(100)]
    order = hash_order(contents, [0] * 100, None)
    assert order[:8] == [8, 32, 54, 0, 81, 94, 91, 39]
    assert (
        hashlib.sha256(bytes(order)).hexdigest() == "3c260f4ba9000d5ca4df9d92aa24b8b1c8a36cd64a9371e1c44136037f7a8bf4"
    )
    independent = sorted(range(100), key=lambda row: hashlib.sha256(b"0:" + contents[row]).hexdigest())
    assert order == independent


def test_a_tenth_is_validation_and_the_rest_training() -> None:
    contents = [str(index).encode() for index in range(200)]
    parts = {part: hash_order(contents, [0] * 200, part) for part in ("validation", "train")}
    assert [len(rows) for rows in parts.values()] == [20, 180]
    assert parts["validation"] + parts["train"] == hash_order(contents, [0] * 200, None)


def test_order_and_parts_depend_on_content_and_not_on_the_row() -> None:
    contents = [str(index).encode() for index in range(100)]
    shuffled = np.random.default_rng(0).permutation(100).tolist()
    for part in (None, "train", "validation"):
        first = [contents[row] for row in hash_order(contents, [0] * 100, part)]
        moved = [contents[row] for row in shuffled]
        assert [moved[row] for row in hash_order(moved, [0] * 100, part)] == first


def test_equal_contents_stay_in_one_part_and_are_ordered_by_label() -> None:
    contents = [str(index).encode() for index in range(30)]
    last = contents[hash_order(contents, [0] * 30, "validation")[-1]]  # at the border
    repeated, labels = [*contents, last, last, last], [5] * 30 + [9, 1, 5]
    validation = hash_order(repeated, labels, "validation")
    assert [(repeated[row], labels[row]) for row in validation[2:]] == [(last, label) for label in (1, 5, 5, 9)]
    assert len(validation) == 6  # 33 // 10, and the three that follow
    assert not set(validation) & set(hash_order(repeated, labels, "train"))


def test_a_part_is_never_empty_where_two_contents_differ() -> None:
    assert sorted(hash_order([b"a", b"b"], [0, 1], "validation") + hash_order([b"a", b"b"], [0, 1], "train")) == [0, 1]


# CIFAR


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_torchvisions_files_and_arrays_give_the_same_dataset(
    name: str, classes: int, tmp_path: Path, published: Callable[[str], Path]
) -> None:
    arrays = write_arrays(tmp_path, classes=classes, count=120)
    folder = published(name)
    for split, count in zip(SPLITS, (108, 12, 120), strict=True):
        dataset = load_dataset(name, split, folder)
        other = load_dataset(name, split, arrays)
        assert same(dataset, other)
        assert dataset.images.shape == (count, 3, 32, 32)
        assert dataset.images.is_contiguous() and other.images.is_contiguous()
        assert dataset.classes == CIFAR_CLASSES[name]
        assert dataset.difficulty.isnan().all()


def test_arrays_keep_pixels_and_labels_together(tmp_path: Path) -> None:
    root = write_arrays(tmp_path)
    images, labels = synthetic(40, 10, seed=1)
    expected = {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    dataset = load_dataset("cifar10", "test", root)
    seen = {
        image.permute(1, 2, 0).numpy().tobytes(): label.item()
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    assert seen == expected
    train, validation = (pixels_of(load_dataset("cifar10", split, root)) for split in SPLITS[:2])
    assert (len(train), len(validation), len(train & validation)) == (36, 4, 0)


def test_class_names_are_sorted_as_folders_are() -> None:
    assert [len(names) for names in CIFAR_CLASSES.values()] == [10, 100]
    assert all(list(names) == sorted(set(names)) for names in CIFAR_CLASSES.values())


@pytest.mark.parametrize("broken", ["a", "t", "batches.meta"])
def test_changed_files_are_refused_unread(broken: str, published: Callable[[str], Path]) -> None:
    root = published("cifar10")
    path = root / CIFAR10.base_folder / broken
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"expected the published files of cifar10 in .*vitskip download cifar10"):
        load_dataset("cifar10", "train", root)
    path.unlink()
    with pytest.raises(ValueError, match="got missing or changed ones"):
        load_dataset("cifar10", "train", root)


class Bomb:
    """Fails the test that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the file was unpickled",)


def test_missing_data_say_what_was_expected_and_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"cifar-10-batches-py/, or .*train.npz and test.npz, got None; "
        "`vitskip download cifar10 DATA_ROOT`",
    ):
        load_dataset("cifar10", "train")
    with pytest.raises(
        FileNotFoundError,
        match=rf"cifar-100-python/.* got {tmp_path} with nothing in it; "
        f"`vitskip download cifar100 {tmp_path}`",
    ):
        load_dataset("cifar100", "validation", tmp_path)
    for name in ("train.npz", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"with notes.txt, train.npz; "):
        load_dataset("cifar10", "test", tmp_path)


IMAGES, LABELS = synthetic(4, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected the arrays images and labels, got images"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, r"images uint8 \[N, 32, 32, 3\], got float32 \(4,"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, r"got uint8 \(4, 3, 32, 32\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"got uint8 \(0, 32, 32, 3\)"),
        ({"images": IMAGES, "labels": LABELS[:3]}, r"labels int64 \[4\], got int64 \(3,\)"),
        ({"images": IMAGES, "labels": LABELS.astype(np.int32)}, r"labels int64 \[4\], got int32"),
        ({"images": IMAGES, "labels": LABELS + 9}, r"labels 0..9, got 9..10"),
        ({"images": IMAGES, "labels": LABELS - 1}, r"labels 0..9, got -1..0"),
        (
            {"images": IMAGES, "labels": LABELS, "classes": np.array(["cat", "dog"])},
            "classes airplane, .* got cat, dog",
        ),
        ({"images": np.array([Bomb()], object), "labels": LABELS}, "expected plain arrays .*allow_pickle=False"),
    ],
)
def test_arrays_that_are_no_cifar_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=rf"train.npz: expected .*{message.removeprefix('expected ')}"):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00"])
def test_a_file_that_holds_no_arrays_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train.npz: expected plain arrays"):
        load_dataset("cifar10", "train", tmp_path)


def test_one_array_instead_of_an_archive_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"train.npz: expected plain arrays"):
        load_dataset("cifar10", "train", tmp_path)


def test_a_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def download(self: CIFAR100) -> None:
        calls.append(Path(self.root))
        raise RuntimeError("File not found or corrupted.")  # as where the MD5 is wrong

    monkeypatch.setattr(CIFAR100, "download", download)
    with pytest.raises(ConnectionError, match=r"cifar100: expected to download https://\S+, got: File not found"):
        download_dataset("cifar100", tmp_path)
    assert calls == [tmp_path]


def test_what_is_there_is_not_downloaded_again(published: Callable[[str], Path]) -> None:
    download_dataset("cifar10", published("cifar10"))


def test_no_network_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    with pytest.raises(
        ConnectionError, match=r"Name or service not known.*Without a network, copy cifar-10-batches-py/"
    ):
        download_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_other_data_sets_have_no_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a data set with a download \(cifar10, cifar100\), got '{name}'"):
        download_dataset(name, tmp_path)


def test_digits_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it takes seconds; a second copy of `datasets` is loaded here without it."""
    for name in ("torchvision", "vitskip.backbone.image_datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("vitskip.backbone.datasets_again", datasets.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)  # dataclasses look for their module
    spec.loader.exec_module(again)
    monkeypatch.setitem(SIZES, "test", 5)
    assert len(again.load_dataset("digits", "test")) == 5
    with pytest.raises(ImportError):
        again.load_dataset("cifar10", "test")


def test_a_dataset_moves_with_its_labels() -> None:
    dataset = Dataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), torch.zeros(2))
    moved = dataset.to("cpu")
    assert same(dataset, moved)
    kinds: list[str] = []

    class Spy(torch.Tensor):
        def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            kinds.append(str(args[0]))
            return self.as_subclass(torch.Tensor)

    images, labels = dataset.images.as_subclass(Spy), dataset.labels.as_subclass(Spy)
    Dataset(images, labels, dataset.classes, dataset.difficulty.as_subclass(Spy)).to("cuda:1")
    assert kinds == ["cuda:1", "cuda:1"]  # difficulty stays


@pytest.mark.gpu
def test_a_dataset_moves_to_the_gpu() -> None:
    dataset = Dataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), torch.zeros(2))
    moved = dataset.to("cuda")
    assert (moved.images.device.type, moved.labels.device.type, moved.difficulty.device.type) == ("cuda", "cuda", "cpu")
