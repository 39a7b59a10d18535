"""What one step trains: the full path, and what it teaches: a random part of the depth, or every prefix."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .masked import run_units
from .protocol import Backbone
from .recipe import Skip


class Paths(nn.Module):
    """The full and the skipped paths of a batch; they share the stem and block 0, which always runs.

    One path for each image, by its keep-mask; with "tail" all that run the first k blocks, k = 1..L-1, on the way of
    the full one (deep supervision, Lee et al., 2015), for the price of the head alone.
    """

    def __init__(self, vit: Backbone, skip: Skip) -> None:
        super().__init__()
        if vit.depth < 2 and skip == "tail":
            raise ValueError(f"skip: expected a net of at least 2 blocks to train its prefixes, got {vit.depth}")
        self.vit = vit
        self.skip: Skip = skip

    def forward(
        self, images: Float[Tensor, "B 3 H W"], keep_mask: Bool[Tensor, "B U"], full_rows: Int64[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "B P K"] | None]:
        """Logits of the full path for some rows, and of the skipped paths for all."""
        tokens = self.vit.run_block(0, self.vit.embed(images))
        if self.skip == "tail":
            prefixes = [self.vit.classify(tokens)]
            for block in range(1, self.vit.depth):
                tokens = self.vit.run_block(block, tokens)
                prefixes.append(self.vit.classify(tokens))
            return prefixes[-1], torch.stack(prefixes[:-1], 1)
        full = tokens if len(full_rows) == len(tokens) else tokens.index_select(0, full_rows)
        for block in range(1, self.vit.depth):
            full = self.vit.run_block(block, full)
        if self.skip == "none":
            return self.vit.classify(full), None
        skipped = run_units(self.vit, tokens, keep_mask, self.skip, first=units_of_block_0(self.skip))
        return self.vit.classify(full), self.vit.classify(skipped).unsqueeze(1)


def units_of_block_0(skip: Skip) -> int:
    """How many leading units always run."""
    return 2 if skip == "half" else 1


def path_losses(
    full: Float[Tensor, "R K"],
    skipped: Float[Tensor, "B P K"] | None,
    targets: Float[Tensor, "B K"],
    full_rows: Int64[Tensor, " R"],
    *,
    label_smoothing: float,
    distillation: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Losses of the full and of the skipped paths, each summed over its rows and divided by the batch size.

    The target of a skipped path is the labels', and where its image's full path was run, with weight `distillation`
    what that path believes; an image's P skipped paths weigh as much as one.
    """
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    full_loss = F.cross_entropy(full.float(), smooth[full_rows], reduction="sum") / len(targets)
    if skipped is None:
        return full_loss, torch.zeros_like(full_loss)
    taught = smooth[full_rows].lerp(full.detach().float().softmax(1), distillation)
    wanted = smooth.index_copy(0, full_rows, taught).unsqueeze(1).expand_as(skipped)
    return full_loss, F.cross_entropy(skipped.float().flatten(0, 1), wanted.flatten(0, 1))
