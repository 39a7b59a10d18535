"""An agent's training run on disk, so that one that was killed goes on exactly where its checkpoint was."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from ..backbone.checkpoint import load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from ..envs.core import SkipCore
from ..envs.plan import PlanVecEnv
from ..envs.sb3 import SkipVecEnv
from .joint import BackboneTuner

EVERY_SECONDS = 60.0  # of wall time


@runtime_checkable
class Resumable(Protocol):
    """A callback that gathers something while training."""

    def get_state(self) -> dict[str, Any]:
        """JSON values."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `get_state` gave."""
        ...


class Checkpoint(BaseCallback):
    """Writes everything that changes while an on-policy algorithm learns, between rollouts, where all episodes begin.

    What an off-policy algorithm has in its replay buffer is not kept: it begins anew.

    Args:
        path: file; removed by `finish`.
        identity: JSON values that say which run this is.
        agent: the algorithm, with `SkipVecEnv` or `PlanVecEnv` as its environment.
        core: that environment's decision process.
        callbacks: that gather something, by name.
        tuner: of a backbone that learns too; None for a frozen one.

    Attributes:
        seconds: wall time spent by the run before this process.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        agent: BaseAlgorithm,
        core: SkipCore,
        callbacks: Mapping[str, Resumable],
        tuner: BackboneTuner | None = None,
    ) -> None:
        super().__init__()
        self.path, self.identity, self.agent, self.core, self.callbacks = path, identity, agent, core, callbacks
        self.tuner = tuner
        self.seconds = 0.0
        self._start = self._saved = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Wall time spent by the run, in all processes so far [s]."""
        return self.seconds + time.perf_counter() - self._start

    def resume(self) -> int:
        """Go back to the checkpoint if there is one; the environment steps taken so far.

        Raises:
            ValueError: if the file is corrupt, or of a run with other settings.
        """
        if not self.path.is_file() or not isinstance(self.agent, OnPolicyAlgorithm):
            return 0
        parts, rest = read_checkpoint(self.path, self.identity)
        self.agent.policy.load_state_dict(parts["policy"])
        load_optimizer(self.agent.policy.optimizer, parts["policy_optimizer"])
        if self.tuner is not None:
            self.tuner.restore(parts, rest["backbone_step"])
            self.core.weights_changed()
        self.core.cost_weight = np.array(rest["cost_weight"])
        for name, callback in self.callbacks.items():
            callback.set_state(rest["callbacks"][name])
        self.agent.num_timesteps, self.agent._n_updates, self.seconds = rest["steps"], rest["updates"], rest["seconds"]
        self.agent._last_obs = _streams(self.agent).set_state(rest["streams"])  # pyright: ignore[reportAttributeAccessIssue] - declared narrower than what VecEnv gives
        self.agent._last_episode_starts = np.ones(self.core.num_envs, bool)
        _set_random(parts["random"], rest["random"])
        return self.agent.num_timesteps

    def finish(self) -> None:
        """The run is complete, and its checkpoint of no more use."""
        self.path.unlink(missing_ok=True)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        now, agent = time.perf_counter(), self.agent
        if now - self._saved >= EVERY_SECONDS and isinstance(agent, OnPolicyAlgorithm) and agent.num_timesteps:
            self._write(agent)
            self._saved = now

    def _write(self, agent: OnPolicyAlgorithm) -> None:
        tensors, numbers = _get_random()
        parts: dict[str, Mapping[str, Tensor]] = {
            "policy": agent.policy.state_dict(),
            "policy_optimizer": optimizer_tensors(agent.policy.optimizer),
            "random": tensors,
            **(self.tuner.parts if self.tuner else {}),
        }
        rest = {
            "steps": agent.num_timesteps,
            "updates": agent._n_updates,
            "seconds": self.elapsed,
            "backbone_step": self.tuner.step if self.tuner else None,
            "cost_weight": self.core.cost_weight.tolist(),
            "callbacks": {name: callback.get_state() for name, callback in self.callbacks.items()},
            "streams": _streams(agent).get_state(),
            "random": numbers,
        }
        write_checkpoint(self.path, parts, rest, self.identity)


def _streams(agent: BaseAlgorithm) -> SkipVecEnv | PlanVecEnv:
    assert isinstance(agent.env, SkipVecEnv | PlanVecEnv)
    return agent.env


def _get_random() -> tuple[dict[str, Tensor], list[Any]]:
    """The global generators that Stable-Baselines3 draws from: torch's tensors, and NumPy's as JSON values."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - Stable-Baselines3 orders minibatches by it, and no other call saves it
    return tensors, [name, np.asarray(keys).tolist(), *rest]


def _set_random(tensors: Mapping[str, Tensor], numbers: list[Any]) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    name, keys, *rest = numbers
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002 - as above
