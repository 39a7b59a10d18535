"""The embedded task: real handwritten digits on a cluttered, noisy 32x32 colour canvas.

The 1,797 digits are scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
(Alpaydin and Kaynak, 1998; CC BY 4.0). Every canvas follows from (split, index) alone.
"""

import functools
import math
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from torch import Tensor
from torch.nn import functional as F

CANVAS = 32  # pixels
FRAGMENTS = 6  # pieces of other digits on the hardest image
HALO = 5  # pixels; clutter keeps this far from the digit's strokes, so that it crowds but does not cover
SIZES = {"train": 20_000, "validation": 4_000, "test": 8_000}
_DIGITS = {"train": slice(0, 1100), "validation": slice(1100, 1350), "test": slice(1350, 1797)}
_SEEDS = {"train": 1, "validation": 2, "test": 3}
_CHUNK = 1_000

Sources = tuple[Float[Tensor, "M 8 8"], Int64[Tensor, " M"]]


@functools.cache
def source_digits(split: Literal["train", "validation", "test"]) -> Sources:
    """The 8x8 digits in [0, 1] and their labels of which a split is made; the splits share none."""
    bunch = cast(Bunch, load_digits())
    order = np.random.default_rng(0).permutation(len(bunch.target))[_DIGITS[split]]
    pixels = torch.from_numpy(bunch.images[order] / 16).float()
    return pixels, torch.from_numpy(bunch.target[order]).long()


def digits(
    split: Literal["train", "validation", "test"], size: int | None = None, *, skip_chunks: int = 0
) -> tuple[UInt8[Tensor, "N 3 32 32"], Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """Render the first images of a split.

    Args:
        split: which underlying digits to use.
        size: number of images; `SIZES[split]` by default. A longer list begins with the shorter one.
        skip_chunks: begin that many thousand canvases later.

    Returns:
        images, labels and difficulty in [0, 1].
    """
    count = SIZES[split] if size is None else size
    chunks = [_render(split, skip_chunks + chunk) for chunk in range(math.ceil(count / _CHUNK))]
    images, labels, difficulty = (torch.cat(parts)[:count] for parts in zip(*chunks, strict=True))
    return images, labels, difficulty


def _render(split: Literal["train", "validation", "test"], chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Canvases chunk * _CHUNK to (chunk + 1) * _CHUNK - 1; their pixels follow from the chunk's seed and the row."""
    pixels, labels = source_digits(split)
    generator = np.random.default_rng([_SEEDS[split], chunk])
    # Columns: difficulty, digit, scale, angle, x, y, ground colour (3), ink colour (3), contrast; then 7 a fragment.
    uniform = torch.from_numpy(generator.random((_CHUNK, 13 + 7 * FRAGMENTS), np.float32))
    noise = torch.from_numpy(generator.standard_normal((_CHUNK, 3, CANVAS, CANVAS), np.float32))
    difficulty, which, scale, angle, x, y = uniform[:, :6].unbind(1)
    chosen = (which * len(pixels)).long()
    size = 0.92 - 0.27 * difficulty - 0.05 * scale  # side of the digit over the side of the canvas
    turn = (2 * angle - 1) * math.radians(30) * difficulty
    reach = 1 - size
    digit = _place(pixels[chosen], size, turn, (2 * x - 1) * reach, (2 * y - 1) * reach)
    outside = 1 - _dilate(digit, HALO)
    ink = digit
    for fragment in range(FRAGMENTS):
        columns = uniform[:, 13 + 7 * fragment : 20 + 7 * fragment]
        visible = difficulty * FRAGMENTS > fragment + 0.5
        ink = torch.maximum(ink, _fragment(pixels, columns, size) * outside * visible[:, None, None])
    return _colour(ink, uniform[:, 6:13], difficulty, noise), labels[chosen], difficulty


def _fragment(
    pixels: Float[Tensor, "M 8 8"], uniform: Float[Tensor, "B 7"], size: Float[Tensor, " B"]
) -> Float[Tensor, "B 32 32"]:
    """A 4x4 piece of a random digit, in the stroke width of the image's own digit, anywhere on the canvas."""
    which, row, column, angle, x, y, stretch = uniform.unbind(1)
    source = pixels[(which * len(pixels)).long()]
    rows = (row * 5).long()[:, None] + torch.arange(4)
    columns = (column * 5).long()[:, None] + torch.arange(4)
    piece = source[torch.arange(len(source))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return _place(piece, size * (0.5 + 0.2 * stretch), angle * 2 * math.pi, 2 * x - 1, 2 * y - 1)


def _place(
    patches: Float[Tensor, "B S S"],
    size: Float[Tensor, " B"],
    angle: Float[Tensor, " B"],
    x: Float[Tensor, " B"],
    y: Float[Tensor, " B"],
) -> Float[Tensor, "B 32 32"]:
    """Draw patches on empty canvases: side over canvas side, angle [rad], centre in [-1, 1]."""
    axis = (torch.arange(CANVAS) + 0.5) * 2 / CANVAS - 1
    right, down = axis - x[:, None], axis - y[:, None]  # [B, 32] each
    cos, sin = torch.cos(angle)[:, None] / size[:, None], torch.sin(angle)[:, None] / size[:, None]
    column = (cos * right)[:, None, :] + (sin * down)[:, :, None]  # [B, 32, 32]
    row = (cos * down)[:, :, None] - (sin * right)[:, None, :]
    return F.grid_sample(patches[:, None], torch.stack([column, row], 3), align_corners=False)[:, 0]


def _dilate(ink: Float[Tensor, "B 32 32"], reach: int) -> Float[Tensor, "B 32 32"]:
    """Maximum over a square of side `reach` around each pixel."""
    rows = F.max_pool2d(ink[:, None], (reach, 1), stride=1, padding=(reach // 2, 0))
    return F.max_pool2d(rows, (1, reach), stride=1, padding=(0, reach // 2))[:, 0]


def _colour(
    ink: Float[Tensor, "B 32 32"],
    uniform: Float[Tensor, "B 7"],
    difficulty: Float[Tensor, " B"],
    noise: Float[Tensor, "B 3 32 32"],
) -> UInt8[Tensor, "B 3 32 32"]:
    ground = 0.05 + 0.35 * uniform[:, :3]
    strength = (0.65 - 0.25 * difficulty + 0.1 * uniform[:, 6])[:, None]
    colour = ground + strength * (0.7 + 0.6 * uniform[:, 3:6])
    spread = ink.clamp(0, 1)[:, None]  # [B, 1, 32, 32]
    canvas = ground[:, :, None, None] * (1 - spread) + colour[:, :, None, None] * spread
    sigma = (0.02 + 0.03 * difficulty)[:, None, None, None]
    return ((canvas + sigma * noise).clamp(0, 1) * 255).round().to(torch.uint8)
