"""torchvision's Vision Transformers (vit_b_16, vit_l_32, ...) behind the `Backbone` protocol.

torchvision's quirks live here: its class token and head start at zero, so that an untrained net answers every image
with the same logits, and in eval mode without gradients its attention takes a fused path that
`torch.utils.flop_counter` does not see.
"""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer, interpolate_embeddings

from .macs import Macs, vit_macs
from .protocol import resize, to_float_images
from .registry import unknown_name
from .weights import load_pretrained, read_state_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TorchvisionViT(nn.Module):
    """A torchvision `VisionTransformer`, executable block by block; implements `Backbone`.

    Args:
        vit: the network to wrap, not copied; its stem must be one convolution, as in all named torchvision ViTs.
        mean: of the red, green and blue of images in [0, 1] that `vit` was trained with.
        std: standard deviation of the same.

    Raises:
        ValueError: if the stem is not one convolution or the head has no linear layer.
    """

    num_prefix_tokens = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not isinstance(vit.conv_proj, nn.Conv2d):
            raise ValueError(f"vit: expected a stem of one nn.Conv2d, got {type(vit.conv_proj).__name__}")
        head = [layer for layer in vit.heads.modules() if isinstance(layer, nn.Linear)]
        if not head:
            raise ValueError(f"vit: expected heads with an nn.Linear, got {vit.heads}")
        self.vit = vit
        self.image_size, self.embed_dim, self.depth = vit.image_size, vit.hidden_dim, len(vit.encoder.layers)
        self.num_tokens, self.num_classes = vit.seq_length, head[-1].out_features
        self._stem_macs = (self.num_tokens - self.num_prefix_tokens) * vit.conv_proj.weight.numel()
        self._head_macs = sum(layer.weight.numel() for layer in head)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def macs(self) -> Macs:
        macs = vit_macs(
            depth=self.depth,
            embed_dim=self.embed_dim,
            mlp_dim=self.vit.mlp_dim,
            num_tokens=self.num_tokens,
            stem=self._stem_macs,
            num_classes=self.num_classes,
        )
        return replace(macs, head=self._head_macs)  # with a representation layer the head is two matrices

    @property
    def blocks(self) -> nn.Sequential:
        return self.vit.encoder.layers

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Turn images into tokens; square images of another size than `image_size` are resized to it first."""
        normalised = (resize(to_float_images(images), self.image_size) - self.mean) / self.std
        patches = self.vit._process_input(normalised.to(self.vit.class_token.dtype))  # [B, N - 1, D]
        tokens = torch.cat([self.vit.class_token.expand(len(patches), -1, -1), patches], 1)
        return self.vit.encoder.dropout(tokens + self.vit.encoder.pos_embedding)

    def run_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self._layer(index)(tokens)

    def run_half_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        layer = self._layer(index // 2)
        if index % 2:
            return tokens + layer.mlp(layer.ln_2(tokens))
        normed = layer.ln_1(tokens)
        attended, _ = layer.self_attention(normed, normed, normed, need_weights=False)
        return tokens + layer.dropout(attended)

    def classify(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        return self.vit.heads(self.vit.encoder.ln(tokens[:, 0]))

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        tokens = self.embed(images)
        for index in range(self.depth):
            tokens = self.run_block(index, tokens)
        return self.classify(tokens)

    def _layer(self, index: int) -> EncoderBlock:
        return cast(EncoderBlock, self.vit.encoder.layers[index])


def torchvision_backbone(
    name: str, *, num_classes: int = 1000, image_size: int = 224, weights_path: str | Path | None = None
) -> TorchvisionViT:
    """Build a torchvision ViT without downloading anything.

    Args:
        name: "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32" or "vit_h_14".
        num_classes: classes K.
        image_size: height and width of the images [pixels]; a multiple of the patch size.
        weights_path: torchvision state dict, `.safetensors` or `torch.save`d; position embeddings of another
            image size are interpolated, a head of another number of classes is left out with a warning. Random
            weights without it.

    Returns:
        the backbone in eval mode, normalising as ImageNet weights expect.

    Raises:
        ValueError: if the name is unknown, the file is damaged or the weights are of another network.
        FileNotFoundError: if there is no file at `weights_path`.
    """
    known = models.list_models(models, include="vit_*")
    if name not in known:
        raise unknown_name("torchvision ViT", name, known)
    vit = cast(VisionTransformer, models.get_model(name, weights=None, num_classes=num_classes, image_size=image_size))
    if weights_path is not None:
        _load_weights(vit, Path(weights_path).expanduser())
    return TorchvisionViT(vit).eval()


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    """Fill in weights from disk, with position embeddings brought to the network's image size."""
    stored = read_state_dict(path)
    if "encoder.pos_embedding" in stored:
        stored = interpolate_embeddings(vit.image_size, vit.patch_size, OrderedDict(stored))
    load_pretrained(path, stored, vit, heads=("heads.",))
