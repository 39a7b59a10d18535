"""The torchvision adapter: pieces equal the library's own forward, normalisation, building and loading."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.transforms.functional import normalize

from vitskip.backbone.masked import run_masked
from vitskip.backbone.protocol import Backbone, num_units, resize, to_float_images, unit_runner
from vitskip.backbone.torchvision_vit import IMAGENET_MEAN, IMAGENET_STD, TorchvisionViT, torchvision_backbone


def make_library_vit(seed: int = 0, image_size: int = 32, representation_size: int | None = None) -> VisionTransformer:
    """Three blocks, seven classes; nothing at the zero where torchvision starts its class token and head."""
    torch.manual_seed(seed)
    vit = VisionTransformer(
        image_size=image_size,
        patch_size=16,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=7,
        representation_size=representation_size,
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.mark.parametrize("grad", [True, False])  # without gradients attention takes another path
@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_pieces_equal_the_library(tiny_images: Tensor, action_unit: str, grad: bool) -> None:
    library_vit = make_library_vit()
    vit = TorchvisionViT(library_vit)
    run = unit_runner(vit, action_unit)
    with torch.set_grad_enabled(grad):
        expected = library_vit(normalize(tiny_images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
        tokens = vit.embed(tiny_images)
        for index in range(num_units(vit, action_unit)):
            tokens = run(index, tokens)
        torch.testing.assert_close(vit.classify(tokens), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(vit(tiny_images), expected, rtol=1e-6, atol=1e-6)
    assert expected.std(0).min() > 0.01  # the images are told apart, or equality would mean little


def test_pieces_equal_the_library_in_training(tiny_images: Tensor) -> None:
    """With dropout, the pieces draw the same random numbers in the same order."""
    vit = TorchvisionViT(VisionTransformer(32, 16, 3, 2, 16, 32, dropout=0.5, attention_dropout=0.5, num_classes=7))
    nn.init.normal_(vit.vit.heads[0].weight)
    vit.train()
    torch.manual_seed(0)
    expected = vit.vit(normalize(tiny_images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    torch.manual_seed(0)
    tokens = vit.embed(tiny_images)
    for index in range(6):
        tokens = vit.run_half_block(index, tokens)
    torch.testing.assert_close(vit.classify(tokens), expected)
    assert not torch.allclose(vit(tiny_images), expected)


def test_attributes_describe_the_tensors(tiny_images: Tensor) -> None:
    vit = TorchvisionViT(make_library_vit())
    assert isinstance(vit, Backbone)
    assert vit.embed(tiny_images).shape == (6, vit.num_tokens, vit.embed_dim) == (6, 5, 16)
    assert vit(tiny_images).shape == (6, vit.num_classes) == (6, 7)
    assert (vit.depth, vit.num_prefix_tokens, vit.image_size) == (3, 1, 32)


def test_a_head_replaced_for_other_classes_is_noticed(tiny_images: Tensor) -> None:
    library_vit = make_library_vit()
    library_vit.heads = nn.Sequential(nn.Linear(16, 4))
    vit = TorchvisionViT(library_vit)
    assert vit.num_classes == 4
    assert vit(tiny_images).shape == (6, 4)


def test_normalisation_is_the_given_one_and_travels_with_the_network(tiny_images: Tensor) -> None:
    plain = TorchvisionViT(make_library_vit(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(plain(tiny_images), plain.vit(tiny_images))
    images = (tiny_images * 255).to(torch.uint8)
    torch.testing.assert_close(plain(images), plain.vit(images / 255))
    assert plain.double()(images).dtype == torch.float64
    assert plain.to(torch.bfloat16)(images).dtype == torch.bfloat16
    assert all(key.startswith("vit.") for key in plain.state_dict())  # constants are not saved as weights


@pytest.mark.parametrize("size", [20, 50])
def test_images_of_any_size_are_resized(tiny_images: Tensor, size: int) -> None:
    vit = TorchvisionViT(make_library_vit())
    images = resize(tiny_images, size)
    fitting = normalize(resize(images, 32), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(vit(images), vit.vit(fitting))
    as_bytes = (images * 255).to(torch.uint8)
    assert torch.equal(vit(as_bytes), vit(to_float_images(as_bytes)))


@pytest.mark.parametrize("size", [8, 31, 40])
def test_resizing_is_pillows_bicubic(tiny_images: Tensor, size: int) -> None:
    for image, resized in zip(tiny_images, resize(tiny_images, size), strict=True):
        for channel, expected in zip(image, resized, strict=True):
            pillow = Image.fromarray(channel.numpy()).resize((size, size), Image.Resampling.BICUBIC)
            torch.testing.assert_close(expected, torch.from_numpy(np.array(pillow)).clamp(0, 1), rtol=0, atol=1e-5)


def test_resized_images_stay_in_range_and_those_that_fit_are_untouched(tiny_images: Tensor) -> None:
    edges = tiny_images.round()  # bicubic would overshoot
    larger = resize(edges, 50)
    assert larger.shape == (6, 3, 50, 50)
    assert larger.min() == 0 and larger.max() == 1
    assert resize(edges, 32) is edges
    assert resize(edges[:0], 8).shape == (0, 3, 8, 8)
    torch.testing.assert_close(resize(edges.half(), 50), larger.half())
    assert resize(edges.double(), 50).dtype == torch.float64


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="expected as high as wide, got 32 x 48 pixels"):
        resize(torch.rand(1, 3, 32, 48), 32)
    with pytest.raises(ValueError, match="expected as high as wide, got 48 x 32 pixels"):
        TorchvisionViT(make_library_vit())(torch.rand(1, 3, 48, 32))


def test_masked_runs_agree_with_skipping_by_hand(tiny_images: Tensor) -> None:
    vit = TorchvisionViT(make_library_vit())
    keep_mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]]).bool()
    with torch.no_grad():
        logits = run_masked(vit, tiny_images, keep_mask)
        for row, mask in enumerate(keep_mask):
            tokens = vit.embed(tiny_images[row : row + 1])
            for index in mask.nonzero().flatten().tolist():
                tokens = vit.run_block(index, tokens)
            torch.testing.assert_close(logits[row : row + 1], vit.classify(tokens))


def test_stems_and_heads_it_cannot_count_are_refused() -> None:
    stem = [ConvStemConfig(out_channels=4, kernel_size=3, stride=16)]
    with pytest.raises(ValueError, match=r"expected a stem of one nn\.Conv2d, got Sequential"):
        TorchvisionViT(VisionTransformer(32, 16, 1, 1, 4, 4, conv_stem_configs=stem))
    headless = make_library_vit()
    headless.heads = nn.Sequential(nn.Identity())
    with pytest.raises(ValueError, match=r"expected heads with an nn\.Linear"):
        TorchvisionViT(headless)


def test_builder_builds_by_name() -> None:
    with torch.device("meta"):
        vit = torchvision_backbone("vit_b_32", num_classes=10, image_size=64)
    assert (vit.depth, vit.embed_dim, vit.num_tokens, vit.num_classes) == (12, 768, 5, 10)
    assert not vit.training


def test_builder_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"vit_b_17.*expected one of vit_b_16, .*did you mean 'vit_b_16'"):
        torchvision_backbone("vit_b_17")


@pytest.fixture
def tiny_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any torchvision name builds the tiny network, from a seed of its own."""

    def get_model(name: str, *, weights: None, num_classes: int, image_size: int) -> VisionTransformer:
        return make_library_vit(seed=9, image_size=image_size)

    monkeypatch.setattr("torchvision.models.get_model", get_model)


@pytest.mark.usefixtures("tiny_by_name")
@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_builder_loads_local_weights(tmp_path: Path, tiny_images: Tensor, file: str) -> None:
    source = make_library_vit(seed=3)
    save = save_file if file.endswith("safetensors") else torch.save
    save(source.state_dict(), tmp_path / file)
    loaded = torchvision_backbone("vit_b_16", num_classes=7, image_size=32, weights_path=tmp_path / file)
    assert torch.equal(loaded(tiny_images), TorchvisionViT(source)(tiny_images))
    random = torchvision_backbone("vit_b_16", num_classes=7, image_size=32)
    assert not torch.equal(random(tiny_images), loaded(tiny_images))
    larger = torchvision_backbone("vit_b_16", num_classes=7, image_size=64, weights_path=tmp_path / file)
    assert larger.num_tokens == 17
    assert torch.equal(larger.vit.encoder.pos_embedding[:, [0, 1, -1]], source.encoder.pos_embedding[:, [0, 1, -1]])


@pytest.mark.usefixtures("tiny_by_name")
def test_weights_by_torchvisions_old_names_are_understood(tmp_path: Path, tiny_images: Tensor) -> None:
    source = make_library_vit(seed=3)
    weights = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in source.state_dict().items()
    }
    torch.save(weights, tmp_path / "weights.pth")
    loaded = torchvision_backbone("vit_b_16", num_classes=7, image_size=32, weights_path=tmp_path / "weights.pth")
    assert torch.equal(loaded(tiny_images), TorchvisionViT(source)(tiny_images))


@pytest.mark.usefixtures("tiny_by_name")
def test_a_head_of_other_classes_is_left_out(tmp_path: Path) -> None:
    source = make_library_vit(seed=3)
    source.heads = nn.Sequential(OrderedDict(head=nn.Linear(16, 9)))
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"does not fit this network \(heads\.head\.weight has shape \(9, 16\)"):
        loaded = torchvision_backbone("vit_b_16", image_size=32, weights_path=tmp_path / "weights.pth")
    assert loaded.num_classes == 7
    own = loaded.vit.state_dict()
    for name, tensor in source.state_dict().items():
        assert name.startswith("heads.") or torch.equal(own[name], tensor)


@pytest.mark.usefixtures("tiny_by_name")
def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"expected the tensors of this network in .*linear\.pth, got"):
        torchvision_backbone("vit_b_16", image_size=32, weights_path=tmp_path / "linear.pth")


def test_missing_weights_are_an_error(tmp_path: Path, tiny_by_name: None) -> None:
    with pytest.raises(FileNotFoundError):
        torchvision_backbone("vit_b_16", weights_path=tmp_path / "none.pth")
