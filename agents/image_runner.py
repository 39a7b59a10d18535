"""Run networks over the same images, and, where many networks share a frozen ViT, each state of it only once."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from ..backbone import Backbone, Dataset
from ..envs.config import EnvConfig
from ..envs.core import SkipCore
from .dynamic_vit import DynamicViT, Trace


class ImageRunner:
    """Runs networks over a split, a batch at a time.

    Args:
        dataset: the split; its images are moved to each network's device.
        batch_size: images at a time; paths and answers do not depend on it, up to rounding.
    """

    def __init__(self, dataset: Dataset, batch_size: int = 500) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __call__(self, net: DynamicViT, description: str = "images") -> tuple[Int64[Tensor, " N"], Trace]:
        """What a network says of every image, on the CPU, and what that took.

        Args:
            net: in eval mode.
            description: of the progress bar, which vanishes at the end.

        Raises:
            ValueError: if the images are of other classes than the network's.
        """
        self.dataset.check_fits(net.backbone)
        batches = torch.arange(len(self.dataset)).split(self.batch_size)
        found = [self._run(net, batch) for batch in tqdm(batches, desc=description, leave=False, disable=None)]
        predictions, traces = zip(*found, strict=True)
        keep_mask, macs = (torch.cat([getattr(trace, name) for trace in traces]) for name in ("keep_mask", "macs"))
        return torch.cat(predictions), Trace(keep_mask, macs)

    def _run(self, net: DynamicViT, images: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " B"], Trace]:
        prediction = net(self.dataset.images[images].to(next(net.parameters()).device)).argmax(1)
        assert net.last_trace is not None
        return prediction.cpu(), Trace(net.last_trace.keep_mask.cpu(), net.last_trace.macs.cpu())


class RememberingRunner(ImageRunner):
    """An `ImageRunner` for networks of one frozen backbone, which keeps the states that they visit.

    Networks walk through the environment's core, whose observations are theirs, with its `prefix_cache`; so another
    agent, budget or lean computes only where it leaves the known paths. Policies that do not look at the image are run
    without.

    Args:
        dataset: the split.
        backbone: the one that all networks have, in eval mode.
        megabytes: bound of the memory for states [10^6 bytes], on the backbone's device. They are forgotten when a
            network observes something else than the one before.
        batch_size: images at a time.

    Raises:
        ValueError: if the memory is not more than 0, or a network has another backbone.
    """

    def __init__(self, dataset: Dataset, backbone: Backbone, megabytes: float, batch_size: int = 500) -> None:
        super().__init__(dataset, min(batch_size, len(dataset)))
        if not megabytes > 0:
            raise ValueError(f"megabytes: expected more than 0, got {megabytes}")
        self.backbone, self.megabytes = backbone, megabytes
        self._core: SkipCore | None = None

    def __call__(self, net: DynamicViT, description: str = "images") -> tuple[Int64[Tensor, " N"], Trace]:
        if not alike(net.backbone, self.backbone):
            raise ValueError("net: expected the backbone whose states are remembered, got another one")
        return super().__call__(net, description)

    @torch.no_grad()
    def _run(self, net: DynamicViT, images: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " B"], Trace]:
        if net.policy.is_blind or net.undecided_sizes:
            return super()._run(net, images)
        core = self._core_for(net)
        rows, active = slice(len(images)), np.arange(core.num_envs) < len(images)
        core.reset(np.flatnonzero(active), images.numpy())
        run, memory = torch.ones(len(images), dtype=torch.bool), None
        for unit in range(core.num_units):
            if unit == net.first_unit or (unit > net.first_unit and not net.policy.look_after):
                run, memory = net.policy.step(core.observe()[rows], memory)
            actions = np.zeros(core.num_envs, np.int64)
            actions[rows] = (run if run.ndim == 1 else run[:, unit]).cpu().numpy()
            core.step(actions, active)
        keep_mask = torch.from_numpy(core.keep_mask[rows].copy())
        return core.logits[rows].argmax(1).cpu(), Trace(keep_mask, net.trace_of(keep_mask.to(core.device)).macs.cpu())

    def _core_for(self, net: DynamicViT) -> SkipCore:
        layout = net.policy.layout
        if self._core is None or self._core.layout != layout:
            self._core = None  # gives its memory back before the next one claims as much
            config = EnvConfig(
                observation=layout.kind,
                action_unit=net.action_unit,
                budgets=(0.5,) if layout.shows_budget else (),
                prefix_cache=self.megabytes,
            )
            self._core = SkipCore(self.backbone, self.dataset, config, self.batch_size)
        if layout.shows_budget:
            self._core.budgets[:] = float(net.shown_budget)
        return self._core


def alike(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones compute the same."""
    if one is other:
        return True
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        one.macs == other.macs
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )


def make_runner(dataset: Dataset, backbone: Backbone, megabytes: float) -> ImageRunner:
    """A runner with that much memory for states; an ordinary one where that is 0."""
    return RememberingRunner(dataset, backbone, megabytes) if megabytes else ImageRunner(dataset)
