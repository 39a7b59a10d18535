"""An agent's training run on disk, so that one that was killed goes on exactly where its checkpoint was."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from ..backbone.checkpoint import load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from ..envs.core import SkipCore
from ..envs.plan import PlanVecEnv
from ..envs.sb3 import SkipVecEnv
from .backbone_tuner import BackboneTuner

EVERY_SECONDS = 60.0  # of wall time
COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")  # those that there are
REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


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
    """Writes everything that changes while an algorithm learns, between rollouts, where all episodes begin.

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
        if not self.path.is_file():
            return 0
        parts, rest = read_checkpoint(self.path, self.identity)
        agent = self.agent
        agent.policy.load_state_dict(parts["policy"])
        load_optimizer(agent.policy.optimizer, parts["policy_optimizer"])
        if self.tuner is not None:
            self.tuner.restore(parts, rest["backbone_step"])
            self.core.weights_changed()
        self.core.cost_weight = np.array(rest["cost_weight"])
        for name, callback in self.callbacks.items():
            callback.set_state(rest["callbacks"][name])
        vars(agent).update(rest["counters"])
        self.seconds = rest["seconds"]
        if isinstance(agent, OffPolicyAlgorithm):
            _fill(_replay_buffer(agent), parts["replay"], rest["replay_position"])
        agent._last_obs = _streams(agent).set_state(rest["streams"])  # pyright: ignore[reportAttributeAccessIssue] - declared narrower than what VecEnv gives
        agent._last_episode_starts = np.ones(self.core.num_envs, bool)
        set_random(agent, parts["random"], rest["random"])
        return agent.num_timesteps

    def finish(self) -> None:
        """The run is complete, and its checkpoint of no more use."""
        self.path.unlink(missing_ok=True)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        now, agent = time.perf_counter(), self.agent
        begins = not isinstance(agent, OffPolicyAlgorithm) or not self.core.unit_index.any()  # not amid the episodes
        if now - self._saved >= EVERY_SECONDS and agent.num_timesteps and begins:
            self._write(agent)
            self._saved = now

    def _write(self, agent: BaseAlgorithm) -> None:
        tensors, generators = get_random(agent)
        parts: dict[str, Mapping[str, Tensor]] = {
            "policy": agent.policy.state_dict(),
            "policy_optimizer": optimizer_tensors(agent.policy.optimizer),
            "random": tensors,
            **(self.tuner.parts if self.tuner else {}),
        }
        rest = {
            "counters": {name: vars(agent)[name] for name in COUNTERS if name in vars(agent)},
            "seconds": self.elapsed,
            "backbone_step": self.tuner.step if self.tuner else None,
            "cost_weight": self.core.cost_weight.tolist(),
            "callbacks": {name: callback.get_state() for name, callback in self.callbacks.items()},
            "streams": _streams(agent).get_state(),
            "random": generators,
        }
        if isinstance(agent, OffPolicyAlgorithm):
            buffer = _replay_buffer(agent)
            parts["replay"] = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in REPLAYED}
            rest["replay_position"] = buffer.pos
        write_checkpoint(self.path, parts, rest, self.identity)


def _streams(agent: BaseAlgorithm) -> SkipVecEnv | PlanVecEnv:
    assert isinstance(agent.env, SkipVecEnv | PlanVecEnv)
    return agent.env


def _replay_buffer(agent: OffPolicyAlgorithm) -> ReplayBuffer:
    assert agent.replay_buffer is not None
    return agent.replay_buffer


def _fill(buffer: ReplayBuffer, kept: Mapping[str, Tensor], position: int) -> None:
    for name, values in kept.items():
        getattr(buffer, name)[: len(values)] = values.numpy()
    buffer.pos, buffer.full = position, len(kept["rewards"]) == buffer.buffer_size


def _gpu_of(agent: BaseAlgorithm) -> torch.device:
    """Where draws on a GPU are made: where the ViT is; the current one where it is on the CPU."""
    env = agent.env.unwrapped if agent.env is not None else None
    device = env.core.device if isinstance(env, SkipVecEnv) else torch.device("cpu")
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def get_random(agent: BaseAlgorithm) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generators that Stable-Baselines3 draws from: torch's as tensors, the others as JSON values."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state(_gpu_of(agent))
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - it is that one which SB3 draws from
    exploration = agent.action_space.np_random.bit_generator.state
    return tensors, {"numpy": [name, np.asarray(keys).tolist(), *rest], "actions": exploration}


def set_random(agent: BaseAlgorithm, tensors: Mapping[str, Tensor], generators: Mapping[str, Any]) -> None:
    """Give the generators back what `get_random` gave."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"], _gpu_of(agent))
    name, keys, *rest = generators["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002 - as above
    agent.action_space.np_random.bit_generator.state = generators["actions"]
