"""Joint training: between the agent's updates the ViT learns on the paths that the agent takes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Dataset
from ..envs.core import SkipCore
from .backbone_tuner import BackboneTuner, JointConfig
from .dynamic_vit import DynamicViT
from .policy import Policy


class JointTraining(BaseCallback):
    """Trains the environment's backbone in place, on the agent's paths, several times during `learn`.

    Args:
        core: whose backbone to train; nobody else may hold it.
        extract: gives the agent's current policy.
        config: how.
        dataset: training images of the backbone, on its device; the agent's are the environment's.
        draws: whether paths are drawn, as an agent draws its actions; else the likeliest is taken.
        seed: of order, augmentation and drawn paths.
        progress_bar: show one for each round.

    Attributes:
        tuner: what trains the ViT.
        curve: columns over rounds: mean loss, mean MACs share of the agent's paths.
    """

    def __init__(
        self,
        core: SkipCore,
        extract: Callable[[], Policy],
        config: JointConfig,
        *,
        dataset: Dataset,
        draws: bool = True,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> None:
        super().__init__()
        self.core, self.extract, self.config, self.draws, self._seed = core, extract, config, draws, seed
        self.curve: dict[str, list[float]] = {"loss": [], "macs_fraction": []}
        unit = core.config.action_unit
        self.tuner = BackboneTuner(
            core.backbone, dataset, config, action_unit=unit, seed=seed, progress_bar=progress_bar
        )

    def get_state(self) -> dict[str, Any]:
        return {"curve": self.curve}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.curve = state["curve"]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        rounds, total = len(self.curve["loss"]), self.model._total_timesteps
        if rounds == self.config.rounds or self.num_timesteps < total * (rounds + 1) / (self.config.rounds + 1):
            return
        self.train_backbone()
        self.logger.record("joint/loss", self.curve["loss"][-1])
        self.model._last_obs = self.training_env.reset()  # pyright: ignore[reportAttributeAccessIssue] - as in checkpoint.py; what the new ViT shows

    def train_backbone(self) -> None:
        """One round."""
        policy = self.extract()
        policy.rule.samples = self.draws
        policy.generator.manual_seed(int(np.random.default_rng([self._seed, self.tuner.step, 1]).integers(2**63)))
        net = DynamicViT(self.core.backbone, policy, action_unit=self.core.config.action_unit).to(self.core.device)
        spent = []

        def choose(images: Tensor, step: int) -> Tensor:
            full = round(self.config.full_share * len(images))
            net.shown_budget = self._draw_budgets(len(images) - full, step)
            net(images[full:])
            assert net.last_trace is not None
            spent.append(net.last_trace.macs.float().mean())
            return F.pad(net.last_trace.keep_mask, (0, 0, full, 0), value=True)

        self.curve["loss"].append(self.tuner.train_round(choose))
        self.core.weights_changed()
        self.curve["macs_fraction"].append(float(torch.stack(spent).mean()) / self.core.backbone.macs.dense)

    def _draw_budgets(self, images: int, step: int) -> Tensor:
        """One for each image, [B, 1]; zeros where the environment has none."""
        generator = np.random.default_rng([self._seed, step])
        drawn = generator.choice(self.core.config.budgets or (0.0,), (images, 1))
        return torch.tensor(drawn, dtype=torch.float32, device=self.core.device)


def check_rounds(agent: BaseAlgorithm, total_timesteps: int, config: JointConfig) -> None:
    """Raise ValueError if an agent has too few rollouts to learn before each round of the ViT and after the last."""
    if isinstance(agent, OnPolicyAlgorithm):  # of others a rollout is a few steps
        between = math.ceil(total_timesteps / (agent.n_steps * agent.n_envs)) - 1
        if between < config.rounds:
            raise ValueError(f"rounds: expected at most {between}, one between two rollouts, got {config.rounds}")
