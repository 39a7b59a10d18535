"""What the viewer draws on: a canvas of smooth shapes (Pillow) and a page of terminal text (rich)."""

import functools
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from rich.text import Text

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_SCALE = 3  # Pillow's shapes are not antialiased: drawn larger, then averaged over _SCALE x _SCALE pixels


class Canvas:
    """A picture addressed in pixels of the result; fractions of a pixel count.

    Args:
        width: pixels.
        height: pixels.
        paper: the ground's colour.
    """

    def __init__(self, width: int, height: int, *, paper: str) -> None:
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), paper)
        self._draw = ImageDraw.Draw(self._image)

    def pixels(self) -> NDArray[np.uint8]:
        """The picture, [height, width, 3] uint8."""
        return np.array(self._image.reduce(_SCALE))

    def box(self, box: Box, radius: float, fill: str | None, outline: str | None = None, line: float = 1) -> None:
        """A rectangle with round corners."""
        left, top, right, bottom = (round(value * _SCALE) for value in box)
        inside = (left, top, max(right - 1, left), max(bottom - 1, top))
        self._draw.rounded_rectangle(inside, radius * _SCALE, fill, outline, round(line * _SCALE))

    def hatch(self, box: Box, radius: float, ground: str, line: str) -> None:
        """A box filled with diagonal lines."""
        left, top, right, bottom = (round(value * _SCALE) for value in box)
        size = (right - left, bottom - top)
        self._image.paste(_hatched(size, ground, line), (left, top), _rounded(size, radius))
        self.box(box, radius, None, line)

    def picture(self, image: NDArray[np.uint8], centre: Point, side: float, radius: float) -> Box:
        """Place an image [H, W, 3], its longer side so many pixels; returns where it lies."""
        picture = Image.fromarray(image)
        ratio = side * _SCALE / max(picture.size)
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.NEAREST if ratio >= 1 else Image.Resampling.LANCZOS)
        half_width, half_height = size[0] / _SCALE / 2, size[1] / _SCALE / 2
        box = (centre[0] - half_width, centre[1] - half_height, centre[0] + half_width, centre[1] + half_height)
        self._image.paste(picture, (round(box[0] * _SCALE), round(box[1] * _SCALE)), _rounded(size, radius))
        return box

    def path(self, points: Sequence[Point], colour: str, width: float) -> None:
        """A line through the points."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, colour, round(width * _SCALE), joint="curve")

    def dot(self, centre: Point, radius: float, colour: str) -> None:
        """A disc."""
        self._draw.circle((centre[0] * _SCALE, centre[1] * _SCALE), radius * _SCALE, colour)

    def ring(self, centre: Point, radius: float, share: float, colour: str, width: float) -> None:
        """A share of a ring, clockwise from the top."""
        corners = [(value + sign * radius) * _SCALE for sign in (-1, 1) for value in centre]
        self._draw.arc(corners, -90, 360 * share - 90, colour, round(width * _SCALE))

    def verdict(self, centre: Point, right: bool, colour: str, ink: str) -> None:
        """A tick or a cross on a disc, drawn because fonts may lack both."""
        x, y = centre
        self.dot(centre, 16, colour)
        tick = [[(x - 7, y), (x - 2, y + 5.5), (x + 7, y - 5)]]
        cross = [[(x - 5.5, y - 5.5), (x + 5.5, y + 5.5)], [(x - 5.5, y + 5.5), (x + 5.5, y - 5.5)]]
        for stroke in tick if right else cross:
            self.path(stroke, ink, 3)

    def text(self, at: Point, text: str, size: float, colour: str, anchor: str = "ls") -> None:
        """Text of a size in pixels; the anchor is Pillow's ("ls": left end of the baseline)."""
        self._draw.text((at[0] * _SCALE, at[1] * _SCALE), text, colour, _font(size), anchor)


def text_width(text: str, size: float) -> float:
    """Pixels a text takes."""
    return _font(size).getlength(text) / _SCALE


@functools.lru_cache(maxsize=256)
def fitted(text: str, size: float, width: float) -> str:
    """The text, cut where it would be wider than so many pixels."""
    if text_width(text, size) <= width:
        return text
    fits = [end for end in range(len(text)) if text_width(text[:end] + "...", size) <= width]
    return text[: max(fits, default=0)] + "..."


@functools.lru_cache(maxsize=32)
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


@functools.lru_cache(maxsize=32)
def _rounded(size: tuple[int, int], radius: float) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius * _SCALE, 255)
    return mask


@functools.lru_cache(maxsize=32)
def _hatched(size: tuple[int, int], ground: str, line: str) -> Image.Image:
    tile = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(tile)
    for x in range(-size[1], size[0], 6 * _SCALE):
        draw.line((x, size[1], x + size[1], 0), line, _SCALE)
    return tile


def ansi_page(image: NDArray[np.uint8], lines: Sequence[Text]) -> str:
    """Lines of text beside a small picture of an image [H, W, 3], with 24-bit colour codes."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(_thumbnail(image), Text("\n").join(lines))
    page = io.StringIO()
    # Without _environ, variables such as NO_COLOR would make the text depend on the machine.
    console = Console(file=page, width=100, force_terminal=True, color_system="truecolor", _environ={})
    console.print(grid)
    return page.getvalue()


def _thumbnail(image: NDArray[np.uint8]) -> Text:
    """16 x 16 pixels on 8 lines: each character is two pixels, one above the other."""
    pixels = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)).tolist()
    lines: list[Text] = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        colours = [
            (",".join(map(str, above)), ",".join(map(str, below))) for above, below in zip(upper, lower, strict=True)
        ]
        lines.append(Text.assemble(*(("▀", f"rgb({above}) on rgb({below})") for above, below in colours)))
    return Text("\n").join(lines)
