"""`ViTSkip-v0` as a native `gym.vector.VectorEnv`: one batched block per step."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack, get_args

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from ..backbone.registry import unknown_name
from .config import EnvArguments, EnvConfig
from .core import SkipCore
from .episodes import Episodes, Snapshot, Transition, to_host
from .single import check_index, check_options, check_render_mode, observation_box, render_row

Output = Literal["numpy", "torch"]


class SkipVectorEnv(gym.vector.VectorEnv[Any, Any, Any], EzPickle):
    """B images side by side; sub-environment i equals `SkipEnv` seeded with seed + i.

    With `order="sequential"` together they go through the split once: sub-environment i takes every B-th image, from
    image i on.

    Actions are integers [B], observations float32 [B, O], rewards float64 [B], terminated and truncated bool [B].
    Infos have Gymnasium's vector form, an array per key and a mask `_key`; with SAME_STEP autoreset the last
    observation and info of an episode stand in `final_obs` and `final_info`. With `output="torch"` actions may be
    tensors, and observations, rewards (float32) and the infos that the net decides (`prediction`, `is_success`) are
    tensors on the device: the actions are then the only thing a step reads from it.

    Args:
        num_envs: B.
        output: "numpy" or "torch".
        autoreset_mode: SAME_STEP by default, NEXT_STEP, or DISABLED with `reset(options={"reset_mask": ...})`: a
            member of `AutoresetMode`, or its name.
        render_mode: "rgb_array" or "ansi"; `render` gives one frame per sub-environment.
        **arguments: as for `SkipEnv`.

    Raises:
        ValueError: for arguments outside these.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        output: Output = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **arguments: Unpack[EnvArguments],
    ) -> None:
        EzPickle.__init__(
            self, num_envs, output=output, autoreset_mode=autoreset_mode, render_mode=render_mode, **arguments
        )
        if output not in get_args(Output):
            raise unknown_name("output", output, get_args(Output))
        config = EnvConfig.from_arguments(arguments, "num_envs", "output", "autoreset_mode", "render_mode")
        self.num_envs, self.output, self.render_mode = num_envs, output, check_render_mode(render_mode)
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array", "ansi"],
            "render_fps": 2,
            "autoreset_mode": self.autoreset_mode,
        }
        self.core = SkipCore(config.load_backbone(), config.load_dataset(), config, num_envs)
        self.single_action_space = gym.spaces.Discrete(2)
        self.single_observation_space = observation_box(self.core.layout)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._episodes = Episodes(self.core, self.autoreset_mode)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes on all rows, or on those of `options["reset_mask"]`.

        Args:
            seed: sub-environment i gets seed + i; a sequence gives one each; None goes on with the generators.
            options: `reset_mask`, bool [B]; `index`, the images to show, integers [B].

        Raises:
            ValueError: for other options, a mask that is not bool [B] or has no row, or an image out of range.
        """
        options = check_options(options, "reset_mask", "index")
        mask = self._reset_mask(options.get("reset_mask"))
        rows = np.flatnonzero(mask)
        chosen = options.get("index")
        index = None if chosen is None else check_index(chosen, self.num_envs)[rows]
        self._episodes.seed(seed, rows)
        self._episodes.reset(rows, index)
        snapshot = self._episodes.snapshot()
        observation, prediction = self._read(snapshot.observation, snapshot.prediction)
        return observation, _masked(snapshot.full_info(prediction), mask)

    def step(self, actions: Any) -> tuple[Any, Any, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Skip or run the next block of every row.

        Raises:
            ValueError: for an action that is neither 0 nor 1.
            gymnasium.error.ResetNeeded: without autoreset, if a row's episode is over.
        """
        host_actions = actions.cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        transition = self._episodes.step(host_actions)
        now, final = transition.now, transition.final or transition.now
        observation, prediction, reward, final_observation, final_prediction = self._read(
            now.observation, now.prediction, transition.reward, final.observation, final.prediction
        )
        infos = _masked(now.full_info(prediction), np.ones(self.num_envs, bool))
        if transition.final:
            infos |= _final_infos(transition, final_observation, final_prediction)
        truncated = np.zeros(self.num_envs, bool)
        if self.output == "numpy":
            reward = reward.astype(np.float64)
        return observation, reward, transition.terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """One frame per sub-environment, as `SkipEnv.render` draws it."""
        return tuple(render_row(self.core, row, self.render_mode) for row in range(self.num_envs))

    def action_masks(self) -> NDArray[np.bool_]:
        """Both actions are always valid; for MaskablePPO. bool [B, 2]."""
        return np.ones((self.num_envs, 2), bool)

    def _reset_mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"reset_mask: expected bool [{self.num_envs}] with at least one True, got {mask.dtype} {mask.shape}"
            )
        return mask

    def _read(self, observation: Tensor, prediction: Tensor, *others: Tensor) -> list[Any]:
        """Everything as the caller wants it; with NumPy output in one transfer, the predictions as integers."""
        if self.output == "torch":
            return [observation, prediction, *others]
        arrays: list[Any] = to_host(observation, prediction, *others)
        return [
            array.astype(np.int64) if tensor.dtype == prediction.dtype else array
            for array, tensor in zip(arrays, (observation, prediction, *others), strict=True)
        ]


def parse_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """A mode from itself, its name ("SAME_STEP") or its value ("SameStep"); ValueError for anything else."""
    for candidate in AutoresetMode:
        if mode in (candidate, candidate.name, candidate.name.lower(), candidate.value):
            return candidate
    raise unknown_name("autoreset_mode", mode, [candidate.name for candidate in AutoresetMode])


def _masked(info: dict[str, Any], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Gymnasium's vector form: values are zero where a row has none."""
    infos: dict[str, Any] = {}
    for key, value in info.items():
        infos[key] = value
        if not mask.all():
            infos[key] = value.copy() if isinstance(value, np.ndarray) else value.clone()
            infos[key][~mask] = 0
        infos[f"_{key}"] = mask.copy()
    return infos


def _final_infos(transition: Transition, observation: Any, prediction: Any) -> dict[str, Any]:
    final: Snapshot = transition.final or transition.now
    observations = np.full(len(transition.terminated), None, object)
    for row in np.flatnonzero(transition.terminated):
        observations[row] = observation[row]
    return {
        "final_obs": observations,
        "_final_obs": transition.terminated.copy(),
        "final_info": _masked(final.full_info(prediction), transition.terminated),
        "_final_info": transition.terminated.copy(),
    }
