"""The timm adapter: pieces equal the library's own forward, MACs, resizing, and what it refuses."""

import re
from typing import Any

import pytest
import torch
from test_macs import count_macs
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

timm = pytest.importorskip("timm")

from timm.layers.mlp import SwiGLU  # noqa: E402 - timm may be missing
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from vitskip.backbone.masked import run_masked  # noqa: E402
from vitskip.backbone.protocol import Backbone, num_units, resize, unit_runner  # noqa: E402
from vitskip.backbone.timm_vit import TimmViT  # noqa: E402

FAMILIES: dict[str, dict[str, Any]] = {
    "DeiT": {"model_name": "deit_tiny_patch16_224"},
    "DeiT, distilled": {"model_name": "deit_tiny_distilled_patch16_224"},
    "DeiT-III": {"model_name": "deit3_small_patch16_224"},
    "AugReg": {"model_name": "vit_tiny_patch16_224"},
    "DINOv2 with registers": {"model_name": "vit_small_patch14_reg4_dinov2", "img_size": 28},
    "DINOv2 with a packed gated MLP": {
        "model_name": "vit_giant_patch14_reg4_dinov2",
        "img_size": 28,
        "mlp_ratio": 3,
    },
    "CLIP, normed before the blocks": {"model_name": "vit_base_patch16_clip_224"},
    "pooled by average": {"model_name": "eva_large_patch14_196", "img_size": 28},
    "pooled by maximum": {"model_name": "deit_tiny_patch16_224", "global_pool": "max"},
    "a gated MLP and normed queries": {
        "model_name": "deit_tiny_patch16_224",
        "mlp_layer": SwiGLU,
        "qk_norm": True,
        "init_values": 0.1,
    },
    "images of any size": {"model_name": "deit_tiny_patch16_224", "dynamic_img_size": True},
}
"""timm's names and what is changed in them."""


def make_library_vit(model_name: str = "deit_tiny_patch16_224", **changes: Any) -> Any:
    """Two blocks, seven classes; nothing near the zero where timm starts its tokens and layer scales."""
    tiny = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 7}
    torch.manual_seed(0)
    vit = timm.create_model(model_name, **(tiny | changes))
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.5)
    return vit.eval()


def fitting(vit: Any, images: Tensor) -> Tensor:
    """What the library takes: images of its size, normalised by its constants."""
    constants = vit.pretrained_cfg
    return normalize(resize(images, vit.patch_embed.img_size[0]), list(constants["mean"]), list(constants["std"]))


@pytest.fixture(params=FAMILIES)
def library_vit(request: pytest.FixtureRequest) -> Any:
    return make_library_vit(**FAMILIES[request.param])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_pieces_equal_the_library(library_vit: Any, tiny_images: Tensor, action_unit: str, grad: bool) -> None:
    vit = TimmViT(library_vit)
    run = unit_runner(vit, action_unit)
    with torch.set_grad_enabled(grad):
        expected = library_vit(fitting(library_vit, tiny_images))
        tokens = vit.embed(tiny_images)
        for index in range(num_units(vit, action_unit)):
            before = tokens.clone()
            new = run(index, tokens)
            assert torch.equal(tokens, before)  # the input is not modified
            tokens = new
        torch.testing.assert_close(vit.classify(tokens), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vit(tiny_images), expected, rtol=1e-5, atol=1e-5)
    assert expected.std(0).min() > 0.01  # the images are told apart, or equality would mean little


def test_pieces_equal_the_library_in_training(tiny_images: Tensor) -> None:
    """With dropout, the pieces draw the same random numbers in the same order."""
    rates = {"drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
    vit = TimmViT(make_library_vit("deit3_small_patch16_224", **rates)).train()
    torch.manual_seed(0)
    expected = vit.vit(fitting(vit.vit, tiny_images))
    torch.manual_seed(0)
    tokens = vit.embed(tiny_images)
    for index in range(4):
        tokens = vit.run_half_block(index, tokens)
    torch.testing.assert_close(vit.classify(tokens), expected)
    assert not torch.allclose(vit(tiny_images), expected)


def test_attributes_describe_the_tensors(library_vit: Any, tiny_images: Tensor) -> None:
    vit = TimmViT(library_vit)
    assert isinstance(vit, Backbone)
    assert vit.embed(tiny_images).shape == (6, vit.num_tokens, vit.embed_dim) == (6, 4 + vit.num_prefix_tokens, 16)
    assert vit(tiny_images).shape == (6, vit.num_classes) == (6, 7)
    assert (vit.depth, vit.image_size) == (2, library_vit.patch_embed.img_size[0])
    assert all(key.startswith("vit.") for key in vit.state_dict())  # constants are not saved as weights


@pytest.mark.parametrize(
    ("family", "num_prefix_tokens"),
    [("DeiT", 1), ("DeiT, distilled", 2), ("DINOv2 with registers", 5)],
)
def test_prefix_tokens_do_not_depend_on_the_image_and_patches_do(
    family: str, num_prefix_tokens: int, tiny_images: Tensor
) -> None:
    vit = TimmViT(make_library_vit(**FAMILIES[family]))
    assert vit.num_prefix_tokens == num_prefix_tokens
    varies = vit.embed(tiny_images).std(0).amax(1) > 0
    assert varies.tolist() == [False] * num_prefix_tokens + [True] * 4


def test_every_part_equals_the_flop_counter(library_vit: Any) -> None:
    vit = TimmViT(library_vit)
    images, tokens = torch.rand(3, 3, 40, 40), torch.rand(3, vit.num_tokens, vit.embed_dim)
    assert count_macs(lambda: vit.embed(images)) == 3 * vit.macs.stem > 0
    assert count_macs(lambda: vit.classify(tokens)) == 3 * vit.macs.head > 0
    for action_unit, run in (("block", vit.run_block), ("half", vit.run_half_block)):
        for index, macs in enumerate(vit.macs.units(action_unit)):
            assert count_macs(lambda run=run, index=index: run(index, tokens)) == 3 * macs > 0
    assert count_macs(lambda: vit(images)) == 3 * vit.macs.total


def test_masked_runs_agree_with_skipping_by_hand(library_vit: Any, tiny_images: Tensor) -> None:
    vit = TimmViT(library_vit)
    keep_mask = torch.tensor([[1, 0], [0, 1], [0, 0], [1, 1], [1, 0], [0, 1]]).bool()
    with torch.no_grad():
        logits = run_masked(vit, tiny_images, keep_mask)
        for row, mask in enumerate(keep_mask):
            tokens = vit.embed(tiny_images[row : row + 1])
            for index in mask.nonzero().flatten().tolist():
                tokens = vit.run_block(index, tokens)
            torch.testing.assert_close(logits[row : row + 1], vit.classify(tokens))


def test_images_of_any_size_are_resized(tiny_images: Tensor) -> None:
    vit = TimmViT(make_library_vit())
    larger = F.interpolate(tiny_images, (50, 50))
    expected = vit.vit(fitting(vit.vit, larger))
    torch.testing.assert_close(vit(larger), expected)
    as_bytes = (larger * 255).to(torch.uint8)
    torch.testing.assert_close(vit(as_bytes), vit(as_bytes / 255))
    assert vit.to(torch.bfloat16)(as_bytes).dtype == torch.bfloat16


def test_other_constants_can_be_given(tiny_images: Tensor) -> None:
    vit = TimmViT(make_library_vit(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(vit(tiny_images), vit.vit(tiny_images))


def test_a_network_without_a_name_needs_constants(tiny_images: Tensor) -> None:
    bare = VisionTransformer(img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(ValueError, match="expected mean and std of its images"):
        TimmViT(bare)
    vit = TimmViT(bare, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(vit(tiny_images), bare(2 * tiny_images - 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False, "global_pool": "avg"}, "expected a class token, got none"),
        ({"global_pool": "map"}, "expected pooling by one of token, avg, avgmax, max, got 'map'"),
        ({"global_pool": ""}, "expected pooling by one of token, avg, avgmax, max, got ''"),
        ({"num_classes": 0}, "expected a head of nn.Linear, got Identity"),
        ({"drop_path_rate": 0.1}, "expected no stochastic depth, got drop_path_rate above zero"),
        ({"patch_drop_rate": 0.1}, "expected no dropout of patches, got PatchDropout"),
        ({"img_size": (32, 48)}, "expected square images of one size, got (32, 48)"),
        (
            {"model_name": "vit_small_patch16_18x2_224"},
            "expected blocks of timm's class Block, got ParallelThingsBlock",
        ),
    ],
)
def test_parts_that_it_cannot_skip_or_count_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TimmViT(make_library_vit(**changes))


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a timm VisionTransformer, got Linear"):
        TimmViT(nn.Linear(1, 1))


def test_other_layers_are_refused() -> None:
    vit = make_library_vit()
    vit.blocks[1].mlp = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(ValueError, match="expected an MLP of Mlp, GluMlp, SwiGLU, got Sequential"):
        TimmViT(vit)
    vit.patch_embed = nn.Conv2d(3, 16, 16)
    with pytest.raises(ValueError, match="expected a stem of timm's PatchEmbed, got Conv2d"):
        TimmViT(vit)
    vit = make_library_vit()
    vit.blocks[0].attn = nn.MultiheadAttention(16, 2)
    with pytest.raises(ValueError, match="expected timm's plain Attention, got MultiheadAttention"):
        TimmViT(vit)


def test_two_answers_of_a_distilled_network_are_refused() -> None:
    distilled = make_library_vit("deit_tiny_distilled_patch16_224")
    distilled.set_distilled_training()
    with pytest.raises(ValueError, match="expected one answer of both heads"):
        TimmViT(distilled)
