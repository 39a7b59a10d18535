"""timm's Vision Transformers (DeiT, DeiT-III, AugReg, DINOv2, ...) behind the `Backbone` protocol.

timm's quirks live here: position embeddings that skip the prefix tokens, register tokens, distilled nets with two
heads, layer scale, gated MLPs, pooling by average, and constants for the images that differ from name to name. timm is
optional and takes seconds to import, so it is imported when the first of its networks is built or wrapped.
"""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .macs import Macs
from .protocol import resize, to_float_images
from .registry import unknown_name
from .weights import load_pretrained, read_state_dict

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block, VisionTransformer

MODULES = ("vision_transformer", "deit")
"""Where in timm the networks are that can be executed block by block."""

POOLINGS = ("token", "avg", "avgmax", "max")
"""How the final tokens may become one; attention pooling is a block of its own."""


class TimmViT(nn.Module):
    """A timm `VisionTransformer`, executable block by block; implements `Backbone`.

    Args:
        vit: the network to wrap, not copied.
        mean: of the red, green and blue of images in [0, 1] that `vit` was trained with; timm's by default.
        std: standard deviation of the same.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if `vit` is another network, or has parts that cannot be skipped or counted.
    """

    vit: "VisionTransformer"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        *,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        _refuse_unsupported(vit)
        self.vit = cast("VisionTransformer", vit)
        trained_with = getattr(vit, "pretrained_cfg", {})
        mean, std = mean or trained_with.get("mean"), std or trained_with.get("std")
        if mean is None or std is None:
            raise ValueError("vit: expected mean and std of its images, given or in its pretrained_cfg, got none")
        self.embed_dim, self.depth = self.vit.embed_dim, len(self.vit.blocks)
        self.image_size = self.vit.patch_embed.img_size[0]
        self.num_prefix_tokens = self.vit.num_prefix_tokens
        self.num_tokens = self.num_prefix_tokens + self.vit.patch_embed.num_patches
        self.num_classes = cast(nn.Linear, self.vit.head).out_features
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def macs(self) -> Macs:
        blocks = [cast("Block", block) for block in self.vit.blocks]
        return Macs(
            stem=self.vit.patch_embed.num_patches * self.vit.patch_embed.proj.weight.numel(),
            attention=tuple(_attention_macs(block.attn, self.num_tokens) for block in blocks),
            mlp=tuple(self.num_tokens * _num_weights(block.mlp) for block in blocks),
            head=_num_weights(self.vit.head) + _num_weights(getattr(self.vit, "head_dist", nn.Identity())),
        )

    @property
    def blocks(self) -> nn.Sequential:
        return cast(nn.Sequential, self.vit.blocks)

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Turn images into tokens; square images of another size than `image_size` are resized to it first."""
        normalised = (resize(to_float_images(images), self.image_size) - self.mean) / self.std
        patches = self.vit.patch_embed(normalised.to(self.vit.patch_embed.proj.weight.dtype))
        return self.vit.norm_pre(self.vit._pos_embed(patches))

    def run_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.vit.blocks[index](tokens)

    def run_half_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        block = cast("Block", self.vit.blocks[index // 2])
        if index % 2:
            return tokens + block.ls2(block.mlp(block.norm2(tokens)))
        return tokens + block.ls1(block.attn(block.norm1(tokens)))

    def classify(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        if self.vit.global_pool == "token":  # the norm of the patches would go unread
            tokens = tokens[:, : self.num_prefix_tokens]
        return self.vit.forward_head(self.vit.norm(tokens))

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        tokens = self.embed(images)
        for index in range(self.depth):
            tokens = self.run_block(index, tokens)
        return self.classify(tokens)


def timm_backbone(
    name: str, *, num_classes: int = 1000, image_size: int | None = None, weights_path: str | Path | None = None
) -> TimmViT:
    """Build a timm ViT without downloading anything.

    Args:
        name: as in timm, e.g. "deit_tiny_patch16_224", "deit3_small_patch16_224", "vit_tiny_patch16_224" or
            "vit_small_patch14_reg4_dinov2". A tag ("vit_base_patch16_224.mae") says whose weights it will get and so
            how images are normalised; without one it is timm's first.
        num_classes: classes K.
        image_size: height and width of the images [pixels]; a multiple of the patch size. That of the name by default.
        weights_path: state dict of timm or of the network's authors, `.safetensors` or `torch.save`d; position
            embeddings of another image size are interpolated, a head that is missing or of another number of classes
            is left out with a warning. Random weights without it.

    Returns:
        the backbone in eval mode, without dropout or stochastic depth.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if the name is unknown, it is of no ViT that can be executed block by block, the image size does
            not fit, the file is damaged or the weights are of another network.
        FileNotFoundError: if there is no file at `weights_path`.
    """
    timm = _import_timm()
    _check_name(name)
    vit = timm.create_model(name, num_classes=num_classes, img_size=image_size, dynamic_img_size=False)
    backbone = TimmViT(vit)
    patch_size = backbone.vit.patch_embed.patch_size[0]
    if image_size is not None and (image_size < patch_size or image_size % patch_size):
        raise ValueError(f"image_size: expected a multiple of {name}'s patch size {patch_size}, got {image_size}")
    if weights_path is not None:
        _load_weights(backbone.vit, Path(weights_path).expanduser())
    return backbone.eval()


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ImportError('backbones of timm need the package timm: pip install "vitskip[timm]"') from error
    return timm


def _check_name(name: str) -> None:
    """Refuse what timm does not know, and what is known to be no ViT, before anything large is built."""
    timm = _import_timm()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm ViT", name, [known for module in MODULES for known in timm.list_models(module=module)])
    if not timm.models.is_model_in_modules(architecture, MODULES):
        raise ValueError(f"name: expected a timm VisionTransformer (of timm's {' or '.join(MODULES)}), got {name!r}")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if name != architecture and name not in tagged:
        raise unknown_name("timm ViT", name, [architecture, *tagged])


def _load_weights(vit: nn.Module, path: Path) -> None:
    """Fill in weights from disk, renamed and with position embeddings resized as timm would."""
    adapt = _import_timm().models.vision_transformer.checkpoint_filter_fn
    stored = read_state_dict(path)
    try:
        adapted = adapt(stored, vit, adapt_layer_scale=True)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"weights: expected the tensors of this network in {path}, got others: {error}") from error
    load_pretrained(path, adapted, vit, heads=("head.", "head_dist."))


def _refuse_unsupported(vit: nn.Module) -> None:
    """ValueError unless all parts are such as the toolkit can take apart, skip and count."""
    library = _import_timm().models.vision_transformer
    if not isinstance(vit, library.VisionTransformer):
        raise ValueError(f"vit: expected a timm VisionTransformer, got {type(vit).__name__}")
    size = getattr(vit.patch_embed, "img_size", None)
    demands: list[tuple[str, bool, object]] = [
        ("a class token", vit.cls_token is not None, "none"),
        ("a stem of timm's PatchEmbed", type(vit.patch_embed) is library.PatchEmbed, type(vit.patch_embed).__name__),
        ("square images of one size", size is not None and size[0] == size[1], size),
        ("no dropout of patches", isinstance(vit.patch_drop, nn.Identity), type(vit.patch_drop).__name__),
        (f"pooling by one of {', '.join(POOLINGS)}", vit.global_pool in POOLINGS, repr(vit.global_pool)),
        ("a head of nn.Linear", isinstance(vit.head, nn.Linear), type(vit.head).__name__),
        ("one answer of both heads", not getattr(vit, "distilled_training", False), "distilled_training"),
    ]
    for block in cast(nn.Sequential, vit.blocks):
        demands += _demands_on_block(block)
    for expected, is_met, got in demands:
        if not is_met:
            raise ValueError(f"vit: expected {expected}, got {got}")


def _demands_on_block(block: nn.Module) -> list[tuple[str, bool, object]]:
    """What is expected, whether it is so, and what came."""
    timm = _import_timm()
    library = timm.models.vision_transformer
    if type(block) is not library.Block:
        return [("blocks of timm's class Block", False, type(block).__name__)]
    mlps = (library.Mlp, timm.layers.GluMlp, timm.layers.SwiGLU)
    drops = {type(block.drop_path1), type(block.drop_path2)}
    return [
        ("timm's plain Attention", type(block.attn) is library.Attention, type(block.attn).__name__),
        (f"an MLP of {', '.join(mlp.__name__ for mlp in mlps)}", type(block.mlp) in mlps, type(block.mlp).__name__),
        ("no stochastic depth", drops == {nn.Identity}, "drop_path_rate above zero"),
    ]


def _attention_macs(attention: nn.Module, num_tokens: int) -> int:
    """MACs of the linear layers, the scores and the mixing of values."""
    width = cast(nn.Linear, attention.qkv).out_features // 3  # of all heads together
    return num_tokens * _num_weights(attention) + 2 * num_tokens**2 * width


def _num_weights(module: nn.Module) -> int:
    """Weights of all linear layers, each of which multiplies once per token."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
