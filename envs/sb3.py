"""`ViTSkip-v0` as a Stable-Baselines3 `VecEnv`, without the per-environment wrappers and reads of a bridge."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ..backbone.registry import unknown_name
from .config import EnvArguments, EnvConfig
from .core import SkipCore
from .episodes import Episodes, to_host
from .single import check_index, check_options, check_render_mode, observation_box, render_row


class SkipVecEnv(VecEnv):
    """The batched core for Stable-Baselines3.

    Infos are filled where an episode ended, as a `Monitor` would: `episode` (r, l, t), `is_success`,
    `terminal_observation` and the environment's other info keys; elsewhere they are empty. No `VecMonitor` is needed.

    Args:
        core: the decision process; it may be shared with a caller that trains the backbone.
        seed: sub-environment i gets seed + i.
        render_mode: None, "rgb_array" or "ansi".
    """

    def __init__(self, core: SkipCore, *, seed: int | None = None, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.core = core
        self._episodes = Episodes(core, AutoresetMode.SAME_STEP)
        self._actions = np.zeros(core.num_envs, np.int64)
        self._returns = np.zeros(core.num_envs)
        super().__init__(core.num_envs, observation_box(core.layout), gym.spaces.Discrete(2))
        self._start = time.perf_counter()
        self.seed(seed)

    @property
    def episode_length(self) -> int:
        """Steps of an episode, one per unit."""
        return self.core.num_units

    @property
    def rows_per_image(self) -> int:
        """Neighbouring rows that get the same image, a divisor of `num_envs`; 1 by default."""
        return self._episodes.rows_per_image

    @rows_per_image.setter
    def rows_per_image(self, rows: int) -> None:
        if rows < 1 or self.num_envs % rows:
            raise ValueError(f"rows_per_image: expected a divisor of the {self.num_envs} environments, got {rows}")
        self._episodes.rows_per_image = rows

    def reset(self) -> VecEnvObs:
        """Begin episodes on all rows, with what `seed` and `set_options` said since the last reset.

        Raises:
            ValueError: for options other than an `index` on every row, the image that it shall show.
        """
        rows = np.arange(self.num_envs)
        chosen = [check_options(options, "index").get("index") for options in self._options]
        index = None if chosen == [None] * len(rows) else check_index(chosen, len(rows))
        self._episodes.seed(self._seeds, rows)
        self._reset_seeds()
        self._reset_options()
        self._episodes.reset(rows, index)
        return self._begin()

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs, as JSON values."""
        return self._episodes.get_state()

    def set_state(self, state: Mapping[str, Any]) -> VecEnvObs:
        """Begin the episodes again that were running, or beginning, when `get_state` gave this; `reset` otherwise."""
        self._reset_seeds()
        self._episodes.set_state(state)
        return self._begin()

    def _begin(self) -> VecEnvObs:
        self._returns[:] = 0
        return to_host(self._episodes.snapshot().observation)[0]

    def step_async(self, actions: NDArray[np.integer]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        transition = self._episodes.step(self._actions)
        final = transition.final
        ended = () if final is None else (final.observation, final.prediction)
        observation, reward, *last = to_host(transition.now.observation, transition.reward, *ended)
        self._returns += reward
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if final is not None:
            final_observation, prediction = last
            columns = final.full_info(prediction.astype(np.int64))
            self._fill_infos(infos, np.flatnonzero(transition.terminated), columns, final_observation)
        return observation, reward, transition.terminated, infos

    def _fill_infos(
        self,
        infos: list[dict[str, Any]],
        rows: NDArray[np.int64],
        columns: dict[str, NDArray[Any]],
        final_observation: NDArray[np.float32],
    ) -> None:
        elapsed = round(time.perf_counter() - self._start, 6)
        lists = {key: column.tolist() if column.ndim == 1 else column for key, column in columns.items()}
        for row in rows:
            info: dict[str, Any] = {key: values[row] for key, values in lists.items()}
            info["episode"] = {"r": round(float(self._returns[row]), 6), "l": self.core.num_units, "t": elapsed}
            info["terminal_observation"] = final_observation[row]
            info["TimeLimit.truncated"] = False
            infos[row] = info
        self._returns[rows] = 0

    def close(self) -> None:
        """Nothing to release."""

    def render(self, mode: str | None = None) -> Any:
        """All rows at once: one picture with "rgb_array", one text with "ansi"."""
        if self.render_mode == "ansi" and mode in (None, "ansi"):
            return "\n".join(self.get_images())
        return super().render(mode)

    def get_images(self) -> Sequence[Any]:
        """One frame per sub-environment."""
        return [render_row(self.core, row, self.render_mode) for row in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, once per index: the sub-environments are rows, not objects."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: rows have no attributes of their own."""
        raise AttributeError(f"set_attr: the rows of {type(self).__name__} have no attribute {attr_name!r} to set")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of this object once per index, e.g. `action_masks`."""
        method = getattr(self, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose infos this class fills itself, so that SB3 trusts the episode statistics."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def action_masks(self) -> NDArray[np.bool_]:
        """Both actions are always valid, bool [2] for one sub-environment; for MaskablePPO."""
        return np.ones(2, bool)


def make_sb3_env(
    env_id: str = "ViTSkip-v0",
    *,
    num_envs: int = 1,
    seed: int | None = None,
    render_mode: str | None = None,
    **arguments: Unpack[EnvArguments],
) -> SkipVecEnv:
    """Build the native environment for Stable-Baselines3.

    Args:
        env_id: a registered id of `SkipEnv`; its own arguments are the defaults.
        num_envs: images side by side.
        seed: sub-environment i gets seed + i.
        render_mode: None, "rgb_array" or "ansi".
        **arguments: as for `gym.make`.

    Raises:
        ValueError: for an id that is not ours, or arguments outside `EnvConfig`.
    """
    ours = [known for known, spec in gym.registry.items() if str(spec.entry_point).startswith("vitskip.envs.single:")]
    if env_id == "ViTSkip-Plan-v0":
        raise ValueError(f"env_id: expected one that decides unit by unit, got {env_id!r}; `PlanVecEnv` wraps that one")
    if env_id not in ours:
        raise unknown_name("environment id", env_id, ours)
    defaults: dict[str, Any] = gym.spec(env_id).kwargs
    config = EnvConfig.from_arguments({**defaults, **arguments}, "num_envs", "seed", "render_mode")
    core = SkipCore(config.load_backbone(), config.load_dataset(), config, num_envs)
    return SkipVecEnv(core, seed=seed, render_mode=check_render_mode(render_mode))
