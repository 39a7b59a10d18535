"""Every static mask of a backbone, tried on real images: the bar for a dynamic network."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..backbone import Backbone, run_masked

MAX_DEPTH = 16  # 2^16 masks


@dataclass(frozen=True)
class StaticMasks:
    """Accuracy of subsets of blocks.

    Attributes:
        keep_mask: bool [M, L], the masks: all 2^L of them, or the candidates of a second round.
        accuracy: float64 [M], on the images that were tried.
    """

    keep_mask: NDArray[np.bool_]
    accuracy: NDArray[np.float64]

    def best(self, blocks: int) -> NDArray[np.bool_]:
        """The most accurate mask with this many blocks, bool [L]; of equals the one with earlier blocks."""
        candidates = self._with(blocks)
        return self.keep_mask[candidates[self.accuracy[candidates].argmax()]]

    def mean_accuracy(self, blocks: int) -> float:
        """Mean over all masks with this many blocks."""
        return float(self.accuracy[self._with(blocks)].mean())

    def _with(self, blocks: int) -> NDArray[np.int64]:
        depth = self.keep_mask.shape[1]
        if not 0 <= blocks <= depth:
            raise ValueError(f"blocks: expected 0..{depth}, got {blocks}")
        return np.flatnonzero(self.keep_mask.sum(1) == blocks)


@torch.no_grad()
def enumerate_static_masks(
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    *,
    chunk: int = 64,
) -> StaticMasks:
    """Classify each image by all 2^L masks; masks that begin alike share their beginning.

    That costs (2^L - 1) block calls per image, 341 dense networks for L = 12, instead of 2^L / 2 of them.

    Args:
        backbone: ViT of at most 16 blocks, in eval mode.
        images: of a validation part: the best mask is a choice.
        labels: their classes.
        chunk: images at a time; memory holds their tokens once for each block.

    Raises:
        ValueError: if the backbone is too deep to enumerate.
    """
    depth = backbone.depth
    if depth > MAX_DEPTH:
        raise ValueError(f"backbone: expected at most {MAX_DEPTH} blocks to enumerate their masks, got {depth}")
    device = next(backbone.parameters()).device
    correct = torch.zeros(2**depth, dtype=torch.int64, device=device)
    for start in tqdm(range(0, len(images), chunk), desc="static masks", unit="chunk", leave=False, disable=None):
        batch = images[start : start + chunk].to(device)
        predictions = _all_predictions(backbone, backbone.embed(batch), 0)  # [2^L, B]
        correct += (predictions == labels[start : start + chunk].to(device)).sum(1)
    return StaticMasks(_all_masks(depth).numpy(), correct.cpu().numpy() / len(images))


@torch.no_grad()
def rescore(
    masks: StaticMasks,
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    *,
    candidates: int = 8,
) -> StaticMasks:
    """Try the best few masks of every level, and the first k blocks, again on other images.

    The winner among thousands on a few images owes much to luck; a second round takes that away.

    Args:
        masks: of the first round.
        backbone: the same ViT.
        images: of the validation part, others than in the first round.
        labels: their classes.
        candidates: masks kept from each level.

    Returns:
        The candidates alone, with their accuracy on these images.
    """
    blocks = masks.keep_mask.sum(1)
    levels = [np.flatnonzero(blocks == level) for level in range(backbone.depth + 1)]
    chosen = [level[np.argsort(-masks.accuracy[level], kind="stable")[:candidates]] for level in levels]
    prefixes = np.flatnonzero((masks.keep_mask == (np.arange(backbone.depth) < blocks[:, None])).all(1))
    finalists = masks.keep_mask[np.unique(np.concatenate([*chosen, prefixes]))]
    device = next(backbone.parameters()).device
    accuracy = np.zeros(len(finalists))
    for number, keep in enumerate(tqdm(finalists, desc="finalists", unit="mask", leave=False, disable=None)):
        for batch, target in zip(images.split(500), labels.split(500), strict=True):
            keep_mask = torch.from_numpy(keep).expand(len(batch), -1)
            prediction = run_masked(backbone, batch.to(device), keep_mask).argmax(1).cpu()
            accuracy[number] += int((prediction == target).sum())
    return StaticMasks(finalists, accuracy / len(images))


def _all_predictions(backbone: Backbone, tokens: Float[Tensor, "B N D"], index: int) -> Int64[Tensor, "M B"]:
    """Predictions after every subset of the blocks from `index` on, in the order of `_all_masks`."""
    if index == backbone.depth:
        return backbone.classify(tokens).argmax(1)[None]
    run = _all_predictions(backbone, backbone.run_block(index, tokens), index + 1)
    return torch.cat([run, _all_predictions(backbone, tokens, index + 1)])


def _all_masks(depth: int) -> Bool[Tensor, "M L"]:
    """[2^L, L]; block 0 runs in the first half, block 1 in the first half of each half, and so on."""
    number = torch.arange(2**depth)[:, None]
    return (number >> torch.arange(depth - 1, -1, -1)) % 2 == 0
