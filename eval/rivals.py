"""Every baseline at the compute of a given network: parameters chosen on validation, measured on test."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..agents.baselines import fixed_mask, random_skip
from ..agents.dynamic_vit import DynamicViT
from ..agents.image_runner import make_runner
from ..agents.policy import Policy
from ..agents.static_masks import StaticMasks
from ..backbone import Backbone, Dataset
from ..backbone.token_merging import unmerged
from ..envs.observation import ObservationLayout
from .early_exit import falling_threshold, one_threshold
from .frontier import neighbours
from .measurement import Measurement, measure, mix
from .oracle import Codebook, codebook_masks, run_codebook
from .prefixes import run_prefixes
from .static_networks import StaticNetworks

RATES = 20  # of random skipping that are measured; those between are mixtures


class Rivals:
    """Baselines on one backbone, measured at any budget; what is measured once is kept.

    Args:
        net: whose backbone and action unit to use; its policy is not looked at.
        validation: where thresholds and masks are chosen.
        test: where the result is measured.
        static_masks: accuracy of masks of the same units on validation images; without it the best static mask is
            left out.
        networks: other static networks, one baseline per name, e.g. {"shallow nets": [vit3, vit6]}; each name's
            networks and the dense one are mixed in pairs.
        prefix_cache: memory for the states that networks on this backbone visit in `measured`, twice [10^6 bytes].

    Raises:
        ValueError: if the masks are of other units, or a network is for another number of classes.
    """

    def __init__(
        self,
        net: DynamicViT,
        validation: Dataset,
        test: Dataset,
        static_masks: StaticMasks | None = None,
        networks: Mapping[str, Sequence[Backbone]] | None = None,
        prefix_cache: float = 0.0,
    ) -> None:
        self.net, self.validation, self.test, self.static_masks = net, validation, test, static_masks
        self.layout = ObservationLayout.of(net.backbone, "belief", net.action_unit)
        if static_masks is not None and static_masks.keep_mask.shape[1] != self.layout.num_units:
            raise ValueError(
                f"static_masks: expected masks of {self.layout.num_units} units, got {static_masks.keep_mask.shape[1]}"
            )
        prefixes = functools.partial(run_prefixes, net.backbone, action_unit=net.action_unit)
        on_validation, on_test = (functools.cache(functools.partial(prefixes, split)) for split in (validation, test))
        self._validation_prefixes, self._test_prefixes = on_validation, on_test

        def dense_right(split: Dataset) -> NDArray[np.bool_]:
            """Without `self`: in a cycle of references the memory for states would outlive these rivals."""
            return (on_validation() if split is validation else on_test()).correct[-1]

        self.networks = {
            name: StaticNetworks(others, net, validation, test, dense_right)
            for name, others in (networks or {}).items()
        }
        self._runners = [make_runner(split, net.backbone, prefix_cache) for split in (validation, test)]
        self._macs = net.backbone.macs
        self._unit_macs = np.array(self._macs.units(net.action_unit), np.int64)
        self._prefix_macs = np.concatenate([[0], self._unit_macs.cumsum()]) + self._macs.stem  # head not included
        self._blind = unmerged(net.backbone) is net.backbone  # one that merges has run block 0 before the first unit
        self._exit_macs = self._prefix_macs + (1 + np.arange(self.layout.num_units + 1)) * self._macs.head
        self._random_measured: dict[float, Measurement] = {}
        self._masks_measured: dict[tuple[bool, ...], Measurement] = {}

    def at(self, validation_macs: float, test_macs: float) -> dict[str, Measurement]:
        """All baselines by name, at a mean compute per image.

        Args:
            validation_macs: of the network to compare with, on validation: what thresholds are tuned to.
            test_macs: the same on test: what mixtures of static networks are set to.
        """
        units = self.layout.num_units
        first = [self._prefix(np.full(len(self.test), k), head_calls=1) for k in range(units + 1)]
        found = {"random skip": self.random(test_macs), "first k": mix_to(first, test_macs)}
        if self.static_masks is not None:
            found["best static mask"] = self.best_static(self.static_masks, test_macs)
        found["early exit"] = self.early_exit(validation_macs)
        found["early exit, falling"] = self.falling_exit(validation_macs)
        return found | {name: networks.at(test_macs) for name, networks in self.networks.items()}

    def measured(self, net: DynamicViT) -> tuple[Measurement, Measurement]:
        """A network on this backbone, on validation and on test."""
        validation, test = (measure(net, run) for run in self._runners)
        return validation, test

    def dense(self) -> Measurement:
        """The full network."""
        return self._measure_mask((True,) * self.layout.num_units)

    def random(self, macs: float) -> Measurement:
        """Unit 0, and the others at the rate that costs `macs` on average: a mixture of two rates a twentieth apart."""
        drawn = self._unit_macs[1:].sum()
        rate = float(np.clip((macs - self._macs.total + drawn) / drawn, 0, 1)) if drawn else 1.0
        low, high = (self._random_at(step / RATES) for step in (int(rate * RATES), math.ceil(rate * RATES)))
        return mix(low, high, macs)

    def _random_at(self, rate: float) -> Measurement:
        if rate not in self._random_measured:
            self._random_measured[rate] = self._measure(random_skip(self.layout, rate), "random skip")
        return self._random_measured[rate]

    def best_static(self, static_masks: StaticMasks, macs: float) -> Measurement:
        """The mixture of two masks that is the most accurate on validation where it costs `macs` on average.

        Cheaper than that where no dearer mask is more accurate on validation.
        """
        keep_mask = static_masks.keep_mask
        costs = (self._macs.stem + self._macs.head + keep_mask @ self._unit_macs).astype(np.float64)
        chosen = (tuple(keep_mask[rung].tolist()) for rung in neighbours(costs, static_masks.accuracy, macs))
        low, high = (self._measure_mask(keep) for keep in chosen)
        return mix(low, high, macs)

    def early_exit(self, validation_macs: float) -> Measurement:
        """Confidence early exit with the threshold that costs `validation_macs` on validation."""
        return self._leave(one_threshold, validation_macs)

    def falling_exit(self, validation_macs: float) -> Measurement:
        """The same with a threshold that falls with depth, as much as makes most images right on validation."""
        return self._leave(falling_threshold, validation_macs)

    def _leave(self, choose: Callable[..., NDArray[np.float64]], validation_macs: float) -> Measurement:
        """Exact, from one pass over all prefixes: the path of an early exit is a prefix.

        The head is called once before the first unit and again after each.
        """
        thresholds = choose(self._validation_prefixes(), self._exit_macs, validation_macs, blind=self._blind)
        units = self._test_prefixes().exit_units(thresholds)
        return self._prefix(units, head_calls=1 + units)

    @functools.cached_property
    def codebook(self) -> Codebook:
        """What the oracle chooses from."""
        masks = codebook_masks(self.layout.num_units, self.static_masks)
        return run_codebook(self.net.backbone, self.test, masks, self.net.action_unit)

    def _prefix(self, units: NDArray[np.int64], head_calls: NDArray[np.int64] | int) -> Measurement:
        """The first `units` [N] units of each test image."""
        return Measurement(
            self._test_prefixes().correct[units, np.arange(len(units))],
            np.arange(self.layout.num_units) < units[:, None],
            self._prefix_macs[units] + head_calls * self._macs.head,
            self._macs.dense,
            self.test.difficulty.numpy().astype(np.float64),
        )

    def _measure_mask(self, keep: tuple[bool, ...]) -> Measurement:
        count = sum(keep)
        if all(keep[:count]):  # one pass has measured all of these
            return self._prefix(np.full(len(self.test), count), head_calls=1)
        if keep not in self._masks_measured:
            self._masks_measured[keep] = self._measure(fixed_mask(self.layout, keep), "static mask")
        return self._masks_measured[keep]

    def _measure(self, policy: Policy, description: str) -> Measurement:
        net = DynamicViT(self.net.backbone, policy, action_unit=self.net.action_unit).eval()
        return measure(net, self.test, description=description)


def mix_to(ladder: Sequence[Measurement], macs: float) -> Measurement:
    """Mix the two networks of a ladder, cheapest first, between which `macs` lies; its nearer end outside."""
    dearer = next((rung for rung, network in enumerate(ladder) if network.macs.mean() >= macs), len(ladder) - 1)
    return mix(ladder[max(dearer - 1, 0)], ladder[dearer], macs)
