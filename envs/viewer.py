"""Pictures of an episode: the image, the blocks that ran or were skipped, what the head says and what it cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor
from rich.text import Text

from .canvas import Box, Canvas, Point, ansi_page, fitted, text_width

__all__ = ["HEIGHT", "WIDTH", "Frame", "draw_ansi", "draw_rgb", "draw_strip"]

WIDTH, HEIGHT = 880, 416  # pixels of every picture, whatever the depth

_PAPER, _INK, _MUTED, _FAINT, _TRACK = "#ffffff", "#1b2433", "#697586", "#cbd3dd", "#edf0f4"
_RUN, _RUN_PALE, _SKIP, _ACCENT, _GOOD, _BAD = "#23509b", "#9fb3d1", "#f4f6f8", "#f28a1c", "#0f8b6d", "#c8382e"
_LEFT, _SIDE, _ROW, _RIGHT = 32, 176, 256, 848  # x of the image, its side, x of the first block, right margin
_TOP, _MIDDLE, _BOTTOM = 87, 124, 161  # y of the blocks; the token travels along the middle
_TAIL = 16  # pixels the token travels before the first and after the last block
_CAPTION = 238  # y of the captions below
_BARS = (256, 250, 636, 390)  # the class confidences
_DIAL = (772, 312)  # centre of the compute gauge
_LIKELIEST = 5  # classes shown where there are more than ten
_STEPS: list[float] = np.linspace(0, 1, 17).tolist()  # along a curve
_CELLS = {True: ("██", "#4f83d6"), False: ("░░", "#8a94a3"), None: ("··", "#8a94a3")}  # terminal: glyphs, colour


@dataclass(frozen=True, eq=False)
class Frame:
    """What there is to show at one step of an episode.

    Attributes:
        image: [H, W, 3] uint8; red, green, blue.
        kept: one entry per unit: True ran, False skipped, None undecided. The first None is being decided.
        action_unit: "block" for L units, "half" for 2L: attention and MLP of each block in turn.
        confidences: [K] float32 in [0, 1], the class probabilities the head would give now.
        classes: [K] names.
        label: true class in 0..K-1.
        prediction: the head's class now, in 0..K-1.
        macs_fraction: MACs spent so far over those of the dense network; the gauge is full at 1.
        difficulty: in [0, 1]; NaN where unknown, and then not shown.

    Raises:
        ValueError: where a field is not as above.
    """

    image: NDArray[np.uint8]
    kept: tuple[bool | None, ...]
    action_unit: Literal["block", "half"]
    confidences: NDArray[np.float32]
    classes: tuple[str, ...]
    label: int
    prediction: int
    macs_fraction: float
    difficulty: float

    def __post_init__(self) -> None:
        shape, size = self.image.shape, len(self.classes)
        if self.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"image: expected uint8 [H, W, 3], got {self.image.dtype} {list(shape)}")
        if self.action_unit not in ("block", "half"):
            raise ValueError(f"action_unit: expected 'block' or 'half', got {self.action_unit!r}")
        if not self.kept or (self.action_unit == "half" and len(self.kept) % 2):
            raise ValueError(f"kept: expected L >= 1 units, 2L with 'half', got {len(self.kept)}")
        if self.confidences.shape != (size,) or not size:
            raise ValueError(f"confidences: expected [{size}] as in classes, got {list(self.confidences.shape)}")
        if not np.all((self.confidences >= 0) & (self.confidences <= 1.001)):
            raise ValueError(f"confidences: expected probabilities in [0, 1], got {self.confidences}")
        for name, index in (("label", self.label), ("prediction", self.prediction)):
            if not 0 <= index < size:
                raise ValueError(f"{name}: expected a class in 0..{size - 1}, got {index}")
        if not 0 <= self.macs_fraction < math.inf:
            raise ValueError(f"macs_fraction: expected a finite number >= 0, got {self.macs_fraction}")

    @property
    def current(self) -> int | None:
        """The unit being decided; None at the end."""
        return self.kept.index(None) if None in self.kept else None

    @property
    def finished(self) -> bool:
        """Whether every unit is decided."""
        return None not in self.kept

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.kept) // (2 if self.action_unit == "half" else 1)


def draw_rgb(frame: Frame) -> NDArray[np.uint8]:
    """Draw one frame as [HEIGHT, WIDTH, 3] uint8."""
    canvas = Canvas(WIDTH, HEIGHT, paper=_PAPER)
    for draw in (_draw_image, _draw_header, _draw_blocks, _draw_token, _draw_verdict, _draw_confidences, _draw_compute):
        draw(canvas, frame)
    return canvas.pixels()


def draw_strip(frames: Sequence[Frame], columns: int = 1, *, spacing: int = 12) -> NDArray[np.uint8]:
    """Draw several episodes as one picture, in reading order.

    Args:
        frames: at least one; usually the last frame of each episode.
        columns: frames side by side.
        spacing: pixels between and around the frames.

    Returns:
        [rows * (HEIGHT + spacing) + spacing, columns * (WIDTH + spacing) + spacing, 3] uint8.

    Raises:
        ValueError: where there is nothing to draw.
    """
    if not frames or columns < 1 or spacing < 0:
        raise ValueError(f"expected frames, columns >= 1, spacing >= 0, got {len(frames)}, {columns}, {spacing}")
    high, wide = HEIGHT + spacing, WIDTH + spacing
    rows = math.ceil(len(frames) / columns)
    strip = np.empty((rows * high + spacing, columns * wide + spacing, 3), np.uint8)
    strip[:] = ImageColor.getrgb(_TRACK)
    for index, frame in enumerate(frames):
        top, left = spacing + index // columns * high, spacing + index % columns * wide
        strip[top : top + HEIGHT, left : left + WIDTH] = draw_rgb(frame)
    return strip


def draw_ansi(frame: Frame) -> str:
    """Draw one frame for a terminal: about eight lines of up to 96 columns with 24-bit colour codes."""
    lines = [Text(_state(frame), "bold"), *_block_lines(frame)]
    for index in np.argsort(-frame.confidences, kind="stable")[:3].tolist():
        lines.append(_gauge_line(frame.classes[index], float(frame.confidences[index])))
    lines.append(_gauge_line("compute", frame.macs_fraction).append(" of dense"))
    lines.append(Text(f"prediction {frame.classes[frame.prediction]} · label {frame.classes[frame.label]}", "bold"))
    if frame.finished:
        lines[-1].append(" ✓" if frame.prediction == frame.label else " ✗", _verdict_colour(frame))
    if not math.isnan(frame.difficulty):
        lines[-1].append(f"  difficulty {frame.difficulty:.2f}", "not bold #8a94a3")
    return ansi_page(frame.image, lines)


def _state(frame: Frame) -> str:
    """What is going on, in words."""
    if frame.current is None:
        units = "blocks" if frame.action_unit == "block" else "half-blocks"
        return f"{sum(map(bool, frame.kept))} of {len(frame.kept)} {units} ran"
    if frame.action_unit == "block":
        return f"deciding block {frame.current + 1} of {frame.depth}"
    return f"deciding {('attention', 'MLP')[frame.current % 2]} of block {frame.current // 2 + 1} of {frame.depth}"


def _verdict_colour(frame: Frame) -> str:
    """Neutral until the episode ends."""
    if not frame.finished:
        return _INK
    return _GOOD if frame.prediction == frame.label else _BAD


def _draw_image(canvas: Canvas, frame: Frame) -> None:
    left, _, _, bottom = canvas.picture(frame.image, (_LEFT + _SIDE / 2, _MIDDLE), _SIDE, 12)
    if not math.isnan(frame.difficulty):
        text = f"difficulty {frame.difficulty:.2f}"
        canvas.box((left + 8, bottom - 28, left + 24 + text_width(text, 11), bottom - 8), 10, _PAPER)
        canvas.text((left + 16, bottom - 14), text, 11, _INK)


def _draw_header(canvas: Canvas, frame: Frame) -> None:
    canvas.text((_ROW, 50), _state(frame), 17, _INK)
    right = float(_RIGHT)
    for name, keep in (("skipped", False), ("run", True)):
        left = right - text_width(name, 12) - 20
        canvas.text((left + 20, 49), name, 12, _MUTED)
        _draw_unit(canvas, (left, 38, left + 14, 52), keep)
        right = left - 18


def _boxes(frame: Frame) -> list[Box]:
    """One rectangle per unit; the two halves of a block are stacked, attention above."""
    slot = min((_RIGHT - _TAIL - _ROW) / (frame.depth - 0.3), 100.0)
    columns = [(_ROW + slot * block, _ROW + slot * (block + 0.7)) for block in range(frame.depth)]
    rows = ((_TOP, _BOTTOM),) if frame.action_unit == "block" else ((_TOP, _MIDDLE - 4), (_MIDDLE + 4, _BOTTOM))
    return [(left, top, right, bottom) for left, right in columns for top, bottom in rows]


def _draw_unit(canvas: Canvas, box: Box, keep: bool | None, current: bool = False) -> None:
    radius = min(6.0, (box[2] - box[0]) / 4)
    if keep:
        canvas.box(box, radius, _RUN)
    elif keep is None:
        canvas.box(box, radius, _PAPER, _ACCENT if current else _FAINT, 2 if current else 1)
    else:
        canvas.hatch(box, radius, _SKIP, _FAINT)


def _draw_blocks(canvas: Canvas, frame: Frame) -> None:
    boxes, per_block = _boxes(frame), len(frame.kept) // frame.depth
    canvas.path([(_LEFT + _SIDE, _MIDDLE), (boxes[-1][2] + _TAIL, _MIDDLE)], _FAINT, 1.5)
    for unit, (box, keep) in enumerate(zip(boxes, frame.kept, strict=True)):
        _draw_unit(canvas, box, keep, unit == frame.current)
    every = math.ceil(frame.depth * 16 / (_RIGHT - _ROW))  # there is room for so many numbers only
    for block in range(0, frame.depth, every):
        left, _, right, _ = boxes[block * per_block]
        active = frame.current is not None and frame.current // per_block == block
        colour = _ACCENT if active else _MUTED
        canvas.text(((left + right) / 2, _BOTTOM + 18), str(block + 1), 11, colour, "ms")
    if per_block == 2:
        for name, (_, top, _, bottom) in zip(("attn", "mlp"), boxes[:2], strict=True):
            canvas.text((_ROW - 12, (top + bottom) / 2), name, 10, _MUTED, "rm")


def _draw_token(canvas: Canvas, frame: Frame) -> None:
    """The token's way so far."""
    boxes = _boxes(frame)
    points = _way_of_blocks(frame, boxes) if frame.action_unit == "block" else _way_of_halves(frame, boxes)
    if frame.finished:
        points += _ramp(points[-1], (boxes[-1][2] + _TAIL, _MIDDLE))
    canvas.path(points, _ACCENT, 2.5)
    canvas.dot(points[-1], 6.5, _PAPER)
    canvas.dot(points[-1], 4.5, _ACCENT)


def _way_of_blocks(frame: Frame, boxes: Sequence[Box]) -> list[Point]:
    """Through the blocks that ran, over those skipped."""
    points: list[Point] = [(_LEFT + _SIDE, _MIDDLE), (_ROW - _TAIL, _MIDDLE)]
    for (left, top, right, _), keep in zip(boxes, frame.kept, strict=True):
        if keep is None:
            return points + _ramp(points[-1], (left, _MIDDLE))
        level = _MIDDLE if keep else top - 9
        points += [*_ramp(points[-1], (left, level)), (right, level)]
    return points


def _way_of_halves(frame: Frame, boxes: Sequence[Box]) -> list[Point]:
    """Along the residual stream between the halves, with a detour into each that ran."""
    points: list[Point] = [(_LEFT + _SIDE, _MIDDLE)]
    for unit, ((left, top, right, bottom), keep) in enumerate(zip(boxes, frame.kept, strict=True)):
        half = (right - left) / 1.4  # of a slot: the box and the gap beside it
        start = (left + right) / 2 - (0 if unit % 2 else half)
        if keep is None:
            return [*points, ((left + right) / 2 if unit % 2 else left, _MIDDLE)]
        rise = (top + bottom) / 2 - _MIDDLE if keep else 0.0
        points += [(start + half * t, _MIDDLE + rise * (1 - math.cos(math.pi * t) ** 4)) for t in _STEPS]
    return points


def _ramp(start: Point, end: Point) -> list[Point]:
    """A smooth way from one height to another."""
    if start[1] == end[1]:
        return [end]
    wide, high = end[0] - start[0], end[1] - start[1]
    return [(start[0] + wide * t, start[1] + high * t * t * (3 - 2 * t)) for t in _STEPS]


def _draw_verdict(canvas: Canvas, frame: Frame) -> None:
    width = _SIDE - 44  # beside it the tick or cross
    names = [frame.classes[frame.prediction], frame.classes[frame.label]]
    fits = [size for size in (28, 22, 18) if max(text_width(name, size) for name in names) <= width]
    size = max(fits, default=15)
    for caption, name, top, colour in (
        ("prediction", names[0], _CAPTION, _verdict_colour(frame)),
        ("label", names[1], _CAPTION + 74, _INK),
    ):
        canvas.text((_LEFT, top), caption, 12, _MUTED)
        canvas.text((_LEFT, top + 31), fitted(name, size, width), size, colour)
    canvas.dot((_LEFT + text_width("label", 12) + 9, _CAPTION + 70), 3, _INK)  # as beside the label's bar
    if frame.finished:
        right = frame.prediction == frame.label
        canvas.verdict((_LEFT + _SIDE - 16, _CAPTION + 20), right, _verdict_colour(frame), _PAPER)


def _draw_confidences(canvas: Canvas, frame: Frame) -> None:
    """Every class in its order up to ten; beyond, the likeliest, best first."""
    shown = list(range(len(frame.classes)))
    if len(shown) > 10:
        shown = np.argsort(-frame.confidences, kind="stable")[:_LIKELIEST].tolist()
    left, top, right, bottom = _BARS
    step = min((bottom - top) / len(shown), 28.0)
    size = min(13.0, step * 0.84)
    names = [fitted(frame.classes[index], size, 130) for index in shown]
    start = left + max(text_width(name, size) for name in names) + 10
    canvas.text((left, _CAPTION), "class confidence", 12, _MUTED)
    for row, (index, name) in enumerate(zip(shown, names, strict=True)):
        y, share, chosen = top + step * (row + 0.5), float(frame.confidences[index]), index == frame.prediction
        canvas.text((start - 10, y), name, size, _INK if chosen else _MUTED, "rm")
        canvas.text((right, y), f"{share:.0%}", size, _INK if chosen else _MUTED, "rm")
        _draw_bar(canvas, (start, right - 38), y, min(step * 0.6, 11.0), share, _RUN if chosen else _RUN_PALE)
        if index == frame.label:
            canvas.dot((left - 10, y), 3, _INK)


def _draw_bar(canvas: Canvas, ends: Point, y: float, thick: float, share: float, colour: str) -> None:
    (start, end), top, bottom = ends, y - thick / 2, y + thick / 2
    length = (end - start) * min(share, 1.0)
    canvas.box((start, top, end, bottom), thick / 2, _TRACK)
    if length > 0.5:
        canvas.box((start, top, start + length, bottom), min(thick, length) / 2, colour)


def _draw_compute(canvas: Canvas, frame: Frame) -> None:
    canvas.ring(_DIAL, 54, 1.0, _TRACK, 11)
    if frame.macs_fraction >= 0.005:
        canvas.ring(_DIAL, 54, min(frame.macs_fraction, 1.0), _RUN, 11)
    canvas.text(_DIAL, f"{frame.macs_fraction:.0%}", 26, _INK, "mm")
    canvas.text((_DIAL[0], _CAPTION), "compute", 12, _MUTED, "ms")
    canvas.text((_DIAL[0], _DIAL[1] + 74), "of dense", 12, _MUTED, "ms")


def _gauge_line(name: str, share: float, cells: int = 24) -> Text:
    filled = round(cells * min(share, 1.0))
    line = Text(f"{name[:12]:<12} ").append("━" * filled, _CELLS[True][1])
    return line.append("─" * (cells - filled), _CELLS[False][1]).append(f" {share:.0%}")


def _block_lines(frame: Frame) -> list[Text]:
    """The blocks, 24 on a line: their numbers, then one line per half."""
    per_block = len(frame.kept) // frame.depth
    lines: list[Text] = []
    for first in range(0, frame.depth, 24):
        blocks = range(first, min(first + 24, frame.depth))
        lines.append(Text(" ".join(f"{block + 1:>2}" for block in blocks), _CELLS[None][1]))
        for part in range(per_block):
            units = [block * per_block + part for block in blocks]
            marks = [("▶▶", _ACCENT) if unit == frame.current else _CELLS[frame.kept[unit]] for unit in units]
            lines.append(Text(" ").join(Text(*mark) for mark in marks))
    return lines
