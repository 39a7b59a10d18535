"""Static networks as rivals: shallower nets, token merging, whatever runs whole on every image."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from tqdm import tqdm

from ..agents.dynamic_vit import DynamicViT
from ..backbone import Backbone, Dataset, ViT, load_backbone
from ..backbone.protocol import num_units
from ..backbone.token_merging import merging_ladder, unmerged
from .frontier import neighbours
from .measurement import Measurement, mix


class StaticNetworks:
    """Networks that run whole, and the dense one, mixed in pairs to any mean compute.

    Which pair is chosen on validation: the one whose mixture is the most accurate there. What is measured once is kept.

    Args:
        networks: other backbones for the same classes; they are moved to the device of `net`.
        net: whose dense network is one more of them, and whose compute counts as 100%.
        validation: where the pair is chosen.
        test: where it is measured.
        dense_right: tells where the dense network is right on either, if that is known without running it.

    Raises:
        ValueError: if a network is for another number of classes.
    """

    def __init__(
        self,
        networks: Sequence[Backbone],
        net: DynamicViT,
        validation: Dataset,
        test: Dataset,
        dense_right: Callable[[Dataset], NDArray[np.bool_]] | None = None,
    ) -> None:
        dense = net.backbone
        for network in networks:
            if network.num_classes != dense.num_classes:
                raise ValueError(f"networks: expected {dense.num_classes} classes, got one with {network.num_classes}")
        device = next(dense.parameters()).device
        self.networks = [dense, *(network.to(device).eval() for network in networks)]
        self.validation, self.test, self.dense_macs = validation, test, dense.macs.dense
        self._macs = np.array([network.macs.total for network in self.networks], np.float64)
        self._units = [num_units(network, net.action_unit) for network in self.networks]
        self._dense_right = dense_right or functools.partial(run_whole, dense)
        self._measured: dict[int, Measurement] = {}

    def at(self, macs: float) -> Measurement:
        """The best mixture that costs `macs` on average; as near as they come outside the range of the networks."""
        low, high = (self._measure(index) for index in neighbours(self._macs, self._accuracy, macs))
        return mix(low, high, macs)

    @functools.cached_property
    def _accuracy(self) -> NDArray[np.float64]:
        """On validation, float64 [networks]."""
        return np.array([self._right(index, self.validation).mean() for index in range(len(self.networks))])

    def _right(self, index: int, split: Dataset) -> NDArray[np.bool_]:
        return run_whole(self.networks[index], split) if index else self._dense_right(split)

    def _measure(self, index: int) -> Measurement:
        """One network on the test part; its units are the first ones of the mask, which is as wide as the most have."""
        if index not in self._measured:
            correct = self._right(index, self.test)
            units_run = np.arange(max(self._units)) < self._units[index]
            self._measured[index] = Measurement(
                correct,
                np.broadcast_to(units_run, (len(correct), len(units_run))),
                np.full(len(correct), self.networks[index].macs.total, np.int64),
                self.dense_macs,
                self.test.difficulty.numpy().astype(np.float64),
            )
        return self._measured[index]


@torch.no_grad()
def run_whole(backbone: Backbone, dataset: Dataset, batch_size: int = 500) -> Bool[np.ndarray, " N"]:
    """Where a backbone that skips nothing is right."""
    dataset.check_fits(backbone)
    device = next(backbone.parameters()).device
    correct = [
        backbone(dataset.images[start : start + batch_size].to(device)).argmax(1).cpu()
        == dataset.labels[start : start + batch_size]
        for start in tqdm(range(0, len(dataset), batch_size), desc="static network", leave=False, disable=None)
    ]
    return torch.cat(correct).numpy()


def static_rivals(backbone: Backbone, names: Sequence[str] = ()) -> dict[str, list[Backbone]]:
    """The networks that a backbone is compared with, by the name of the baseline that they make.

    Args:
        backbone: whose tokens are merged, if it is our ViT.
        names: of further backbones, e.g. shallower ones.
    """
    others: dict[str, list[Backbone]] = {"other nets": [load_backbone(name) for name in names]} if names else {}
    vit = unmerged(backbone)
    if isinstance(vit, ViT):
        others["token merging"] = [*merging_ladder(vit)]
    return others
