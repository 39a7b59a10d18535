"""Our ViT: its pieces make up its forward, and wrong sizes are refused."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitskip.backbone.protocol import Backbone, num_units, resize, to_float_images, unit_runner
from vitskip.backbone.vit import ViT, scaled_dot_product


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_pieces_make_up_the_forward(tiny_vit: ViT, tiny_images: Tensor, action_unit: str) -> None:
    run = unit_runner(tiny_vit, action_unit)
    tokens = tiny_vit.embed(tiny_images)
    for index in range(num_units(tiny_vit, action_unit)):
        tokens = run(index, tokens)
    assert torch.equal(tiny_vit.classify(tokens), tiny_vit(tiny_images))


def test_every_piece_changes_every_row_and_not_its_input(tiny_vit: ViT, tiny_images: Tensor) -> None:
    tokens = tiny_vit.embed(tiny_images)
    before = tokens.clone()
    outputs = [tiny_vit.run_half_block(index, tokens) for index in range(8)]
    assert torch.equal(tokens, before)
    for output in outputs:
        assert (output - tokens).flatten(1).norm(dim=1).min() > 0.1
    assert (torch.pdist(torch.stack(outputs).flatten(1)) > 0.1).all()  # no two half-blocks are the same


def test_branches_begin_small_in_deep_nets() -> None:
    spread = {}
    for depth in (2, 8):
        torch.manual_seed(0)
        vit = ViT(embed_dim=64, depth=depth, num_heads=2)
        spread[depth] = {name: p.std().item() for name, p in vit.blocks[0].named_parameters() if p.ndim == 2}
    for name in ("attention.projection.weight", "mlp.contract.weight"):
        assert spread[2][name] == pytest.approx(2 * spread[8][name], rel=0.05)
    assert spread[2]["mlp.expand.weight"] == pytest.approx(spread[8]["mlp.expand.weight"], rel=0.05)


def test_bfloat16_on_a_cpu_is_close_to_float32(tiny_vit: ViT, tiny_images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = tiny_vit(tiny_images)
    torch.testing.assert_close(logits.float(), tiny_vit(tiny_images), rtol=0.05, atol=0.05)


def test_bfloat16_scores_are_biased_as_in_float32() -> None:
    query, key, value = torch.randn(3, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(1))
    expected = scaled_dot_product(query, key, value, bias)
    halves = scaled_dot_product(query.bfloat16(), key.bfloat16(), value.bfloat16(), bias)
    torch.testing.assert_close(halves.float(), expected, rtol=0.05, atol=0.05)
    assert not torch.allclose(expected, scaled_dot_product(query, key, value), atol=0.05)


def test_attention_mixes_tokens_and_mlp_does_not(tiny_vit: ViT, tiny_images: Tensor) -> None:
    tokens = tiny_vit.embed(tiny_images)
    changed = tokens.clone()
    changed[:, -1] = changed[:, -1].flip(-1)  # adding a constant would vanish in the layer norm
    attention, mlp = (
        (tiny_vit.run_half_block(index, changed) - tiny_vit.run_half_block(index, tokens))[:, :-1].abs().max()
        for index in (0, 1)
    )
    assert attention > 1e-3
    assert mlp == 0


def test_a_block_equals_torchs_own_pre_norm_layer(tiny_vit: ViT, tiny_images: Tensor) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    ours = tiny_vit.blocks[1].state_dict()
    names = {
        "attention_norm.": "norm1.",
        "attention.qkv.": "self_attn.in_proj_",
        "attention.projection.": "self_attn.out_proj.",
        "mlp_norm.": "norm2.",
        "mlp.expand.": "linear1.",
        "mlp.contract.": "linear2.",
    }
    layer.load_state_dict({names[key[: key.rindex(".") + 1]] + key.rpartition(".")[2]: ours[key] for key in ours})
    tokens = tiny_vit.embed(tiny_images)
    torch.testing.assert_close(tiny_vit.run_block(1, tokens), layer(tokens))


def test_attributes_describe_the_tensors(tiny_vit: ViT, tiny_images: Tensor) -> None:
    assert isinstance(tiny_vit, Backbone)
    assert tiny_vit.embed(tiny_images).shape == (6, tiny_vit.num_tokens, tiny_vit.embed_dim) == (6, 5, 16)
    assert tiny_vit(tiny_images).shape == (6, tiny_vit.num_classes)
    assert (tiny_vit.depth, tiny_vit.num_prefix_tokens, tiny_vit.image_size) == (4, 1, 32)


@pytest.mark.parametrize(("image_size", "patch_size", "num_tokens"), [(32, 8, 17), (16, 16, 2), (24, 8, 10)])
def test_num_tokens_counts_patches_and_class_token(image_size: int, patch_size: int, num_tokens: int) -> None:
    vit = ViT(image_size=image_size, patch_size=patch_size, embed_dim=8, depth=1, num_heads=1)
    assert vit.num_tokens == num_tokens == vit.embed(torch.rand(2, 3, image_size, image_size)).shape[1]


def test_the_class_token_comes_first(tiny_vit: ViT, tiny_images: Tensor) -> None:
    tokens = tiny_vit.embed(tiny_images)
    assert torch.equal(tokens[:, 0], tokens[:1, 0].expand(6, -1))  # the same whatever the image
    assert not torch.equal(tokens[:, 1], tokens[:1, 1].expand(6, -1))
    changed = tokens.clone()
    changed[:, 1:] = 0
    assert torch.equal(tiny_vit.classify(changed), tiny_vit.classify(tokens))


def test_uint8_images_equal_their_float_images(tiny_vit: ViT) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    torch.testing.assert_close(tiny_vit(images), tiny_vit(images / 255))
    assert to_float_images(images).max() == 1


def test_uint8_images_work_in_half_precision(tiny_vit: ViT) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert tiny_vit.bfloat16()(images).dtype == torch.bfloat16


def test_integer_images_are_refused(tiny_vit: ViT) -> None:
    with pytest.raises(ValueError, match=r"expected uint8, or floating point.*int64"):
        tiny_vit(torch.zeros(1, 3, 32, 32, dtype=torch.int64))


@pytest.mark.parametrize("size", [(16, 64), (47, 32)])  # both would make four patches
def test_images_that_are_not_square_are_refused(tiny_vit: ViT, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"expected as high as wide, got {size[0]} x {size[1]} pixels"):
        tiny_vit.embed(torch.rand(1, 3, *size))


def test_images_of_another_size_are_resized(tiny_vit: ViT) -> None:
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(tiny_vit(images), tiny_vit(resize(images, 32)))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size: expected a multiple of patch_size 8, got 30"):
        ViT(image_size=30, patch_size=8)
    with pytest.raises(ValueError, match="mlp_ratio: expected at least one hidden unit, got -1 times 16"):
        ViT(embed_dim=16, num_heads=2, mlp_ratio=-1)
    with pytest.raises(ValueError, match="embed_dim: expected a multiple of num_heads 3, got 16"):
        ViT(embed_dim=16, num_heads=3)


def test_shapes_are_checked_at_run_time(tiny_vit: ViT) -> None:
    """The import hook of conftest.py is at work; without it every shape in a signature is a mere comment."""
    with pytest.raises(TypeCheckError, match="B 3 H W"):
        tiny_vit.embed(torch.rand(1, 4, 32, 32))
    with pytest.raises(TypeCheckError, match="B N D"):
        tiny_vit.run_block(0, torch.rand(5, 16))


def test_the_convolutional_stem_gives_as_many_tokens_and_its_macs(tiny_images: Tensor) -> None:
    vit = ViT(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, stem="conv")
    assert vit.embed(tiny_images).shape == (len(tiny_images), 17, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vit.embed(tiny_images[:1])
    assert vit.macs.stem == counter.get_total_flops() // 2


def test_images_do_not_meet_in_the_convolutional_stem(tiny_images: Tensor) -> None:
    vit = ViT(image_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2, stem="conv").train()
    torch.testing.assert_close(vit.embed(tiny_images)[1:2], vit.embed(tiny_images[1:2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "convv"}, "unknown stem 'convv': .*did you mean 'conv'"),
        ({"stem": "conv", "patch_size": 16, "embed_dim": 4}, "patch_size: expected a power of two"),
        ({"stem": "conv", "patch_size": 1}, "patch_size: expected a power of two"),
    ],
)
def test_a_bad_stem_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**{"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, **changes})
