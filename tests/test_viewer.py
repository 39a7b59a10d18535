"""The viewer: every kind of frame is drawn, decisions show where they belong, bad frames are refused."""

import dataclasses
import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from vitskip.envs.viewer import HEIGHT, WIDTH, Frame, draw_ansi, draw_rgb, draw_strip

RUN, ACCENT = (0x23, 0x50, 0x9B), (0xF2, 0x8A, 0x1C)
ROWS_OF_BLOCKS = slice(65, 165)  # pixels: the blocks and the way around them, without header and numbers


def make_frame(kept: tuple[bool | None, ...] = (True, False, None, None), classes: int = 10, **changes) -> Frame:
    rng = np.random.default_rng(0)
    confidences = rng.dirichlet(np.ones(classes)).astype(np.float32)
    frame = Frame(
        image=rng.integers(0, 256, (32, 32, 3), np.uint8),
        kept=kept,
        action_unit="block",
        confidences=confidences,
        classes=tuple(str(index) for index in range(classes)),
        label=1,
        prediction=int(confidences.argmax()),
        macs_fraction=0.42,
        difficulty=0.25,
    )
    return dataclasses.replace(frame, **changes)


def plain(frame: Frame) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", draw_ansi(frame))


def changed(one: Frame, other: Frame) -> NDArray[np.bool_]:
    """The pixels [HEIGHT, WIDTH] in which two pictures differ."""
    return (draw_rgb(one) != draw_rgb(other)).any(-1)


@pytest.mark.parametrize(
    "frame",
    [
        make_frame((None,) * 12),
        make_frame((True, False) * 12),
        make_frame((None,)),
        make_frame((True,) * 100),
        make_frame((True, False, True, None, None, None), action_unit="half"),
        make_frame((False, True) * 24, action_unit="half"),
        make_frame(classes=100, label=99),
        make_frame(classes=12, label=11, prediction=0),
        make_frame(classes=2, prediction=0, difficulty=math.nan),
        make_frame(image=np.zeros((224, 160, 3), np.uint8)),
        make_frame(image=np.zeros((1, 500, 3), np.uint8)),
        make_frame(macs_fraction=1.07),
        make_frame(macs_fraction=0.0),
    ],
)
def test_every_kind_of_frame_is_drawn_alike(frame: Frame) -> None:
    picture = draw_rgb(frame)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, draw_rgb(frame))
    assert draw_ansi(frame) == draw_ansi(frame)


def test_long_names_stay_in_their_column() -> None:
    short, long = (make_frame(classes=11, label=1, prediction=2) for _ in range(2))
    long = dataclasses.replace(long, classes=tuple(f"a name of many words and no end {index}" for index in range(11)))
    below = changed(short, long)[220:]
    assert below[:, 32:176].any()
    assert not below[:, 176:240].any()
    assert not below[:, 640:].any()


@pytest.mark.parametrize(("action_unit", "depth"), [("block", 8), ("half", 8)])
def test_a_decision_changes_its_own_box(action_unit: str, depth: int) -> None:
    units = depth * (2 if action_unit == "half" else 1)
    ran = make_frame((True,) * units, action_unit=action_unit)
    centres: list[float] = []
    for unit in range(units):
        skipped = make_frame((True,) * unit + (False,) + (True,) * (units - unit - 1), action_unit=action_unit)
        pixels = changed(ran, skipped)
        columns = np.flatnonzero(pixels[ROWS_OF_BLOCKS].any(0))
        assert np.ptp(columns) < 1.6 * (WIDTH - 256) / depth
        assert not pixels[ROWS_OF_BLOCKS.stop :].any()
        centres.append(float(columns.mean()))
    per_block = units // depth
    assert np.all(np.diff(centres[::per_block]) > 20)


def test_half_units_are_stacked() -> None:
    ran = make_frame((True, True) * 4, action_unit="half")
    attention = changed(ran, make_frame((False, True) + (True,) * 6, action_unit="half"))[ROWS_OF_BLOCKS]
    mlp = changed(ran, make_frame((True, False) + (True,) * 6, action_unit="half"))[ROWS_OF_BLOCKS]
    assert np.flatnonzero(attention.any(1)).max() < np.flatnonzero(mlp.any(1)).mean()
    assert np.flatnonzero(mlp.any(1)).min() > np.flatnonzero(attention.any(1)).mean()
    picture = draw_rgb(ran)[:, 256:326]
    assert (picture[90:118] == ACCENT).all(-1).any()  # the token enters both halves
    assert (picture[130:158] == ACCENT).all(-1).any()


def test_boxes_and_the_token_show_the_decisions() -> None:
    picture = draw_rgb(make_frame((True, False, None, None)))  # 100 pixels apart, 70 wide, from x = 256
    ran, skipped, current, later = (picture[80:165, 256 + 100 * block :][:, :70] for block in range(4))
    assert ran[-20, 35].tolist() == list(RUN)
    assert skipped[20:60].min() > 190
    assert current[-20, 35].tolist() == later[-20, 35].tolist() == [255, 255, 255]
    assert (current[20:30] == ACCENT).all(-1).any()
    assert not (later == ACCENT).all(-1).any()
    assert picture[124, 291].tolist() == list(ACCENT)  # through the block that ran
    assert picture[78, 391].tolist() == list(ACCENT)  # around the one that was skipped


def test_the_current_block_is_marked() -> None:
    first, second = make_frame((None, None, None)), make_frame((True, None, None))
    assert np.flatnonzero(changed(first, second)[ROWS_OF_BLOCKS].any(0)).max() < 256 + 2 * 100
    assert "deciding block 1 of 3" in plain(first)
    assert "deciding MLP of block 2 of 2" in plain(make_frame((True, False, True, None), action_unit="half"))
    assert "1 of 3 blocks ran" in plain(make_frame((True, False, False)))


def test_the_verdict_waits_for_the_end() -> None:
    right, wrong = make_frame(prediction=1), make_frame(prediction=2)
    assert not {"✓", "✗"} & set(plain(right) + plain(wrong))
    assert "✓" in plain(dataclasses.replace(right, kept=(True, False)))
    assert "✗" in plain(dataclasses.replace(wrong, kept=(True, False)))
    badge = np.s_[242:274, 176:208]
    assert np.all(draw_rgb(right)[badge] == 255)
    pictures = [draw_rgb(dataclasses.replace(frame, kept=(True, False)))[badge] for frame in (right, wrong)]
    means = [picture.reshape(-1, 3).mean(0) for picture in pictures]
    assert means[0][1] > means[0][0]  # green over red
    assert means[1][0] > means[1][1]


def test_the_gauge_shows_the_share() -> None:
    blue = [
        (draw_rgb(make_frame(macs_fraction=share))[250:372, 700:848] == RUN).all(-1).sum() for share in (0.2, 0.8, 1, 2)
    ]
    assert blue[1] == pytest.approx(4 * blue[0], rel=0.05)
    assert blue[2] == blue[3] > blue[1]
    assert blue[0] > 300


def test_ansi_says_what_matters() -> None:
    frame = make_frame(prediction=2)
    text = plain(frame)
    assert "prediction 2 · label 1" in text
    assert "42% of dense" in text
    assert f"{frame.confidences.max():.0%}" in text
    assert "██ ░░ ▶▶ ··" in text
    assert "difficulty 0.25" in text
    assert "difficulty" not in plain(make_frame(difficulty=math.nan))
    assert "\x1b[" in draw_ansi(frame)


def test_ansi_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw_ansi(make_frame())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert draw_ansi(make_frame()) == before


def test_the_image_is_neither_changed_nor_shared() -> None:
    frame = make_frame()
    before = frame.image.copy()
    picture = draw_rgb(frame)
    draw_ansi(frame)
    picture[:] = 0
    assert np.array_equal(frame.image, before)
    assert not np.shares_memory(picture, frame.image)
    assert draw_rgb(frame).any()


def test_the_image_is_enlarged_to_the_left() -> None:
    image = np.full((2, 2, 3), (10, 20, 30), np.uint8)
    image[0, 0] = (200, 100, 50)
    picture = draw_rgb(make_frame(image=image, difficulty=math.nan))
    assert picture[80, 80].tolist() == [200, 100, 50]
    assert picture[80, 160].tolist() == [10, 20, 30]
    assert picture[37, 33].tolist() != [200, 100, 50]  # the corner is round


def test_strip_is_made_of_frames() -> None:
    frames = [make_frame((True, False)), make_frame((False, True)), make_frame((True, True))]
    strip = draw_strip(frames, columns=2, spacing=10)
    assert strip.shape == (2 * HEIGHT + 30, 2 * WIDTH + 30, 3)
    assert np.array_equal(strip[10 : 10 + HEIGHT, 20 + WIDTH : -10], draw_rgb(frames[1]))
    assert np.array_equal(strip[20 + HEIGHT : -10, 10 : 10 + WIDTH], draw_rgb(frames[2]))
    assert draw_strip(frames).shape == (3 * HEIGHT + 48, WIDTH + 24, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((32, 32, 3), np.float32)}, r"image: expected uint8 \[H, W, 3\], got float32"),
        ({"image": np.zeros((3, 32, 32), np.uint8)}, r"image: .* got uint8 \[3, 32, 32\]"),
        ({"image": np.zeros((32, 32), np.uint8)}, "image"),
        ({"image": np.zeros((0, 32, 3), np.uint8)}, "image"),
        ({"confidences": np.zeros(9, np.float32)}, r"confidences: expected \[10\] as in classes, got \[9\]"),
        ({"confidences": np.zeros((10, 1), np.float32)}, "confidences"),
        ({"confidences": np.full(10, np.nan, np.float32)}, "confidences"),
        ({"confidences": np.full(10, 3, np.float32)}, "confidences"),
        ({"classes": ()}, "confidences"),
        ({"kept": ()}, "kept"),
        ({"kept": (True, None, None), "action_unit": "half"}, "kept: .* got 3"),
        ({"action_unit": "layer"}, "action_unit: expected 'block' or 'half', got 'layer'"),
        ({"label": 10}, r"label: expected a class in 0\.\.9, got 10"),
        ({"prediction": -1}, "prediction"),
        ({"macs_fraction": math.nan}, "macs_fraction"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_frames_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_frame(), **changes)


def test_an_empty_strip_is_refused() -> None:
    with pytest.raises(ValueError, match="frames"):
        draw_strip([])
    with pytest.raises(ValueError, match="columns"):
        draw_strip([make_frame()], columns=0)
