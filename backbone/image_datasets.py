"""Images that live in files: CIFAR-10, CIFAR-100, and any folder of images; no network but in `download_dataset`.

The rows of every split come in the order of a hash, and the first tenth of the training images in that order is the
validation part. CIFAR hashes pixels and a folder of images paths, so order and parts depend neither on the source
(torchvision's files, arrays sorted by class) nor on versions, and repeated CIFAR images fall into one part.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms.functional import InterpolationMode, center_crop, pil_to_tensor, resize
from tqdm import tqdm

Part = Literal["train", "validation", "test"]
LabelledImages = tuple[UInt8[Tensor, "N 3 H W"], Int64[Tensor, " N"], tuple[str, ...]]
"""Images, labels and the names of the classes."""

SEED = 0  # of the order; a change would mix training and validation images of every trained net
VALIDATION = 10  # one in so many training images
MIXED_SIZE = 224  # pixels; of a folder whose images differ in size or are not square
_CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """,
}
CIFAR_CLASSES = {name: tuple(classes.split()) for name, classes in _CLASSES.items()}
_DOWNLOADS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def download_dataset(name: str, data_root: Path) -> None:
    """Fetch a data set with torchvision, which checks its MD5; what is there already is kept.

    Args:
        name: "cifar10" or "cifar100".
        data_root: folder to put it in; made where missing.

    Raises:
        ValueError: for a data set that has no download.
        ConnectionError: if it cannot be fetched.
    """
    if name not in _DOWNLOADS:
        raise ValueError(f"name: expected a data set with a download ({', '.join(_DOWNLOADS)}), got {name!r}")
    source = _DOWNLOADS[name]
    try:
        source(data_root, download=True)
    except (URLError, ConnectionError, TimeoutError, HTTPException, RuntimeError) as error:
        raise ConnectionError(
            f"{name}: expected to download {source.url}, got: {error}. Without a network, "
            f"copy {source.base_folder}/, or train.npz and test.npz, from elsewhere to {data_root}"
        ) from error


def load_cifar(name: Literal["cifar10", "cifar100"], split: Part, data_root: Path | None) -> LabelledImages:
    """Read one split of CIFAR (Krizhevsky, 2009), with the fine labels of CIFAR-100.

    Args:
        name: which of the two.
        split: "train" (45,000 images), "validation" (5,000 of the published training images) or "test" (10,000).
        data_root: folder with what torchvision downloads (read only if its MD5 is right), or with `train.npz` and
            `test.npz` (images uint8 [N, 32, 32, 3] and labels int64 [N]; perhaps classes, their K names).

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if the files hold something else.
    """
    images, labels = _read_cifar(name, split, data_root)
    rows = hash_order((pixels.tobytes() for pixels in images), labels.tolist(), None if split == "test" else split)
    return torch.from_numpy(images[rows]).permute(0, 3, 1, 2).contiguous(), labels[rows], CIFAR_CLASSES[name]


def hash_order(
    contents: Iterable[bytes], labels: Sequence[int], part: Literal["train", "validation"] | None
) -> list[int]:
    """Rows of a part of the training images, or all, in the order of SHA-256(seed, content).

    Rows of equal content stand side by side, ordered by label, and the border of the parts never runs between them:
    the validation part grows until it holds them all.
    """
    digests = [hashlib.sha256(f"{SEED}:".encode() + content).digest() for content in contents]
    order = sorted(range(len(digests)), key=lambda row: (digests[row], labels[row]))
    if part is None:
        return order
    border = max(1, len(order) // VALIDATION)
    while border < len(order) and digests[order[border]] == digests[order[border - 1]]:
        border += 1
    return order[:border] if part == "validation" else order[border:]


def _read_cifar(
    name: Literal["cifar10", "cifar100"], split: Part, data_root: Path | None
) -> tuple[UInt8[np.ndarray, "N 32 32 3"], Int64[Tensor, " N"]]:
    """The published training or test images, in whatever order."""
    source, arrays = _DOWNLOADS[name], "test.npz" if split == "test" else "train.npz"
    if data_root is not None and (data_root / arrays).is_file():
        return _read_arrays(data_root / arrays, CIFAR_CLASSES[name])
    if data_root is None or not (data_root / source.base_folder).is_dir():
        held = sorted(path.name for path in data_root.iterdir())[:8] if data_root else []
        raise FileNotFoundError(
            f"data_root: expected a folder with {source.base_folder}/, or with train.npz and test.npz, got {data_root}"
            f"{' with ' + (', '.join(held) or 'nothing in it') if data_root else ''}; "
            f"`vitskip download {name} {data_root or 'DATA_ROOT'}` fetches it"
        )
    try:
        published = source(data_root, train=split != "test", download=False)
    except RuntimeError as error:
        raise ValueError(
            f"data_root: expected the published files of {name} in {data_root / source.base_folder}, got missing or "
            f"changed ones (MD5); `vitskip download {name} {data_root}` fetches them anew"
        ) from error
    return published.data, torch.tensor(published.targets)


def _read_arrays(path: Path, classes: tuple[str, ...]) -> tuple[UInt8[np.ndarray, "N 32 32 3"], Int64[Tensor, " N"]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected plain arrays as numpy.savez writes them, got: {error}") from error
    if not {"images", "labels"} <= arrays.keys():
        raise ValueError(f"{path}: expected the arrays images and labels, got {', '.join(arrays) or 'none'}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise ValueError(f"{path}: expected images uint8 [N, 32, 32, 3], got {images.dtype} {images.shape}")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: expected labels int64 [{len(images)}], got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{path}: expected labels 0..{len(classes) - 1}, got {labels.min()}..{labels.max()}")
    named = tuple(map(str, arrays.get("classes", np.array(classes)).ravel()))
    if named != classes:
        raise ValueError(f"{path}: expected the classes {', '.join(classes)}, got {', '.join(named)}")
    return images, torch.from_numpy(labels)


def load_image_folder(size: int | None, split: Part, data_root: Path | None) -> LabelledImages:
    """Decode one split of `data_root/{train,val or validation,test}/<class>/*` to square RGB images.

    A folder without `test` has its `val` (or `validation`) taken for it, as in ImageNet; without a validation part of
    its own a tenth of `train` becomes that part, by path. Of an image that has another size, the shorter side is
    resized (bicubic, antialiased) and the centre is cropped.

    Args:
        size: height and width [pixels]; None keeps that of the images if all are equal squares, else 224.
        split: "train", "validation" or "test".
        data_root: folder of the parts.

    Raises:
        FileNotFoundError: if a part or the images of a class are missing.
        ValueError: if the parts differ in their classes, or a file is no image.
    """
    parts = _list_parts(data_root)
    own = next((parts[name] for name in ("val", "validation") if name in parts), None)
    carved = own is None or "test" not in parts
    found = {"train": parts["train"], "validation": parts["train"] if carved else own, "test": parts.get("test", own)}
    if (chosen := found[split]) is None:
        raise FileNotFoundError(f"data_root: expected test/ or val/ beside train/, got {data_root} with neither")
    paths = (os.fsencode(Path(path).relative_to(str(data_root)).as_posix()) for path, _ in chosen.samples)
    part = "validation" if split == "validation" else "train"
    rows = hash_order(paths, chosen.targets, part if carved and split != "test" else None)
    if size is None:
        size = _common_size([path for listed in parts.values() for path, _ in listed.samples])
    images = _decode([chosen.samples[row][0] for row in rows], size)
    return images, torch.tensor(chosen.targets)[rows], tuple(chosen.classes)


def _list_parts(data_root: Path | None) -> dict[str, ImageFolder]:
    if data_root is None or not (data_root / "train").is_dir():
        raise FileNotFoundError(f"data_root: expected a folder with images in train/<class>/, got {data_root}")
    names = [name for name in ("train", "val", "validation", "test") if (data_root / name).is_dir()]
    if {"val", "validation"} <= set(names):
        raise ValueError(f"data_root: expected val/ or validation/, got both in {data_root}")
    parts: dict[str, ImageFolder] = {}
    for name in names:
        try:
            parts[name] = ImageFolder(str(data_root / name))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data_root: expected images in {data_root / name}/<class>/, got: {error}"
            ) from error
        if parts[name].classes != parts["train"].classes:
            odd = sorted(set(parts[name].classes) ^ set(parts["train"].classes))
            raise ValueError(f"data_root: expected the same classes in {', '.join(names)}, got {', '.join(odd)} in one")
    return parts


def _common_size(paths: Sequence[str]) -> int:
    """The side of the images if all are squares of one size, else `MIXED_SIZE`; reads headers only."""
    first: tuple[int, int] | None = None
    for path in tqdm(paths, desc="sizes", unit="image", disable=None):
        with _naming(path), Image.open(path) as image:
            first = first or image.size
            if image.size != (first[0], first[0]):
                return MIXED_SIZE
    return first[0] if first else MIXED_SIZE


def _decode(paths: Sequence[str], size: int) -> UInt8[Tensor, "N 3 S S"]:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def decode(row: int) -> None:
        with _naming(paths[row]):
            image = default_loader(paths[row])
            image = center_crop(resize(image, [size], InterpolationMode.BICUBIC), [size, size])
            images[row] = pil_to_tensor(image)

    with ThreadPoolExecutor() as pool:
        for _ in tqdm(pool.map(decode, range(len(paths))), "decode", len(paths), unit="image", disable=None):
            pass
    return images


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say which file cannot be decoded, as Pillow may not."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: expected an image, got a file that cannot be decoded: {error}") from error
