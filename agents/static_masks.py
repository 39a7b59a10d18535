"""Static masks of a backbone, tried on real images: the bar for a dynamic network.

All of them where they can be enumerated, a greedy search where they cannot: 24 half-blocks, or a deep network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..backbone import Backbone
from ..backbone.protocol import ActionUnit, num_units, unit_runner

MAX_UNITS = 16  # 2^16 masks


@dataclass(frozen=True)
class StaticMasks:
    """Accuracy of subsets of units, blocks or halves of them.

    Attributes:
        keep_mask: bool [M, U], the masks: all 2^U of them, those a search has tried, or the finalists of a second
            round.
        accuracy: float64 [M], on the images that were tried.
    """

    keep_mask: NDArray[np.bool_]
    accuracy: NDArray[np.float64]

    def best(self, units: int) -> NDArray[np.bool_]:
        """The most accurate mask with this many units, bool [U]; of equals the one with earlier units."""
        candidates = self._with(units)
        return self.keep_mask[candidates[self.accuracy[candidates].argmax()]]

    def _with(self, units: int) -> NDArray[np.int64]:
        most = self.keep_mask.shape[1]
        if not 0 <= units <= most:
            raise ValueError(f"units: expected 0..{most}, got {units}")
        return np.flatnonzero(self.keep_mask.sum(1) == units)


@torch.no_grad()
def enumerate_static_masks(
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    *,
    action_unit: ActionUnit = "block",
    chunk: int = 64,
) -> StaticMasks:
    """Classify each image by all 2^U masks; masks that begin alike share their beginning.

    That costs (2^U - 1) unit calls per image, 341 dense networks for 12 blocks, instead of 2^U / 2 of them.

    Args:
        backbone: ViT of at most 16 units, in eval mode.
        images: of a validation part: the best mask is a choice.
        labels: their classes.
        action_unit: "block" or "half".
        chunk: images at a time; memory holds their tokens once for each unit.

    Raises:
        ValueError: if the backbone has too many units to enumerate.
    """
    units = num_units(backbone, action_unit)
    if units > MAX_UNITS:
        raise ValueError(f"backbone: expected at most {MAX_UNITS} units to enumerate their masks, got {units}")
    masks = (torch.arange(2**units)[:, None] >> torch.arange(units - 1, -1, -1)) % 2 == 0  # earlier units first
    return _score(masks, backbone, images, labels, action_unit, chunk)


@torch.no_grad()
def search_static_masks(
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    *,
    action_unit: ActionUnit = "block",
    chunk: int = 32,
) -> StaticMasks:
    """Backward elimination: from all units to none, again and again without the one that is worth least.

    Worth is the mean log-likelihood of the label that is lost per MAC saved, as units may differ in cost. On few images
    it is a better guide than accuracy, which hardly changes with one unit. The masks of the path are nested. It costs
    about U^3 / 6 unit calls per image: 96 dense networks for 24 half-blocks.

    Args:
        backbone: ViT, in eval mode.
        images: of a validation part: the best mask is a choice.
        labels: their classes.
        action_unit: "block" or "half".
        chunk: images at a time; memory holds their tokens once for each unit.

    Returns:
        Every mask that was tried: those of the path, and the neighbours that were not gone to.
    """
    macs = np.array(backbone.macs.units(action_unit), np.float64)
    keep = np.ones(len(macs), bool)
    tried: dict[tuple[bool, ...], float] = {}
    for _ in tqdm(macs, desc="static masks", unit="level", leave=False, disable=None):
        kept = np.flatnonzero(keep).tolist()
        accuracy, log_likelihood = _without_each(backbone, images, labels, kept, action_unit, chunk)
        masks = keep & ~np.eye(len(macs), dtype=bool)[kept]  # [K, U]
        tried |= dict(zip(map(tuple, [keep.tolist(), *masks.tolist()]), accuracy.tolist(), strict=True))
        keep = masks[((log_likelihood[1:] - log_likelihood[0]) / macs[kept]).argmax()]
    return StaticMasks(np.array(list(tried), bool), np.array(list(tried.values())))


@torch.no_grad()
def rescore(
    masks: StaticMasks,
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    *,
    action_unit: ActionUnit = "block",
    candidates: int = 8,
    chunk: int = 256,
) -> StaticMasks:
    """Try the finalists again on other images.

    The winner among thousands on a few images owes much to luck; a second round takes that away. Finalists are the best
    few masks of every number of units, the first k units, and each mask that no cheaper one equals.

    Args:
        masks: of the first round.
        backbone: the same ViT.
        images: of the validation part, others than in the first round.
        labels: their classes.
        action_unit: "block" or "half".
        candidates: masks kept for each number of units.
        chunk: images at a time.

    Returns:
        The finalists alone, with their accuracy on these images.
    """
    units = masks.keep_mask.sum(1)
    levels = [np.flatnonzero(units == level) for level in range(masks.keep_mask.shape[1] + 1)]
    chosen = [level[np.argsort(-masks.accuracy[level], kind="stable")[:candidates]] for level in levels]
    macs = (masks.keep_mask * np.array(backbone.macs.units(action_unit), np.int64)).sum(1)
    chosen.append(_undominated(macs, masks.accuracy))
    finalists = np.concatenate([masks.keep_mask[np.unique(np.concatenate(chosen))], _prefixes(len(levels) - 1)])
    finalists = finalists[np.sort(np.unique(finalists, axis=0, return_index=True)[1])]
    return _score(torch.from_numpy(finalists), backbone, images, labels, action_unit, chunk)


@torch.no_grad()
def predict_masks(
    backbone: Backbone,
    images: Shaped[Tensor, "B 3 H W"],
    keep_mask: Bool[Tensor, "M U"],
    action_unit: ActionUnit = "block",
) -> Int64[Tensor, "M B"]:
    """What each mask says of each image; masks that begin alike share their beginning.

    Args:
        backbone: ViT, in eval mode.
        images: a batch on its device; memory holds their tokens once for each unit.
        keep_mask: the masks, on the CPU.
        action_unit: "block" or "half".
    """
    run, units = unit_runner(backbone, action_unit), keep_mask.shape[1]

    def predict(tokens: Float[Tensor, "B N D"], masks: Bool[Tensor, "m U"], unit: int) -> Int64[Tensor, "m B"]:
        if unit == units:
            return backbone.classify(tokens).argmax(1).expand(len(masks), -1)
        runs = masks[:, unit]
        result = torch.empty(len(masks), len(tokens), dtype=torch.int64, device=tokens.device)
        if runs.any():
            result[runs] = predict(run(unit, tokens), masks[runs], unit + 1)
        if not runs.all():
            result[~runs] = predict(tokens, masks[~runs], unit + 1)
        return result

    return predict(backbone.embed(images), keep_mask, 0)


def _score(
    keep_mask: Bool[Tensor, "M U"],
    backbone: Backbone,
    images: Shaped[Tensor, "N 3 H W"],
    labels: Int64[Tensor, " N"],
    action_unit: ActionUnit,
    chunk: int,
) -> StaticMasks:
    """The accuracy of these masks."""
    device = next(backbone.parameters()).device
    correct = torch.zeros(len(keep_mask), dtype=torch.int64, device=device)
    for start in tqdm(range(0, len(images), chunk), desc="static masks", unit="chunk", leave=False, disable=None):
        predictions = predict_masks(backbone, images[start : start + chunk].to(device), keep_mask, action_unit)
        correct += (predictions == labels[start : start + chunk].to(device)).sum(1)
    return StaticMasks(keep_mask.numpy(), correct.cpu().numpy() / len(images))


def _without_each(
    backbone: Backbone, images: Tensor, labels: Tensor, kept: Sequence[int], action_unit: ActionUnit, chunk: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy and mean log-likelihood [1 + K]: of the kept units, then without each of them; beginnings are shared."""
    run, device = unit_runner(backbone, action_unit), next(backbone.parameters()).device
    total = torch.zeros(2, 1, dtype=torch.float64, device=device)
    for batch, target in zip(images.split(chunk), labels.split(chunk), strict=True):
        paths = backbone.embed(batch.to(device))[None]  # [P, B, N, D]; the first one skips nothing
        for unit in kept:
            ran = run(unit, paths.flatten(0, 1)).unflatten(0, paths.shape[:2])
            paths = torch.cat([ran, paths[:1]])  # the last one skips this unit
        logits = backbone.classify(paths.flatten(0, 1)).unflatten(0, paths.shape[:2])
        right = logits.argmax(2) == target.to(device)
        likelihood = logits.double().log_softmax(2).take_along_dim(target.to(device)[None, :, None], 2)
        total = total + torch.stack([right.double().sum(1), likelihood.sum((1, 2))])
    accuracy, log_likelihood = (total / len(images)).cpu().numpy()
    return accuracy, log_likelihood


def _prefixes(units: int) -> NDArray[np.bool_]:
    """The first k units, k = 0..U, bool [U + 1, U]."""
    return np.tri(units + 1, units, -1, dtype=bool)


def _undominated(macs: NDArray[np.int64], accuracy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of what is more accurate than everything that is cheaper, or as cheap."""
    order = np.lexsort((-accuracy, macs))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(accuracy[order])[:-1]])
    return order[accuracy[order] > best_before]
