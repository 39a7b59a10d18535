"""What the toolkit asks of a Vision Transformer: embed, run one (half-)block, classify."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from .macs import Macs

ActionUnit = Literal["block", "half"]


@runtime_checkable
class Backbone(Protocol):
    """A `torch.nn.Module` that can be executed block by block.

    Invariant: `classify(run_block(depth - 1, ... run_block(0, embed(images))))` equals `forward(images)`,
    and no row of a batch can influence another. Images are float32 in [0, 1] or uint8, not normalised: each
    backbone normalises them itself, so that data sets and deployment need not know how it was trained.

    Attributes:
        depth: number of blocks, L.
        embed_dim: width of a token, D.
        num_classes: number of classes, K.
        num_tokens: tokens per image with prefix tokens, N.
        num_prefix_tokens: leading tokens that are not patches; the first is the class token.
        image_size: height and width of the images that `embed` takes [pixels].
        macs: analytic multiply-accumulates of one image.
    """

    depth: int
    embed_dim: int
    num_classes: int
    num_tokens: int
    num_prefix_tokens: int
    image_size: int

    @property
    def macs(self) -> Macs: ...

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Turn square images into tokens; those of another size are resized first."""
        ...

    def run_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Run block `index` of 0..L-1 on every row. The input is not modified."""
        ...

    def run_half_block(self, index: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Run half-block `index` of 0..2L-1: attention of block index // 2 where even, its MLP where odd."""
        ...

    def classify(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        """Logits of the final norm and head, whatever blocks have run so far."""
        ...

    # The part of torch.nn.Module that the toolkit uses.
    def __call__(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def eval(self) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def num_units(backbone: Backbone, action_unit: ActionUnit) -> int:
    """Decisions per image, U: L with blocks, 2L with half-blocks."""
    return backbone.depth if action_unit == "block" else 2 * backbone.depth


def unit_runner(backbone: Backbone, action_unit: ActionUnit) -> Callable[[int, Tensor], Tensor]:
    """The backbone's method that runs one unit of decision, (index, tokens) -> tokens."""
    return backbone.run_block if action_unit == "block" else backbone.run_half_block


def to_float_images(images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images as float32 in [0, 1]; uint8 is divided by 255, floating point is passed through."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    if not images.is_floating_point():
        raise ValueError(f"images: expected uint8, or floating point in [0, 1], got {images.dtype}")
    return images


def resize(images: Float[Tensor, "B 3 H W"], image_size: int) -> Float[Tensor, "B 3 S S"]:
    """Square images in [0, 1] at another size, bicubic and smoothed where they shrink; those that fit are returned.

    Args:
        images: of equal height and width, in [0, 1].
        image_size: height and width S of the result [pixels].

    Raises:
        ValueError: if the images are not square, for they would be distorted.
    """
    height, width = images.shape[2:]
    if height != width:
        raise ValueError(f"images: expected as high as wide, got {height} x {width} pixels; crop or pad them first")
    if height == image_size:
        return images
    precise = images.to(torch.promote_types(images.dtype, torch.float32))  # no half precision on the CPU
    resized = F.interpolate(precise, (image_size, image_size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).to(images.dtype)
