"""`vitskip evaluate`: a run against the dense network and every baseline at equal compute."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..agents.dynamic_vit import DynamicViT
from ..agents.image_runner import alike
from ..agents.static_masks import StaticMasks, enumerate_static_masks, rescore, search_static_masks
from ..backbone import Backbone, Dataset
from ..backbone.protocol import ActionUnit, num_units
from .measurement import Measurement
from .oracle import CRITERIA, Codebook
from .rivals import Rivals
from .statistics import paired_test

ENUMERABLE_UNITS = 12  # beyond, masks are searched
RESCORED = 2_000  # validation images of the second round


@dataclass(frozen=True)
class Evaluation:
    """A network and its rivals on the test part.

    Attributes:
        dense: the full network.
        net: the network evaluated.
        rivals: baselines at its compute, by name.
        codebook: what the oracle chooses from; None leaves it out.
        references: other full networks, by name: those that a jointly trained backbone must be held against.
    """

    dense: Measurement
    net: Measurement
    rivals: dict[str, Measurement]
    codebook: Codebook | None = None
    references: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def oracles(self) -> dict[str, Measurement]:
        """The oracle at no more than the network's compute, by criterion."""
        book, macs = self.codebook, float(self.net.macs.mean())
        return {} if book is None else {criterion: book.oracle(criterion, macs) for criterion in CRITERIA}

    def rows(self, name: str) -> dict[str, Measurement]:
        """All of them by name, for a table."""
        oracles = {f"oracle ({criterion})": oracle for criterion, oracle in self.oracles.items()}
        return {"run-all (dense)": self.dense, **self.references, name: self.net, **self.rivals, **oracles}

    def summary(self) -> dict[str, Any]:
        """JSON values: every network's numbers, and paired tests of `net` against each other one."""
        full, book = {"dense": self.dense, **self.references}, self.codebook
        tests = {name: paired_test(self.net.correct, other.correct) for name, other in (full | self.rivals).items()}
        gaps = {} if book is None else {criterion: asdict(book.gap(self.net, criterion)) for criterion in CRITERIA}
        return {
            "net": self.net.summary(),
            "dense": self.dense.summary(),
            "references": {name: reference.summary() for name, reference in self.references.items()},
            "rivals": {name: rival.summary() for name, rival in self.rivals.items()},
            "net_minus": {name: asdict(test) for name, test in tests.items()},
            "oracles": {criterion: oracle.summary() for criterion, oracle in self.oracles.items()},
            "oracle_minus_net": gaps,
            "no_worse_by_half_a_point": {name: tests[name].no_worse() for name in full},
        }


def evaluate(
    net: DynamicViT,
    validation: Dataset,
    test: Dataset,
    static_masks: StaticMasks | None = None,
    networks: Mapping[str, Sequence[Backbone]] | None = None,
    references: Mapping[str, Measurement] | None = None,
) -> Evaluation:
    """Measure a network on test, beside the dense network, every baseline at equal compute, and the oracle.

    Args:
        net: the network.
        validation: where the baselines' thresholds and masks are chosen.
        test: touched by this alone.
        static_masks: from `validation_masks`; without it the best static mask is left out.
        networks: other static networks by the name of the baseline that they make, as `Rivals` takes them.
        references: other full networks by name, on test.
    """
    return evaluate_against(Rivals(net, validation, test, static_masks, networks), net, references)


def evaluate_against(
    rivals: Rivals, net: DynamicViT, references: Mapping[str, Measurement] | None = None
) -> Evaluation:
    """`evaluate`, for several networks on one backbone: what their rivals have in common is measured once.

    Args:
        rivals: on the backbone of `net`.
        net: the network.
        references: other full networks by name, on test.

    Raises:
        ValueError: if the rivals are on another backbone.
    """
    if not alike(net.backbone, rivals.net.backbone):
        raise ValueError("rivals: expected those on the backbone of the network, got those on another one")
    on_validation, on_test = rivals.measured(net)
    at_compute = rivals.at(on_validation.macs.mean(), on_test.macs.mean())
    return Evaluation(rivals.dense(), on_test, at_compute, rivals.codebook, references or {})


def validation_masks(
    backbone: Backbone, validation: Dataset, images: int = 256, action_unit: ActionUnit = "block"
) -> StaticMasks:
    """Static masks on the first validation images, and the best of them again on the next ones.

    Args:
        backbone: ViT; up to 12 units all masks are tried, of more the ones that `search_static_masks` comes by.
        validation: where masks are chosen.
        images: of the first round.
        action_unit: "block" or "half".

    Raises:
        ValueError: if `images` is less than 1.
    """
    if images < 1:
        raise ValueError(f"images: expected at least 1, got {images}")
    find = enumerate_static_masks if num_units(backbone, action_unit) <= ENUMERABLE_UNITS else search_static_masks
    masks = find(backbone, validation.images[:images], validation.labels[:images], action_unit=action_unit)
    second = slice(images, images + RESCORED)
    if len(validation) <= images:
        return masks
    return rescore(masks, backbone, validation.images[second], validation.labels[second], action_unit=action_unit)
