"""The suite of backbones: equal training for all, resumed, and told in one table."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from toys import TINY as NAMES

from vitskip import backbone_cli
from vitskip.backbone import load_backbone
from vitskip.backbone.recipe import Recipe
from vitskip.eval import backbone_suite

TINY = {"embed_dim": 8, "num_heads": 1, "mlp_ratio": 1.0, "patch_size": 16, "stem": "patch"}


@pytest.fixture
def tiny_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    recipe = Recipe(epochs=1, batch_size=64, full_share=0.5, augmentation="none")
    monkeypatch.setitem(backbone_suite.SIZES, "small", (TINY, recipe))
    monkeypatch.setattr(backbone_suite, "SHALLOW", (3,))
    return tmp_path


@pytest.mark.parametrize("size", ["tiny", "small", "large"])
def test_rivals_differ_in_depth_and_skipping_only(size: str) -> None:
    nets = backbone_suite.suite(size)
    architecture, recipe = nets["vit12"]
    assert recipe.skip == "block"
    for name, (other, its_recipe) in nets.items():
        assert other == {**architecture, "depth": int(name.removeprefix("vit").split("-")[0])}
        skip = {"vit12": {}, "vit12-nested": {"skip": "tail", "full_share": 1.0}}.get(name, {"skip": "none"})
        assert its_recipe == replace(recipe, **skip)


def test_the_suite_trains_what_is_missing_and_tables_what_is_there(
    tiny_suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone_suite.main(
        NAMES["dataset"], out=tiny_suite, only=("vit12", "vit3-plain"), json_path=tiny_suite / "all.json"
    )
    assert sorted(path.name for path in tiny_suite.iterdir()) == [
        "all.json",
        "tiny-digits-small-vit12",
        "tiny-digits-small-vit3-plain",
    ]
    cards = json.loads((tiny_suite / "all.json").read_text())
    assert set(cards["vit12"]["test"]["accuracy"]) == {
        "random skip",
        "first k",
        "best static mask",
        "early exit",
        "early exit, falling",
    }
    assert cards["vit3-plain"]["recipe"]["skip"] == "none"
    assert load_backbone(str(tiny_suite / "tiny-digits-small-vit3-plain")).depth == 3
    first = capsys.readouterr().out
    monkeypatch.setattr(backbone_suite, "pretrain_and_measure", None)  # nothing is trained again
    backbone_suite.main(NAMES["dataset"], out=tiny_suite, only=("vit12",), figure=tiny_suite / "all.png")
    assert (tiny_suite / "all.png").stat().st_size > 10_000
    assert first.splitlines()[3:] == capsys.readouterr().out.splitlines()[3:]
    assert "best static mask" in first


def test_the_command_of_a_card_gives_the_same_run(tiny_suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="figure: expected vit12 to be trained, got vit3-plain"):
        backbone_suite.main(NAMES["dataset"], out=tiny_suite, only=("vit3-plain",), figure=tiny_suite / "all.png")
    card = json.loads((tiny_suite / "tiny-digits-small-vit3-plain" / "card.json").read_text())
    program, command, *words = shlex.split(card["command"])
    assert (program, command) == ("vitskip", "pretrain")
    given = {}
    monkeypatch.setattr(
        backbone_cli,
        "pretrain_and_measure",
        lambda out, vit, arch, recipe, **rest: given.update(arch=arch, recipe=recipe),
    )
    tyro.cli(backbone_cli.pretrain, args=words)
    assert given["arch"] == card["architecture"]
    assert given["recipe"] == Recipe(**card["recipe"])
