"""Backbones by name and by folder, their cards, and what training starts from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make_net

from vitskip.agents import DynamicViT
from vitskip.agents.run_directory import read
from vitskip.backbone.backbones import (
    SHIPPED,
    build_backbone,
    load_backbone,
    original_name,
    read_card,
    register_backbone,
)
from vitskip.backbone.macs import Macs
from vitskip.backbone.start import start_backbone
from vitskip.backbone.token_merging import merge_in_stem, unmerged
from vitskip.backbone.vit import ViT
from vitskip.backbone.weights import save_weights

SMALL = {
    "family": "vit",
    "image_size": 8,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `vitskip pretrain` leaves it."""
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.safetensors", build_backbone(SMALL))
    (tmp_path / "card.json").write_text(json.dumps({"architecture": SMALL}))
    return tmp_path


def test_a_folder_is_a_backbone_by_its_path(folder: Path) -> None:
    first, second = load_backbone(str(folder)), load_backbone(str(folder))
    assert isinstance(first, ViT)
    assert first is not second
    assert first.num_classes == 3
    assert not first.training
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(first(images), second(images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "expected JSON"),
        ("[1]", "expected a model card with an architecture"),
        ('{"architecture": 3}', "expected a model card with an architecture"),
        ('{"architecture": {"family": "vitt"}}', "unknown family of ViTs 'vitt': .*did you mean 'vit'"),
        ('{"architecture": {"dept": 3}}', "architecture: expected arguments of family 'vit'"),
        ('{"architecture": {"depth": 3}}', "weights: expected the tensors of this network"),
    ],
)
def test_a_folder_with_a_bad_card_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "card.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_backbone(str(folder))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="weights: expected a safetensors file, found none"):
        load_backbone(str(folder))


def test_a_path_that_is_no_folder_of_ours_is_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown backbone"):
        load_backbone(str(tmp_path))


@pytest.fixture(params=["tiny-vit4", "tome:1:tiny-vit4", "card", "tome:1:card"])
def run(request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> tuple[Path, str, DynamicViT]:
    """A run directory as joint training leaves it, the name of its backbone, and the net."""
    name = request.param.replace("card", str(folder))
    net = make_net(backbone=load_backbone(name))
    with torch.no_grad():
        for weight in net.backbone.parameters():
            weight.mul_(1.1)
    net.save(tmp_path / "run", backbone_name=name)
    return tmp_path / "run", name, net


def test_what_joint_training_made_of_a_backbone_is_one_by_its_path(run: tuple[Path, str, DynamicViT]) -> None:
    path, name, net = run
    images = torch.rand(2, 3, net.backbone.image_size, net.backbone.image_size)
    found = load_backbone(str(path))
    assert torch.equal(found(images), net.backbone(images))
    assert not torch.equal(found(images), load_backbone(name)(images))
    assert found.macs == net.backbone.macs
    assert original_name(str(path)) == name.removeprefix("tome:1:")


def test_an_agent_on_it_is_reloaded(tmp_path: Path, run: tuple[Path, str, DynamicViT]) -> None:
    path, name, net = run
    images = torch.rand(2, 3, net.backbone.image_size, net.backbone.image_size)
    make_net(backbone=load_backbone(str(path))).save(tmp_path / "again", backbone_name=str(path))
    if "tiny" not in name:  # what a factory makes is not known from the files
        shutil.rmtree(path)
    assert torch.equal(DynamicViT.load(tmp_path / "again").backbone(images), net.backbone(images))
    original = read(tmp_path / "again").load_original()
    assert original is not None
    assert torch.equal(original(images), load_backbone(name.removeprefix("tome:1:"))(images))


def test_it_can_merge_another_number_of_tokens(tmp_path: Path, run: tuple[Path, str, DynamicViT]) -> None:
    path, name, net = run
    merged = f"tome:2:{path}"
    images = torch.rand(2, 3, net.backbone.image_size, net.backbone.image_size)
    trained = unmerged(net.backbone)
    assert isinstance(trained, ViT)
    expected = merge_in_stem(trained, 2)(images)
    assert torch.equal(load_backbone(merged)(images), expected)
    make_net(backbone=load_backbone(merged)).save(tmp_path / "again", backbone_name=merged)
    assert torch.equal(DynamicViT.load(tmp_path / "again").backbone(images), expected)
    assert original_name(merged) == name.removeprefix("tome:1:")


@pytest.mark.parametrize("name", [None, 3, "."])
def test_a_run_that_names_no_other_backbone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"architecture": {}, "backbone": name}))
    monkeypatch.chdir(tmp_path)
    for of in (load_backbone, original_name):
        with pytest.raises(ValueError, match=r"run.json: expected the name of another backbone, got"):
            of(str(tmp_path))


@pytest.mark.parametrize("card", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_backbone_loads_and_fits_its_card(card: Path) -> None:
    backbone = load_backbone(card.stem)
    architecture = read_card(card)["architecture"]
    assert (backbone.depth, backbone.num_classes) == (architecture["depth"], architecture["num_classes"])
    assert card.with_suffix(".safetensors").stat().st_size < 12e6
    size = backbone.image_size
    assert torch.isfinite(backbone(torch.rand(2, 3, size, size))).all()


def test_training_goes_on_from_a_folder_with_its_own_head(folder: Path) -> None:
    backbone, architecture = start_backbone(str(folder), 3)
    images = torch.rand(2, 3, 8, 8)
    assert architecture == SMALL
    assert torch.equal(backbone(images), load_backbone(str(folder))(images))


def test_another_number_of_classes_gets_a_fresh_head_on_the_same_body(folder: Path) -> None:
    backbone, architecture = start_backbone(str(folder), 5)
    old = load_backbone(str(folder))
    images = torch.rand(2, 3, 8, 8)
    assert architecture == {**SMALL, "num_classes": 5}
    assert backbone(images).shape == (2, 5)
    tokens = [net.run_block(1, net.run_block(0, net.embed(images))) for net in (backbone, old)]
    assert torch.equal(*tokens)


def test_torchvision_by_name() -> None:
    backbone, architecture = start_backbone("torchvision:vit_b_32", 7)
    assert backbone.num_classes == 7
    assert architecture == {"family": "torchvision", "name": "vit_b_32", "num_classes": 7}


@pytest.mark.parametrize(
    ("start", "weights", "message"),
    [
        ("digits-vit13", None, "start: expected a shipped name, a folder"),
        ("torchvison:vit_b_16", None, "unknown family of ViTs 'torchvison': .*did you mean 'torchvision'"),
        ("torchvision:vit_b_61", None, "unknown torchvision ViT 'vit_b_61': .*did you mean"),
        ("digits-vit12", "weights.pt", "weights: expected none beside 'digits-vit12'"),
    ],
)
def test_a_bad_start_is_refused(start: str, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_backbone(start, 10, weights)


class Halfway(torch.nn.Module):
    """A module of a user's that is no backbone yet."""

    depth, embed_dim, num_classes, num_tokens, num_prefix_tokens, image_size = 4, 8, 3, 5, 1, 8

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_a_net_that_lacks_members_is_told_which() -> None:
    register_backbone("halfway", Halfway)
    message = "to give a Backbone, got Halfway without classify, macs, run_block, run_half_block$"
    with pytest.raises(ValueError, match=message):
        load_backbone("halfway")


class ShortOfMacs(ViT):
    """Counts one block of two."""

    @property
    def macs(self) -> Macs:
        return replace(super().macs, mlp=super().macs.mlp[:1])


def test_macs_are_those_of_every_block() -> None:
    sizes = {name: value for name, value in SMALL.items() if isinstance(value, int)}
    register_backbone("short-of-macs", lambda: ShortOfMacs(**sizes))
    with pytest.raises(ValueError, match="expected macs to be the Macs of 2 blocks, got Macs"):
        load_backbone("short-of-macs")
