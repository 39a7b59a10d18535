"""What skipping costs without an agent: columns that agree with the baselines they name."""

import numpy as np
import pytest
from rich.console import Console
from toys import TINY

from vitskip.agents import DynamicViT, baselines
from vitskip.backbone import ViT, load_backbone, load_dataset
from vitskip.envs import ObservationLayout
from vitskip.eval.evaluation import validation_masks
from vitskip.eval.measurement import measure
from vitskip.eval.skip_tolerance import SkipTolerance, skip_tolerance
from vitskip.eval.tables import skip_table


@pytest.fixture(scope="module")
def tolerance(trained: ViT) -> SkipTolerance:
    validation, test = (load_dataset(TINY["dataset"], split) for split in ("validation", "test"))
    return skip_tolerance(trained, validation, test, static_mask_images=32)


@pytest.fixture(scope="module")
def trained() -> ViT:
    backbone = load_backbone(TINY["backbone"])
    assert isinstance(backbone, ViT)
    return backbone


def test_columns_are_the_baselines(tolerance: SkipTolerance, trained: ViT) -> None:
    test = load_dataset(TINY["dataset"], "test")
    layout = ObservationLayout.of(trained, "belief", "block")
    for k in (1, 2, 3, 4):
        net = DynamicViT(trained, baselines.first_k(layout, k)).eval()
        assert tolerance.accuracy["first k"][k - 1] == pytest.approx(measure(net, test, description="").accuracy)
    assert tolerance.accuracy["first k"][-1] == tolerance.full
    masks = validation_masks(trained, load_dataset(TINY["dataset"], "validation"), images=32)
    best = masks.keep_mask[masks.accuracy == masks.accuracy.max()]  # of equals the cheapest one
    net = DynamicViT(trained, baselines.fixed_mask(layout, best[best.sum(1).argmin()].tolist())).eval()
    assert tolerance.accuracy["best static mask"][-1] == measure(net, test).accuracy
    assert np.all(np.diff(tolerance.macs_fraction) > 0)
    assert tolerance.macs_fraction[-1] == 1


def test_masks_may_be_left_out(trained: ViT) -> None:
    validation, test = (load_dataset(TINY["dataset"], split) for split in ("validation", "test"))
    tolerance = skip_tolerance(trained, validation, test, static_mask_images=0)
    assert set(tolerance.accuracy) == {"random skip", "first k", "early exit", "early exit, falling"}


def test_the_table_has_a_row_per_level(tolerance: SkipTolerance) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(skip_table(tolerance))
    text = capture.get()
    assert f"the full net has {100 * tolerance.full:.1f}" in text
    assert sum(line.startswith("│") for line in text.splitlines()) == 4
    assert all(name in text for name in tolerance.accuracy)
