"""Our own small pre-norm Vision Transformer (Dosovitskiy et al., 2021), executable block by block."""

from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from .macs import Macs, vit_macs
from .protocol import resize, to_float_images
from .registry import unknown_name

Stem = Literal["patch", "conv"]


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, D / heads]
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D / heads]
        mixed = scaled_dot_product(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of each head, [B, heads, N, E], with a bias [B, 1, 1, N] on the scores of the keys."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:  # where the fused kernel trains 6 times slower
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        return (scores if bias is None else scores + bias).softmax(3).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class Mlp(nn.Module):
    """Two-layer perceptron on each token."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, mlp_dim)
        self.contract = nn.Linear(mlp_dim, embed_dim)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.contract(F.gelu(self.expand(tokens)))


class Block(nn.Module):
    """Pre-norm residual block: an attention half and an MLP half."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, mlp_dim)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.mlp_half(self.attention_half(tokens))

    def attention_half(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return tokens + self.attention(self.attention_norm(tokens))

    def mlp_half(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return tokens + self.mlp(self.mlp_norm(tokens))


class ConvStem(nn.Sequential):
    """Patch embedding by 3x3 convolutions of stride 2, each of twice the width (Xiao et al., 2021).

    Normalised per image (one group), so that no image can influence another.

    Args:
        patch_size: height and width of a patch [pixels]; a power of two.
        embed_dim: token width D; a multiple of `patch_size` / 2.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings or halvings < 1 or embed_dim % 2 ** (halvings - 1):
            raise ValueError(
                f"patch_size: expected a power of two of at least 2 whose half divides embed_dim {embed_dim}, "
                f"got {patch_size}"
            )
        widths = [3, *(embed_dim >> left for left in range(halvings - 1, -1, -1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def macs(self, image_size: int) -> int:
        """Multiply-accumulates of one image of `image_size` x `image_size` pixels."""
        total, size = 0, image_size
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                size //= layer.stride[0]
                total += layer.weight.numel() * size**2
        return total


class ViT(nn.Module):
    """Plain ViT with a class token; implements `Backbone`.

    Args:
        image_size: height and width of the images [pixels]; a multiple of `patch_size`.
        patch_size: height and width of a patch [pixels].
        embed_dim: token width D; a multiple of `num_heads`.
        depth: number of blocks L.
        num_heads: attention heads.
        num_classes: classes K.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        stem: "patch" cuts the image into patches and projects them, "conv" is a `ConvStem`.

    Raises:
        ValueError: if the sizes do not fit one another.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 8,
        embed_dim: int = 96,
        depth: int = 12,
        num_heads: int = 3,
        num_classes: int = 10,
        mlp_ratio: float = 4.0,
        stem: Stem = "patch",
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "patch_size": patch_size, "embed_dim": embed_dim, "depth": depth}
        for name, value in {**sizes, "num_heads": num_heads, "num_classes": num_classes}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not mlp_ratio * embed_dim >= 1:
            raise ValueError(f"mlp_ratio: expected at least one hidden unit, got {mlp_ratio} times {embed_dim}")
        if image_size % patch_size:
            raise ValueError(f"image_size: expected a multiple of patch_size {patch_size}, got {image_size}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: expected a multiple of num_heads {num_heads}, got {embed_dim}")
        self.image_size, self.embed_dim, self.depth, self.num_classes = image_size, embed_dim, depth, num_classes
        self._grid = (image_size // patch_size) ** 2
        self.num_tokens = 1 + self._grid
        self.mlp_dim = round(mlp_ratio * embed_dim)
        self.patches: nn.Conv2d | ConvStem
        if stem == "patch":
            self.patches = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        elif stem == "conv":
            self.patches = ConvStem(patch_size, embed_dim)
        else:
            raise unknown_name("stem", stem, get_args(Stem))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_tokens, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, self.mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():  # what 2 L branches add up to does not grow with depth
            if name.endswith(("projection.weight", "contract.weight")):  # (Radford et al., 2019)
                weight.data *= (2 * self.depth) ** -0.5

    @property
    def macs(self) -> Macs:
        patches = self.patches
        stem = patches.macs(self.image_size) if isinstance(patches, ConvStem) else patches.weight.numel() * self._grid
        return vit_macs(
            depth=self.depth,
            embed_dim=self.embed_dim,
            mlp_dim=self.mlp_dim,
            num_tokens=self.num_tokens,
            stem=stem,
            num_classes=self.num_classes,
        )

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        pixels = (resize(to_float_images(images), self.image_size) * 2 - 1).to(self.cls_token.dtype)
        patches = self.patches(pixels).flatten(2).transpose(1, 2)  # [B, N - 1, D]
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed

    def run_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.blocks[index](tokens)

    def run_half_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        block = cast(Block, self.blocks[index // 2])
        return block.mlp_half(tokens) if index % 2 else block.attention_half(tokens)

    def classify(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        return self.head(self.norm(tokens[:, 0]))

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        tokens = self.embed(images)
        for index in range(self.depth):
            tokens = self.run_block(index, tokens)
        return self.classify(tokens)
