"""Streams of episodes over the batched core: seeding, choice of images, autoreset. What all three faces share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.seeding import np_random as make_generator
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from .core import SkipCore


@dataclass(frozen=True)
class Snapshot:
    """All rows at one moment.

    Attributes:
        observation: float32 [B, O] on the device, not shared with any other snapshot.
        prediction: int64 [B] on the device, the class that the head would say now.
        info: host arrays, by key, as `SkipCore.info` gives them.
    """

    observation: Tensor
    prediction: Tensor
    info: dict[str, NDArray[Any]]

    def full_info(self, prediction: Any) -> dict[str, Any]:
        """The info with `prediction` (as given: already read, or still on the device) and `is_success`."""
        label = self.info["label"]
        if isinstance(prediction, Tensor):
            label = torch.from_numpy(label).to(prediction.device, non_blocking=True)
        return {**self.info, "prediction": prediction, "is_success": prediction == label}


@dataclass(frozen=True)
class Transition:
    """One step of all rows.

    Attributes:
        now: after the step, and after an autoreset in the same step.
        reward: float32 [B] on the device.
        terminated: bool [B].
        final: before the autoreset of this step; None if there was none.
    """

    now: Snapshot
    reward: Tensor
    terminated: NDArray[np.bool_]
    final: Snapshot | None


class Episodes:
    """Runs B streams of episodes; stream i draws its images from generator i alone.

    Args:
        core: the decision process.
        autoreset_mode: SAME_STEP begins the next episode in the step that ends one, NEXT_STEP in the step after it
            (whose action is ignored and whose reward is 0), DISABLED never.

    Attributes:
        generators: NumPy generator of each stream.
        rows_per_image: neighbouring rows that get the same image and budget when all begin together, those of the first
            of them; 1 unless an algorithm wants several rollouts of each image.
    """

    def __init__(self, core: SkipCore, autoreset_mode: AutoresetMode) -> None:
        self.core, self.autoreset_mode = core, autoreset_mode
        self.generators: list[np.random.Generator] = []
        self.rows_per_image = 1
        self._next = np.arange(core.num_envs)  # next image of each stream where the order is sequential

    def seed(self, seed: int | Sequence[int | None] | None, rows: NDArray[np.int64]) -> None:
        """Seed some streams: an int s gives stream i seed s + i, a sequence one each, None leaves them as they are."""
        count = self.core.num_envs
        seeds = [None if seed is None else seed + i for i in range(count)] if not isinstance(seed, Sequence) else seed
        if len(seeds) != count:
            raise ValueError(f"seed: expected an int or one seed for each of {count} environments, got {len(seeds)}")
        if not self.generators:
            self.generators = [make_generator(one)[0] for one in seeds]
        for row in rows:
            if seeds[row] is not None:
                self.generators[row] = make_generator(seeds[row])[0]
                self._next[row] = row

    def reset(self, rows: NDArray[np.int64], image_index: NDArray[np.int64] | None = None) -> None:
        """Begin episodes on some rows, with the images [R] given or the next ones of their streams."""
        together = self.rows_per_image if len(rows) == self.core.num_envs else 1
        image_index = self._draw(rows, together) if image_index is None else image_index
        budget_index = self._draw_budgets(rows)
        if together > 1:
            first = np.arange(len(rows)) // together * together
            image_index, budget_index = image_index[first], budget_index[first]
        self.core.reset(rows, image_index, budget_index)

    def get_state(self) -> dict[str, Any]:
        """The generators and what all rows began their episodes with, as JSON values."""
        return {
            "generators": [generator.bit_generator.state for generator in self.generators],
            "next": self._next.tolist(),
            "image_index": self.core.image_index.tolist(),
            "budget_index": self.core.budget_index.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Begin the episodes again that were running, or beginning, when `get_state` gave this."""
        self.generators = [make_generator()[0] for _ in state["generators"]]
        for generator, drawn in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = drawn
        self._next = np.array(state["next"])
        self.core.reset(np.arange(self.core.num_envs), np.array(state["image_index"]), np.array(state["budget_index"]))

    def step(self, actions: NDArray[np.integer]) -> Transition:
        """Step all rows, integers [B]; see `autoreset_mode` for rows at their end.

        Raises:
            ValueError: for an action that is neither SKIP nor RUN.
            gymnasium.error.ResetNeeded: if a row has no running episode and no autoreset gives it one.
        """
        waiting = self.core.ended & (self.autoreset_mode is AutoresetMode.NEXT_STEP and bool(self.generators))
        stuck = np.flatnonzero(self.core.ended & ~waiting)
        if stuck.size:
            raise gym.error.ResetNeeded(
                f"step: expected a running episode, but row {stuck[0]} was never reset or has ended "
                f"({self.core.num_units} steps); call reset() first"
            )
        reward = self.core.step(actions, ~waiting)
        terminated = self.core.ended & ~waiting
        final = None
        if self.autoreset_mode is AutoresetMode.SAME_STEP and terminated.any():
            final = self.snapshot()
            self.reset(np.flatnonzero(terminated))
        elif waiting.any():
            self.reset(np.flatnonzero(waiting))
        return Transition(self.snapshot(), reward, terminated, final)

    def snapshot(self) -> Snapshot:
        """All rows now."""
        return Snapshot(self.core.observe(), self.core.logits.argmax(1), self.core.info())

    def _draw(self, rows: NDArray[np.int64], together: int) -> NDArray[np.int64]:
        size = len(self.core.dataset)
        if self.core.config.order == "random":
            return np.array([self.generators[row].integers(size) for row in rows], np.int64)
        image_index = self._next[rows] // together % size
        self._next[rows] += self.core.num_envs
        return image_index

    def _draw_budgets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        choices = len(self.core.config.budgets)
        if choices < 2:
            return np.zeros(len(rows), np.int64)
        return np.array([self.generators[row].integers(choices) for row in rows], np.int64)


def to_host(*tensors: Tensor) -> list[NDArray[np.float32]]:
    """Read tensors [B] or [B, X] in one transfer; fresh float32 arrays (exact for integers up to 2^24)."""
    columns = [tensor.float().reshape(len(tensor), -1) for tensor in tensors]
    if columns[0].device.type == "cpu":
        arrays = [column.numpy() for column in columns]
    else:
        widths = [column.shape[1] for column in columns]
        arrays = np.split(torch.cat(columns, 1).cpu().numpy(), np.cumsum(widths)[:-1], axis=1)
    return [array.reshape(tensor.shape) for array, tensor in zip(arrays, tensors, strict=True)]
