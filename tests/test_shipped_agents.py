"""Agents that come with the package: small, found by their names, and as good as their files say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import make_net
from toys import DEPTH, MERGING, TINY

from vitskip.agents import DynamicViT, run_directory, train
from vitskip.agents.run_directory import SHIPPED, read, shipped_runs
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.eval.ship import results_on, ship

IMAGES = Path(__file__).parents[2] / "shared" / "data"
NOT_BUDGETS = {"dense", "original", "unmerged", "net"}
EVERY_SHIPPED = pytest.mark.parametrize("name", shipped_runs())


def test_a_run_is_made_small(tmp_path: Path) -> None:
    """Half precision, no learning curve; the numbers are those of the copy."""
    budgets = (0.65, 0.95)
    config = TrainConfig("a2c", 16 * DEPTH, num_envs=16, env={**TINY, "budgets": budgets, "data_root": None})
    train(config, tmp_path / "run", progress_bar=False)
    with pytest.raises(ValueError, match="out: expected another folder than that of the run, got"):
        ship(tmp_path / "run", tmp_path / "small" / ".." / "run")
    ship(tmp_path / "run", tmp_path / "small", budgets=(0.65, 0.8))
    sizes = [(tmp_path / name / "backbone.safetensors").stat().st_size for name in ("run", "small")]
    assert sizes[1] < 0.7 * sizes[0]
    record = read(tmp_path / "small").record
    assert "curve" not in record
    assert record["train"]["algorithm"] == "a2c"
    test = load_dataset("tiny-digits", "test")
    copy = DynamicViT.load(tmp_path / "small")
    assert results_on(copy, test, (0.65, 0.8)) == record["test"]
    assert list(record["test"]) == ["dense", "0.65", "0.8"]
    copy.set_budget(0.8)
    accuracy = (copy(test.images).argmax(1) == test.labels).float().mean().item()
    assert record["test"]["0.8"]["accuracy"] == pytest.approx(accuracy)


def test_an_agent_on_the_net_of_another_run_says_how_that_was_trained(tmp_path: Path) -> None:
    steps = 16 * DEPTH
    train(TrainConfig("a2c", steps, 3, 16, env={**TINY}), tmp_path / "first", progress_bar=False)
    env = {**TINY, "backbone": str(tmp_path / "first")}
    train(TrainConfig("ppo", steps, 4, 16, env=env), tmp_path / "second", progress_bar=False)
    ship(tmp_path / "second", tmp_path / "small")
    record = read(tmp_path / "small").record
    trained = [(record[key]["algorithm"], record[key]["seed"]) for key in ("train", "backbone_train")]
    assert trained == [("ppo", 4), ("a2c", 3)]


def test_a_net_that_merges_is_measured_without_merging_too() -> None:
    test, net = load_dataset("tiny-digits", "test"), make_net(backbone=load_backbone(MERGING))
    found = results_on(net, test)
    with torch.no_grad():
        right = load_backbone("tiny-vit4")(test.images).argmax(1) == test.labels
    assert found["unmerged"] == {"accuracy": pytest.approx(right.float().mean().item()), "macs_fraction": 1.0}
    assert found["dense"]["macs_fraction"] < 1 and "minus_unmerged" not in found["net"]


def test_a_shipped_run_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name goes before."""
    shipped = tmp_path / "shipped"
    for folder, seed in ((shipped / "tiny", 1), (tmp_path / "here" / "tiny", 2)):
        train(TrainConfig("a2c", 16 * DEPTH, seed, 16, env={**TINY}), folder, progress_bar=False)
    monkeypatch.setattr(run_directory, "SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    assert read(Path("tiny")).record["train"]["seed"] == 1
    monkeypatch.chdir(tmp_path / "here")
    assert read(Path("tiny")).record["train"]["seed"] == 2
    with pytest.raises(FileNotFoundError, match="or one of tiny, got teeny"):
        read(Path("teeny"))


@EVERY_SHIPPED
def test_every_shipped_agent_is_small_and_runs(name: str) -> None:
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 12e6
    net, results = DynamicViT.load(name), read(Path(name)).record["test"]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert net(images).shape == (4, net.backbone.num_classes)
    for budget in map(float, set(results) - NOT_BUDGETS):
        net.set_budget(budget)
        assert net(images).shape == (4, net.backbone.num_classes)


@pytest.mark.data
@pytest.mark.timeout(3600)  # seven budgets on 10,000 images, on a machine that does other things, too
@EVERY_SHIPPED
def test_every_shipped_agent_is_as_good_as_it_says(name: str, tmp_path: Path) -> None:
    """On the whole test part; a decision may tip on another machine."""
    run = read(Path(name))
    record = run.record
    dataset = record["train"]["env"]["dataset"]
    if not (IMAGES / dataset).is_dir():
        pytest.skip(f"needs the images of {IMAGES / dataset}")
    subprocess.run([sys.executable, str(IMAGES / "unpack.py"), dataset, str(tmp_path), "--npz"], check=True)
    test = load_dataset(dataset, "test", str(tmp_path))
    budgets = tuple(sorted(float(budget) for budget in set(record["test"]) - NOT_BUDGETS))
    net = DynamicViT.load(name)
    found = results_on(net, test, budgets, run.load_original())
    assert json.loads(json.dumps(found)).keys() == record["test"].keys()
    for budget, expected in record["test"].items():
        assert found[budget]["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-3)
        assert found[budget]["macs_fraction"] == pytest.approx(expected["macs_fraction"], abs=1e-3)
