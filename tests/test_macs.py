"""Analytic MACs against torch's FLOP counter, part by part and whole (1 MAC = 2 FLOPs)."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer, ViT_B_16_Weights, ViT_L_16_Weights

from vitskip.backbone.macs import Macs
from vitskip.backbone.masked import run_masked
from vitskip.backbone.protocol import Backbone
from vitskip.backbone.torchvision_vit import TorchvisionViT, torchvision_backbone
from vitskip.backbone.vit import ViT

FAMILIES: dict[str, Callable[[], Backbone]] = {
    "ours": lambda: ViT(image_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=3, mlp_ratio=3, num_classes=5),
    "torchvision": lambda: TorchvisionViT(VisionTransformer(32, 16, 3, 2, 16, 24, num_classes=7)),
    "torchvision with representation layer": lambda: TorchvisionViT(
        VisionTransformer(32, 16, 3, 2, 16, 24, num_classes=7, representation_size=6)
    ),
}


@pytest.fixture(params=FAMILIES)
def vit(request: pytest.FixtureRequest) -> Backbone:
    return FAMILIES[request.param]().eval()


def count_macs(run: Callable[[], object]) -> int:
    """MACs that torch counts.

    With gradients on: in eval mode without them `nn.MultiheadAttention` is one fused operator that the counter does
    not know and takes for nothing.
    """
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        run()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def test_every_part_equals_the_counter(vit: Backbone) -> None:
    images = torch.rand(3, 3, vit.image_size, vit.image_size)
    tokens = torch.rand(3, vit.num_tokens, vit.embed_dim)
    assert count_macs(lambda: vit.embed(images)) == 3 * vit.macs.stem > 0
    assert count_macs(lambda: vit.classify(tokens)) == 3 * vit.macs.head > 0
    for action_unit, run in (("block", vit.run_block), ("half", vit.run_half_block)):
        for index, macs in enumerate(vit.macs.units(action_unit)):
            assert count_macs(lambda run=run, index=index: run(index, tokens)) == 3 * macs > 0


def test_the_whole_equals_the_counter(vit: Backbone) -> None:
    images = torch.rand(3, 3, vit.image_size, vit.image_size)
    assert count_macs(lambda: vit(images)) == 3 * vit.macs.total


def test_a_masked_batch_computes_the_kept_blocks_only(vit: Backbone) -> None:
    keep_mask = torch.zeros(3, vit.depth, dtype=torch.bool)
    keep_mask[0], keep_mask[1, 1] = True, True
    blocks = vit.macs.units("block")
    expected = 3 * (vit.macs.stem + vit.macs.head) + sum(blocks) + blocks[1]
    images = torch.rand(3, 3, vit.image_size, vit.image_size)
    assert count_macs(lambda: run_masked(vit, images, keep_mask)) == expected


def test_units_and_total_on_known_numbers() -> None:
    macs = Macs(stem=1000, attention=(10, 20), mlp=(3, 4), head=500)
    assert macs.units("block") == (13, 24)
    assert macs.units("half") == (10, 3, 20, 4)
    assert macs.total == 1537


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vit_b_16", ViT_B_16_Weights.IMAGENET1K_V1),
        ("vit_l_16", ViT_L_16_Weights.IMAGENET1K_V1),
    ],
)
def test_real_sizes_agree_with_torchvisions_own_table(name: str, weights: ViT_B_16_Weights) -> None:
    with torch.device("meta"):
        vit = torchvision_backbone(name)
        assert vit.macs.total == count_macs(lambda: vit(torch.rand(1, 3, 224, 224)))
    assert vit.macs.total / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.001)
    assert sum(p.numel() for p in vit.parameters()) == weights.meta["num_params"]
