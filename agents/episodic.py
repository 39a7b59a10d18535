"""Learning from whole episodes, on Stable-Baselines3's on-policy base: what REINFORCE and its kin share."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution, Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor, nn

from ..envs.core import SkipCore
from ..envs.sb3 import SkipVecEnv


class BoundedPolicy(ActorCriticPolicy):
    """An actor whose probabilities stay away from 0 and 1, so that it never stops exploring (BlockDrop).

    Args:
        *args: as SB3's `ActorCriticPolicy`.
        probability_floor: least probability of either action, in [0, 0.5).
        greedy_stride: where positive, rows 0, stride, 2 * stride ... of a batch of actions are the likeliest ones.
        **kwargs: as SB3's `ActorCriticPolicy`.
    """

    def __init__(self, *args: Any, probability_floor: float = 0.0, greedy_stride: int = 0, **kwargs: Any) -> None:
        self.probability_floor, self.greedy_stride = probability_floor, greedy_stride
        super().__init__(*args, **kwargs)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        actions, values, log_prob = super().forward(obs, deterministic)
        if self.greedy_stride:
            rows = slice(None, None, self.greedy_stride)
            actions[rows] = self.get_distribution(obs[rows]).mode().reshape(actions[rows].shape)
        return actions, values, log_prob

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        logits, floor = self.action_net(latent_pi), self.probability_floor
        if isinstance(self.action_dist, BernoulliDistribution):
            return self.action_dist.proba_distribution((floor + (1 - 2 * floor) * logits.sigmoid()).logit(1e-6))
        assert isinstance(self.action_space, spaces.Discrete)
        probabilities = floor + (1 - 2 * floor) * logits.softmax(1)
        return self.action_dist.proba_distribution(probabilities.clamp_min(1e-9).log())


class EpisodicAlgorithm(OnPolicyAlgorithm):
    """Rollouts of whole episodes that begin and end together; subclasses define `train`.

    Args:
        policy: name or class of the policy.
        env: `SkipVecEnv`, or one of its wrappers.
        learning_rate: of Adam.
        n_steps: steps of a rollout, whole episodes.
        ent_coef: weight of the policy's entropy, of both actions at every step.
        max_grad_norm: largest norm of the gradient.
        rows_per_image: neighbouring rows that get the same image.
        **common: of SB3's `OnPolicyAlgorithm`: `policy_kwargs`, `seed`, `device`, `tensorboard_log`, ...

    Raises:
        ValueError: for another environment, or rollouts that cut episodes.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        learning_rate: Any,
        n_steps: int,
        ent_coef: float,
        max_grad_norm: float,
        rows_per_image: int = 1,
        **common: Any,
    ) -> None:
        native = getattr(env, "unwrapped", env)
        if not isinstance(native, SkipVecEnv):
            raise ValueError(f"env: expected one from make_sb3_env, whose episodes keep step, got {type(env).__name__}")
        units = native.core.num_units
        if isinstance(env.action_space, spaces.Discrete) and (n_steps < 1 or n_steps % units):
            raise ValueError(f"n_steps: expected a multiple of the {units} steps of an episode, got {n_steps}")
        native.rows_per_image = rows_per_image
        discount = {"gamma": 1.0, "gae_lambda": 1.0, "vf_coef": 0.0, "use_sde": False, "sde_sample_freq": -1}
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            **discount,
            **common,
        )
        self._image_index: list[list[int]] = []

    @property
    def core(self) -> SkipCore:
        """The decision process that the environment runs."""
        assert self.env is not None
        native = self.env.unwrapped
        assert isinstance(native, SkipVecEnv)
        return native.core

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        self._image_index = []
        return super().collect_rollouts(*args, **kwargs)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if dones is not None and dones.any():
            assert dones.all(), "episodes begin and end together"
            self._image_index.append([info["index"] for info in infos])

    def by_episode(self, column: np.ndarray) -> Tensor:
        """A column of the rollout buffer, [n_steps, B, ...], as [E, T, B, ...]: episodes of T steps."""
        tensor = torch.as_tensor(column, device=self.device)
        return tensor.unflatten(0, (len(self._image_index), -1))

    @property
    def episode_images(self) -> Tensor:
        """The images of the rollout, int64 [E, B]."""
        return torch.tensor(self._image_index, device=self.device)

    def evaluate_rollout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probabilities of the actions, and entropies, each [E, T, B], with gradients."""
        observations = self.by_episode(self.rollout_buffer.observations)
        actions = self.by_episode(self.rollout_buffer.actions)
        actions = actions[..., 0].long() if isinstance(self.action_space, spaces.Discrete) else actions.float()
        rows = observations.shape[:3]
        values, log_prob, entropy = self.policy.evaluate_actions(observations.flatten(0, 2), actions.flatten(0, 2))
        assert entropy is not None
        return values.reshape(rows), log_prob.reshape(rows), entropy.reshape(rows)

    def descend(self, loss: Tensor, **logged: float | Tensor) -> None:
        """One optimiser step on a loss; what is `logged` appears under `train/`."""
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        for name, value in {"loss": loss, **logged}.items():
            self.logger.record(f"train/{name}", float(value.detach() if isinstance(value, Tensor) else value))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "EpisodicAlgorithm":
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
