"""Pictures of results: PNG files with something on them that follows the numbers."""

from pathlib import Path

import numpy as np
import pytest
from nets import make_net, make_policy
from numpy.typing import NDArray
from PIL import Image
from toys import tiny_core

from vitskip.agents import DynamicViT
from vitskip.backbone import load_backbone, load_dataset
from vitskip.envs import ObservationLayout
from vitskip.envs.single import episode_frame
from vitskip.envs.viewer import WIDTH, draw_strip
from vitskip.eval.figures import (
    CURVE_POINTS,
    _binned,
    draw_accuracy_over_compute,
    draw_episodes,
    draw_reward_curves,
    draw_speed_ups,
    shown_range,
)

CURVE = {
    "timesteps": [1e5, 2e5, 3e5],
    "episode_return": [0.2, 0.5, 0.6],
    "success_rate": [0.7, 0.8, 0.85],
    "macs_fraction": [0.9, 0.6, 0.5],
}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """RGB pixels; the file is a PNG."""
    assert path.read_bytes().startswith(b"\x89PNG")
    return np.asarray(Image.open(path).convert("RGB"))


def share_drawn(pixels: NDArray[np.uint8]) -> float:
    """Share of the pixels that are not background."""
    return float((pixels < 250).any(-1).mean())


def test_reward_curves(tmp_path: Path) -> None:
    draw_reward_curves({"PPO": CURVE}, tmp_path / "one.png")
    draw_reward_curves({"PPO": CURVE, "A2C": {**CURVE, "success_rate": [0.1, 0.2, 0.3]}}, tmp_path / "two.png")
    one, two = read_picture(tmp_path / "one.png"), read_picture(tmp_path / "two.png")
    assert one.shape[1] > 2 * one.shape[0] > 600  # three panels side by side
    assert 0.01 < share_drawn(one) < 0.5
    assert (one != two).any()


def test_speed_ups(tmp_path: Path) -> None:
    networks = {"agent": {8: 2.0, 1: 0.5}, "small net": {1: 2.0, 8: 2.1}}
    draw_speed_ups(networks, tmp_path / "thin.png", lines=("small net",))
    draw_speed_ups(networks, tmp_path / "thick.png")
    draw_speed_ups({**networks, "agent": {8: 2.0, 1: 1.5}}, tmp_path / "faster.png", lines=("small net",))
    thin, thick, faster = (read_picture(tmp_path / f"{name}.png") for name in ("thin", "thick", "faster"))
    assert min(thin.shape[:2]) > 400
    assert (thin != thick).any() and (thin != faster).any()


def test_lines_far_below_leave_the_picture() -> None:
    points = {"random skip": [(0.3, 0.1), (0.5, 0.2)], "first k": [(0.3, 0.8)], "PPO": [(0.3, 0.88), (0.5, 0.9)]}
    thin = ("random skip", "first k")
    assert shown_range(points, thin) == pytest.approx((0.837, 0.903))
    assert shown_range(points, ()) == pytest.approx((0.06, 0.94))
    assert shown_range({"PPO": [(0.3, 0.9)]}, ()) == pytest.approx((0.89, 0.91))


def test_accuracy_over_compute(tmp_path: Path) -> None:
    points = {"first k": [(1.0, 0.9), (0.3, 0.5), (0.6, 0.8)], "PPO": [(0.5, 0.85)]}
    draw_accuracy_over_compute(points, tmp_path / "lines.png", lines=("first k",))
    draw_accuracy_over_compute(points, tmp_path / "dots.png")
    lines, dots = read_picture(tmp_path / "lines.png"), read_picture(tmp_path / "dots.png")
    assert min(lines.shape[:2]) > 400
    assert 0.01 < share_drawn(lines) < 0.5
    assert (lines != dots).any()
    ordered = {name: sorted(values) for name, values in points.items()}
    draw_accuracy_over_compute(ordered, tmp_path / "again.png", lines=("first k",))
    assert np.array_equal(read_picture(tmp_path / "again.png"), lines)  # joined in order of compute


@pytest.mark.parametrize(
    ("rule", "action_unit", "kind"), [("early-exit", "block", "belief"), ("mlp", "half", "tokens")]
)
def test_episodes(tmp_path: Path, rule: str, action_unit: str, kind: str) -> None:
    net, dataset, index = make_net(rule, action_unit, kind), load_dataset("tiny-digits", "test"), [3, 0, 41]
    draw_episodes(net, dataset, index, tmp_path / "episodes.png")
    net(dataset.images[index])
    core = tiny_core(3, split="test", observation=kind, action_unit=action_unit)
    core.reset(np.arange(3), np.array(index))
    for kept in net.last_trace.keep_mask.T:
        core.step(kept.long().numpy())
    picture = read_picture(tmp_path / "episodes.png")
    expected = draw_strip([episode_frame(core, row) for row in range(3)], columns=picture.shape[1] // WIDTH)
    assert np.array_equal(picture, expected)
    assert expected.std() > 5


def test_episodes_of_a_net_that_is_told_its_budget(tmp_path: Path) -> None:
    vit, dataset = load_backbone("tiny-vit4"), load_dataset("tiny-digits", "test")
    net = DynamicViT(vit, make_policy("mlp", ObservationLayout.of(vit, "belief", "block", True))).eval()
    net.budgets = {0.1: -4.0, 0.9: 4.0}  # leans far apart, so that the two pictures differ
    pictures = []
    for budget in net.budgets:
        net.set_budget(budget)
        draw_episodes(net, dataset, [0, 1, 2], tmp_path / "episodes.png")
        pictures.append(read_picture(tmp_path / "episodes.png"))
    assert (pictures[0] != pictures[1]).any()


def test_episodes_of_a_planner_and_of_a_net_with_a_memory(tmp_path: Path) -> None:
    dataset = load_dataset("tiny-digits", "test")
    for rule in ("plan", "lstm"):
        draw_episodes(make_net(rule), dataset, [0, 1], tmp_path / f"{rule}.png")
        assert read_picture(tmp_path / f"{rule}.png").std() > 5


def test_curves_of_many_rollouts_are_means_of_neighbours() -> None:
    assert _binned([1.0, 2.0, 3.0]).tolist() == [1, 2, 3]
    noisy = [0.0, 1.0] * 500
    assert _binned(noisy).tolist() == [0.5] * CURVE_POINTS
