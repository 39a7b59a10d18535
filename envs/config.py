"""The environment's arguments: JSON values, checked once, with the nearest valid name in every error."""

import functools
import math
import multiprocessing
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict, get_args

import torch

from ..backbone import Backbone, Dataset, load_backbone, load_dataset
from ..backbone.augment import AUGMENTATIONS, with_copies
from ..backbone.backbones import dataset_of
from ..backbone.datasets import Split, check_dataset
from ..backbone.protocol import ActionUnit
from ..backbone.registry import unknown_name
from .cost import check_cost
from .observation import ObservationKind
from .reward import TASK_REWARDS

Order = Literal["random", "sequential"]
BACKBONES = {"digits": "digits-vit12", "cifar10": "cifar10-p4-vit12-nested", "cifar100": "cifar100-p4-vit12-nested"}
"""What is run on a data set where no backbone is named: the one that is shipped for agents."""

_PROCESS = os.getpid()  # where this module was imported: a worker that finds it imported was forked, not spawned


class UnknownArgumentError(TypeError, ValueError):
    """A keyword argument that the environment does not take; a TypeError as well, for callers that try arguments."""


class EnvArguments(TypedDict, total=False):
    """Keyword arguments of `gym.make("ViTSkip-v0", ...)`; meanings and defaults in `EnvConfig`."""

    dataset: str
    data_root: str | None
    split: Split
    augmentation: str
    copies: int
    backbone: str
    device: str
    observation: ObservationKind
    reward: str
    cost: str
    cost_weight: float
    budgets: Sequence[float]
    action_unit: ActionUnit
    order: Order
    prefix_cache: float


@dataclass(frozen=True)
class EnvConfig:
    """Checked arguments of the decision process.

    Attributes:
        dataset: name of a registered data set; "digits" is embedded.
        data_root: folder of the data set, where it lives in files.
        split: "train", "validation" or "test", or every other image of the second ("validation-even",
            "validation-odd"). Agents should learn on images that the backbone was not fitted to, as it believes of new
            ones what it believes of those: "validation", but for "digits", whose "train" is new to it.
        augmentation: of the split, a name in `AUGMENTATIONS` such as "shift-flip", for agents that learn on few images;
            "none" leaves it alone.
        copies: versions of each image, itself included, where there is an augmentation; they follow the images
            themselves, so that image i of N comes again as i + N, i + 2N, ...
        backbone: name of a registered backbone; if it is empty, the one shipped for the data set.
        device: where the backbone runs, as PyTorch names it.
        observation: "belief" (what the head says now, depth, compute), "confidence" (the same without the classes'
            probabilities, for agents that learn on few images) or "tokens" (the belief and the tokens' summary).
        reward: task reward at the end of the episode, a name in `TASK_REWARDS`.
        cost: what the price of a block goes by: "macs", or "latency:FILE", a table of times that `vitskip latency` has
            measured; budgets are of MACs in any case.
        cost_weight: what running every block costs, in units of the task reward; at least 0.
        budgets: shares of the dense compute in (0, 1); each episode draws one and shows it to the agent. Each has its
            own cost weight, the same for all until one steers them (`vitskip train` does). Without any, none is shown.
        action_unit: "block" (L decisions) or "half" (2L: attention and MLP apart).
        order: "random" images, or "sequential" through the split.
        prefix_cache: memory for states visited before [10^6 bytes], on the backbone's device; 0 is none. A step into
            such a state computes nothing. For a frozen backbone, and for images that come again and again.

    Raises:
        ValueError: for a value outside these.
    """

    dataset: str = "digits"
    data_root: str | None = None
    split: Split = "train"
    augmentation: str = "none"
    copies: int = 4
    backbone: str = ""
    device: str = "cpu"
    observation: ObservationKind = "belief"
    reward: str = "correct"
    cost: str = "macs"
    cost_weight: float = 0.1
    budgets: tuple[float, ...] = ()
    action_unit: ActionUnit = "block"
    order: Order = "random"
    prefix_cache: float = 0.0

    def __post_init__(self) -> None:
        choices = {
            "split": get_args(Split),
            "augmentation": tuple(AUGMENTATIONS),
            "observation": get_args(ObservationKind),
            "reward": tuple(TASK_REWARDS),
            "action_unit": get_args(ActionUnit),
            "order": get_args(Order),
        }
        for argument, valid in choices.items():
            if getattr(self, argument) not in valid:
                raise unknown_name(argument, getattr(self, argument), valid)
        check_cost(self.cost)
        for argument in ("cost_weight", "prefix_cache"):
            _check_not_negative(argument, getattr(self, argument))
        if isinstance(self.copies, bool) or not isinstance(self.copies, int) or self.copies < 1:
            raise ValueError(f"copies: expected an integer of at least 1, got {self.copies!r}")
        _check_budgets(self.budgets)
        for argument in ("dataset", "backbone", "device"):
            if not isinstance(getattr(self, argument), str):
                raise ValueError(f"{argument}: expected a name (a string), got {getattr(self, argument)!r}")
        object.__setattr__(self, "backbone", self.backbone or backbone_for(self.dataset))
        if not isinstance(self.data_root, str | None):
            raise ValueError(f"data_root: expected a folder's path (a string) or None, got {self.data_root!r}")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], *others: str) -> "EnvConfig":
        """Check keyword arguments; ValueError names the nearest valid one, `others` included, for an unknown one."""
        valid = [field.name for field in fields(cls)]
        for argument in arguments:
            if argument not in valid:
                error = unknown_name("environment argument", argument, [*valid, *others])
                raise UnknownArgumentError(f"{error} (unexpected keyword argument {argument!r})")
        budgets = arguments.get("budgets", ())
        return cls(**{**arguments, "budgets": tuple(budgets) if isinstance(budgets, list) else budgets})

    def arguments(self) -> EnvArguments:
        """The same as keyword arguments of the environment."""
        return EnvArguments(**asdict(self))

    def changed(self) -> EnvArguments:
        """Those of the arguments that differ from their defaults."""
        defaults = asdict(EnvConfig()) | {"backbone": BACKBONES.get(self.dataset)}
        return EnvArguments(**{name: value for name, value in asdict(self).items() if value != defaults[name]})

    def load_dataset(self, split: Split | None = None) -> Dataset:
        """The split with its copies, or another one without, shared by all environments of this process."""
        if split is not None or self.augmentation == "none":
            return _shared_dataset(self.dataset, split or self.split, self.data_root)
        return _shared_copies(self.dataset, self.split, self.data_root, self.augmentation, self.copies)

    def load_backbone(self) -> Backbone:
        """The frozen backbone on its device, shared by all environments of this process.

        One that was trained on another of the data sets with shipped ones is warned of: it may have as many classes.
        """
        learnt = dataset_of(self.backbone)
        if {self.dataset, learnt} <= BACKBONES.keys() and learnt != self.dataset:
            warnings.warn(
                f"backbone: {self.backbone!r} was trained on {learnt!r}, the data set is {self.dataset!r}", stacklevel=2
            )
        return _shared_backbone(self.backbone, str(check_device(self.device)))


def backbone_for(dataset: str) -> str:
    """Name of the backbone that is shipped for a data set.

    Raises:
        ValueError: if the data set is unknown, or none is shipped for it.
    """
    check_dataset(dataset)
    if dataset not in BACKBONES:
        raise ValueError(f"backbone: expected the name of one that knows the data set {dataset!r}, got none")
    return BACKBONES[dataset]


def _check_not_negative(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{argument}: expected a number of at least 0, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{argument}: expected a finite number of at least 0, got {value}")


def _check_budgets(values: Any) -> None:
    shown = list(values) if isinstance(values, tuple) else values
    if shown is values or not all(isinstance(value, float) and 0 < value < 1 for value in values):
        raise ValueError(f"budgets: expected a list of shares of the dense compute in (0, 1), got {shown!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"budgets: expected each of them once, got {shown!r}")


def check_device(name: str) -> torch.device:
    """Parse a device, and refuse one that cannot work here.

    Raises:
        ValueError: if the name is no device or none that works here, if CUDA is missing, or if CUDA is asked for in a
            forked worker.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device: expected a PyTorch device such as "cpu" or "cuda:0", got {name!r}') from error
    if device.type != "cuda":
        return _tried(device)
    forked = multiprocessing.parent_process() is not None and os.getpid() != _PROCESS
    if forked:
        raise ValueError(
            f'device: expected "cpu" in a forked worker process, got {name!r}: CUDA does not survive a fork. '
            'One process runs a batch faster: gym.make_vec("ViTSkip-v0", num_envs=..., device="cuda"); '
            'or give AsyncVectorEnv context="spawn"'
        )
    if not torch.cuda.is_available():
        raise ValueError(f'device: expected "cpu", as PyTorch finds no CUDA device here, got {name!r}')
    return _tried(device)


def _tried(device: torch.device) -> torch.device:
    """The device, if a tensor can live there."""
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device: expected one that works here, such as "cpu", got "{device}": {reason}') from error
    return device


_shared_dataset = functools.lru_cache(maxsize=6)(load_dataset)


@functools.lru_cache(maxsize=6)
def _shared_copies(name: str, split: Split, data_root: str | None, augmentation: str, copies: int) -> Dataset:
    return with_copies(_shared_dataset(name, split, data_root), AUGMENTATIONS[augmentation], copies)


@functools.lru_cache(maxsize=6)
def _shared_backbone(name: str, device: str) -> Backbone:
    return load_backbone(name).to(device).eval().requires_grad_(False)
