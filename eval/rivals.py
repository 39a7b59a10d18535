"""Every baseline at the compute of a given network: parameters chosen on validation, measured on test."""

from collections.abc import Callable

import numpy as np

from ..agents.baselines import early_exit, fixed_mask, random_skip
from ..agents.dynamic_vit import DynamicViT
from ..agents.policy import Policy
from ..agents.static_masks import StaticMasks
from ..backbone import Dataset
from ..envs.observation import ObservationLayout
from .measurement import Measurement, measure, mix

BISECTIONS = 12


class Rivals:
    """Baselines on one backbone, measured at any budget; what is measured once is kept.

    Args:
        net: whose backbone and action unit to use; its policy is not looked at.
        validation: where thresholds and masks are chosen.
        test: where the result is measured.
        static_masks: every mask's accuracy on validation images; without it, or with half-blocks, the best static
            mask is left out.
    """

    def __init__(
        self, net: DynamicViT, validation: Dataset, test: Dataset, static_masks: StaticMasks | None = None
    ) -> None:
        self.net, self.validation, self.test = net, validation, test
        self.static_masks = static_masks if net.action_unit == "block" else None
        self.layout = ObservationLayout.of(net.backbone, "belief", net.action_unit)
        self._masks_measured: dict[tuple[bool, ...], Measurement] = {}

    def at(self, validation_macs: float, test_macs: float) -> dict[str, Measurement]:
        """All baselines by name, at a mean compute per image.

        Args:
            validation_macs: of the network to compare with, on validation: what thresholds are tuned to.
            test_macs: the same on test: what mixtures of static networks are set to.
        """
        found = {"random skip": self.random(test_macs), "first k": self.static(test_macs, self._first)}
        if self.static_masks is not None:
            found["best static mask"] = self.static(test_macs, self._best)
        return {**found, "early exit": self.early_exit(validation_macs)}

    def dense(self) -> Measurement:
        """The full network."""
        return self._measure_mask((True,) * self.layout.num_units)

    def random(self, macs: float) -> Measurement:
        """Unit 0, and the others at the rate that costs `macs` on average."""
        units = self.net.backbone.macs.units(self.net.action_unit)
        fixed = self.net.backbone.macs.total - sum(units[1:])
        rate = float(np.clip((macs - fixed) / sum(units[1:]), 0, 1))
        return self._measure(random_skip(self.layout, rate), self.test, "random skip")

    def static(self, macs: float, choose: Callable[[int], tuple[bool, ...]]) -> Measurement:
        """A mixture of the masks with k and k + 1 units that costs `macs` on average."""
        for k in range(self.layout.num_units):
            high = self._measure_mask(choose(k + 1))
            if high.macs.mean() >= macs or k + 1 == self.layout.num_units:
                return mix(self._measure_mask(choose(k)), high, macs)
        raise AssertionError("a backbone has at least one unit")

    def early_exit(self, validation_macs: float) -> Measurement:
        """Confidence early exit with the threshold that costs `validation_macs` on validation."""
        low, high = 0.0, 1.0 + 1e-6
        for _ in range(BISECTIONS):
            threshold = (low + high) / 2
            cost = self._measure(early_exit(self.layout, threshold), self.validation, "early exit").macs.mean()
            low, high = (threshold, high) if cost < validation_macs else (low, threshold)
        return self._measure(early_exit(self.layout, (low + high) / 2), self.test, "early exit")

    def _first(self, k: int) -> tuple[bool, ...]:
        return tuple(unit < k for unit in range(self.layout.num_units))

    def _best(self, k: int) -> tuple[bool, ...]:
        assert self.static_masks is not None
        return tuple(self.static_masks.best(k).tolist())

    def _measure_mask(self, keep: tuple[bool, ...]) -> Measurement:
        if keep not in self._masks_measured:
            policy = fixed_mask(self.layout, keep)
            self._masks_measured[keep] = self._measure(policy, self.test, "static mask")
        return self._masks_measured[keep]

    def _measure(self, policy: Policy, dataset: Dataset, description: str) -> Measurement:
        net = DynamicViT(self.net.backbone, policy, action_unit=self.net.action_unit).eval()
        return measure(net, dataset, description=description)
