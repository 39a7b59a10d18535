"""timm's networks by name: what is built, what is refused, and weights from disk."""

import importlib
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from test_macs import count_macs
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from vitskip.backbone import timm_vit
from vitskip.backbone.timm_vit import TimmViT, timm_backbone
from vitskip.backbone.torchvision_vit import IMAGENET_MEAN, IMAGENET_STD

pytest.importorskip("timm")

NAME = "test_vit"  # timm's own smallest: 6 blocks of 64
SMALL: dict[str, Any] = {"image_size": 32, "num_classes": 7}


def mean_of(vit: TimmViT) -> tuple[float, ...]:
    """What timm says, also where no numbers are."""
    return cast(Any, vit.vit).pretrained_cfg["mean"]


def test_other_families_are_refused() -> None:
    for name in ("swin_tiny_patch4_window7_224", "vit_tiny_r_s16_p8_224", "resnet18"):
        with pytest.raises(ValueError, match=f"expected a timm VisionTransformer .*, got '{name}'"):
            timm_backbone(name)
    with torch.device("meta"), pytest.raises(ValueError, match="expected a class token, got none"):
        timm_backbone("vit_base_patch16_gap_224")


def test_unknown_names_and_tags_meet_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown timm ViT 'deit_tiny'.*did you mean 'deit_tiny_patch16_224'"):
        timm_backbone("deit_tiny")
    with pytest.raises(ValueError, match=r"did you mean 'vit_tiny_patch16_224.augreg_in21k'"):
        timm_backbone("vit_tiny_patch16_224.augreg_in22k")


def test_the_real_deit_tiny() -> None:
    """Sizes as published (Touvron et al., 2021, table 1), and its own forward."""
    vit = timm_backbone("deit_tiny_patch16_224")
    assert sum(parameter.numel() for parameter in vit.parameters()) == 5_717_416
    assert (vit.depth, vit.embed_dim, vit.num_tokens, vit.image_size, vit.num_classes) == (12, 192, 197, 224, 1000)
    assert not vit.training
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = vit.vit(normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
        torch.testing.assert_close(vit(images), expected)
    with torch.device("meta"):
        vit = timm_backbone("deit_tiny_patch16_224")
        assert vit.macs.total == count_macs(lambda: vit(torch.rand(1, 3, 224, 224))) == 1_253_683_200


def test_normalisation_is_that_of_the_name() -> None:
    def constants(name: str) -> list[float]:
        vit = timm_backbone(name, image_size=32)
        return torch.cat([vit.mean, vit.std]).flatten().tolist()

    assert constants("vit_tiny_patch16_224") == [0.5] * 6
    assert constants("deit_tiny_patch16_224") == pytest.approx([*IMAGENET_MEAN, *IMAGENET_STD])
    with torch.device("meta"):
        first, tagged = timm_backbone("vit_base_patch16_224"), timm_backbone("vit_base_patch16_224.mae")
    assert (mean_of(first), mean_of(tagged)) == ((0.5, 0.5, 0.5), IMAGENET_MEAN)


def test_image_size_is_the_names_or_given() -> None:
    with torch.device("meta"):
        assert timm_backbone("vit_small_patch14_reg4_dinov2").num_tokens == 5 + 37**2
        assert timm_backbone("vit_small_patch14_reg4_dinov2", image_size=224).num_tokens == 5 + 16**2
        for image_size in (7, 225):
            with pytest.raises(ValueError, match=f"expected a multiple of .* patch size 14, got {image_size}"):
                timm_backbone("vit_small_patch14_reg4_dinov2", image_size=image_size)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module itself can be imported without timm."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, timm_vit.__name__)
    monkeypatch.setattr("vitskip.backbone.timm_vit", timm_vit)  # put back afterwards
    bare = importlib.import_module(timm_vit.__name__)
    assert bare is not timm_vit
    with pytest.raises(ImportError, match=re.escape('pip install "vitskip[timm]"')):
        bare.timm_backbone("deit_tiny_patch16_224")
    with pytest.raises(ImportError, match=re.escape('pip install "vitskip[timm]"')):
        bare.TimmViT(nn.Linear(1, 1))


@pytest.fixture
def source() -> TimmViT:
    vit = timm_backbone(NAME, **SMALL)
    torch.manual_seed(3)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_builder_loads_local_weights(source: TimmViT, tmp_path: Path, tiny_images: Tensor, file: str) -> None:
    save = save_file if file.endswith("safetensors") else torch.save
    save(source.vit.state_dict(), tmp_path / file)
    loaded = timm_backbone(NAME, **SMALL, weights_path=tmp_path / file)
    assert torch.equal(loaded(tiny_images), source(tiny_images))
    assert not torch.equal(timm_backbone(NAME, **SMALL)(tiny_images), source(tiny_images))
    larger = timm_backbone(NAME, num_classes=7, image_size=64, weights_path=str(tmp_path / file))
    assert larger.num_tokens == 17
    resized, stored = larger.vit.state_dict()["pos_embed"], source.vit.state_dict()["pos_embed"]
    assert torch.equal(resized[:, 0], stored[:, 0])
    torch.testing.assert_close(resized[:, 1:].mean(1), stored[:, 1:].mean(1))


@pytest.mark.parametrize("head", ["of other classes", "missing"])
def test_a_head_that_does_not_fit_is_left_out(source: TimmViT, tmp_path: Path, tiny_images: Tensor, head: str) -> None:
    weights = OrderedDict(source.vit.state_dict())
    if head == "missing":
        del weights["head.weight"], weights["head.bias"]
    torch.save({"model": weights}, tmp_path / "weights.pth")
    num_classes = 7 if head == "missing" else 3
    with pytest.warns(UserWarning, match=r"the head in .*weights\.pth does not fit this network \(head\."):
        loaded = timm_backbone(NAME, image_size=32, num_classes=num_classes, weights_path=tmp_path / "weights.pth")
    assert loaded(tiny_images).shape == (6, num_classes)
    own = loaded.vit.state_dict()
    for name, tensor in source.vit.state_dict().items():
        assert name.startswith("head.") or torch.equal(own[name], tensor)


def test_both_heads_of_a_distilled_network_are_left_out(tmp_path: Path) -> None:
    name, file = "deit_tiny_distilled_patch16_224", tmp_path / "weights.pth"
    torch.save(timm_backbone(name, image_size=32, num_classes=7).vit.state_dict(), file)
    with pytest.warns(UserWarning, match=r"head\.weight has shape .* head_dist\.weight has shape"):
        assert timm_backbone(name, image_size=32, num_classes=3, weights_path=file).num_classes == 3
    with pytest.raises(ValueError, match=r"expected the tensors of this network in .*weights\.pth, got"):
        timm_backbone("deit_tiny_patch16_224", image_size=32, num_classes=7, weights_path=file)


def test_layer_scales_by_the_authors_names_are_understood(tmp_path: Path) -> None:
    name, file = "deit3_small_patch16_224", tmp_path / "weights.pth"
    weights = timm_backbone(name, image_size=32, num_classes=7).vit.state_dict()
    weights["blocks.3.ls2.gamma"].fill_(0.25)
    torch.save({"model": {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in weights.items()}}, file)
    loaded = timm_backbone(name, image_size=32, num_classes=7, weights_path=file)
    assert loaded.vit.state_dict()["blocks.3.ls2.gamma"].eq(0.25).all()


def test_missing_and_foreign_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        timm_backbone(NAME, **SMALL, weights_path=tmp_path / "none.pth")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"expected the tensors of this network in .*linear\.pth, got: .*Missing key"):
        timm_backbone(NAME, **SMALL, weights_path=tmp_path / "linear.pth")
