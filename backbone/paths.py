"""What one step trains: the full path and a random part of the depth, the one teaching the other."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .masked import run_units
from .protocol import Backbone
from .recipe import Skip


class Paths(nn.Module):
    """The full and the skipped path of a batch; they share the stem and block 0, which always runs."""

    def __init__(self, vit: Backbone, skip: Skip) -> None:
        super().__init__()
        self.vit = vit
        self.skip: Skip = skip

    def forward(
        self, images: Float[Tensor, "B 3 H W"], keep_mask: Bool[Tensor, "B U"], full_rows: Int64[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "B K"] | None]:
        """Logits of the full path for some rows, and of the skipped path for all."""
        tokens = self.vit.run_block(0, self.vit.embed(images))
        full = tokens if len(full_rows) == len(tokens) else tokens.index_select(0, full_rows)
        for block in range(1, self.vit.depth):
            full = self.vit.run_block(block, full)
        if self.skip == "none":
            return self.vit.classify(full), None
        skipped = run_units(self.vit, tokens, keep_mask, self.skip, first=units_of_block_0(self.skip))
        return self.vit.classify(full), self.vit.classify(skipped)


def units_of_block_0(skip: Skip) -> int:
    """How many leading units always run."""
    return 2 if skip == "half" else 1


def path_losses(
    full: Float[Tensor, "R K"],
    skipped: Float[Tensor, "B K"] | None,
    targets: Float[Tensor, "B K"],
    full_rows: Int64[Tensor, " R"],
    *,
    label_smoothing: float,
    distillation: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Losses of the full and of the skipped path, each summed over its rows and divided by the batch size.

    The target of a skipped row is the labels', and where its full path was run, with weight `distillation` what that
    path believes.
    """
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    full_loss = F.cross_entropy(full.float(), smooth[full_rows], reduction="sum") / len(targets)
    if skipped is None:
        return full_loss, torch.zeros_like(full_loss)
    taught = smooth[full_rows].lerp(full.detach().float().softmax(1), distillation)
    return full_loss, F.cross_entropy(skipped.float(), smooth.index_copy(0, full_rows, taught))
