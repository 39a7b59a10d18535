"""Rivals that answer whether reinforcement learning is needed: a differentiable gate, and a router shown good paths.

Both see the images of the same rollouts as the other algorithms, so that curves, budgets and callbacks are alike; only
`train` differs.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from ..backbone.protocol import unit_runner
from ..envs.core import SkipCore
from .episodic import BoundedPolicy, EpisodicAlgorithm


class Supervised(EpisodicAlgorithm):
    """What both share: a loss on the images of a rollout, in minibatches.

    Args:
        policy: "MlpPolicy".
        env: `SkipVecEnv`.
        learning_rate: of Adam.
        n_steps: steps of a rollout, whole episodes.
        max_grad_norm: largest norm of the gradient.
        **common: of SB3's base class.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": BoundedPolicy}

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        learning_rate: Any = 2e-3,
        n_steps: int = 12,
        max_grad_norm: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            ent_coef=0.0,
            max_grad_norm=max_grad_norm,
            **common,
        )

    @property
    def shown_budgets(self) -> Float[Tensor, "E B N"]:
        """The budget that each episode of the rollout was shown; N is 0 where there are none, else 1."""
        return self.by_episode(self.rollout_buffer.observations)[:, 0, :, self.core.layout.budget]

    @property
    def cost_weights(self) -> Float[Tensor, "E B"]:
        """What running every unit costs in each episode of the rollout."""
        cost_weight = torch.as_tensor(self.core.cost_weight, dtype=torch.float32, device=self.device)
        if not self.core.layout.shows_budget:
            return cost_weight.expand(self.episode_images.shape)
        budgets = torch.as_tensor(self.core.budgets, dtype=torch.float32, device=self.device)
        return cost_weight[(self.shown_budgets - budgets).abs().argmin(-1)]

    def log_odds(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """Of RUN, with gradients to the policy."""
        logits = self.policy.action_net(self.policy.mlp_extractor.forward_actor(observation))
        return logits[:, 1] - logits[:, 0]


class Gumbel(Supervised):
    """A hard gate with the gradient of a soft one (Gumbel-sigmoid, straight-through; Jang et al., 2017).

    The loss is the cross-entropy of the path taken plus `cost_weight` times its cost, differentiated through the
    backbone: every block is computed, and masked. That is for gradients only; the deployed network skips.

    Args:
        *args: as `Supervised`.
        temperature: of the soft gate; more than 0.
        **kwargs: as `Supervised`.

    Raises:
        ValueError: for a temperature of 0 or less.
    """

    def __init__(self, *args: Any, temperature: float = 1.0, **kwargs: Any) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        self.temperature = temperature
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """One gradient step for each episode of the rollout."""
        self.policy.set_training_mode(True)
        for image_index, shown, cost_weight in zip(
            self.episode_images.cpu(), self.shown_budgets, self.cost_weights, strict=True
        ):
            logits, cost = self._gated_pass(image_index, shown)
            labels = self.core.dataset.labels[image_index].to(logits.device)
            task_loss = F.cross_entropy(logits.float(), labels)
            loss = task_loss + (cost_weight.to(cost.device) * cost).mean()
            self.descend(loss, task_loss=task_loss, cost=cost.mean())

    def _gated_pass(
        self, image_index: Int64[Tensor, " B"], shown: Float[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, " B"]]:
        core, device = self.core, self.core.device
        backbone, run = core.backbone, unit_runner(core.backbone, core.config.action_unit)
        with torch.no_grad():
            tokens = backbone.embed(core.dataset.images[image_index].to(device))
        macs = np.array(backbone.macs.units(core.config.action_unit))
        shares = torch.as_tensor(np.stack([core.cost_share, macs / macs.sum()]), dtype=torch.float32, device=device)
        spent = torch.zeros(len(tokens), 2, device=device)  # the cost, which is paid, and the MACs, which are seen
        units = torch.eye(core.num_units, device=device)
        logits = backbone.classify(tokens)
        for unit in range(core.num_units):
            progress = torch.cat([units[unit].expand(len(tokens), -1), spent[:, 1:].detach(), shown.to(device)], 1)
            observation = core.layout.observe(logits.detach(), progress, tokens.detach())
            log_odds = self.log_odds(observation.to(self.device)).to(device)
            gate = straight_through_gate(log_odds, self.temperature)
            tokens = torch.lerp(tokens, run(unit, tokens), gate[:, None, None])
            logits = backbone.classify(tokens)
            spent = spent + gate[:, None] * shares[:, unit]
        return logits, spent[:, 0]


class Router(Supervised):
    """Learns by example: at every state it visits, what the best of the image's first-k paths would do there.

    For each image all first-k paths are searched (one pass of the full net gives them); the best has the largest
    log-probability of the label minus `cost_weight` times its cost.
    """

    def train(self) -> None:
        """One gradient step on the rollout."""
        self.policy.set_training_mode(True)
        observations = self.by_episode(self.rollout_buffer.observations)  # [E, U, B, O]
        targets = torch.stack(list(map(self._target, self.episode_images.cpu(), self.cost_weights)))  # [E, B, U]
        log_odds = self.log_odds(observations.flatten(0, 2)).reshape(observations.shape[:3])
        wanted = targets.transpose(1, 2).to(log_odds)
        loss = F.binary_cross_entropy_with_logits(log_odds, wanted)
        self.descend(loss, agreement=((log_odds > 0) == (wanted > 0)).float().mean())

    def _target(self, image_index: Int64[Tensor, " B"], cost_weight: Float[Tensor, " B"]) -> Bool[Tensor, "B U"]:
        dataset = self.core.dataset
        return best_prefix(self.core, dataset.images[image_index], dataset.labels[image_index], cost_weight)


@torch.no_grad()
def best_prefix(
    core: SkipCore,
    images: Shaped[Tensor, "B 3 H W"],
    labels: Int64[Tensor, " B"],
    cost_weight: Float[Tensor, " B"],
) -> Bool[Tensor, "B U"]:
    """The first-k path of each image with the largest log-probability of the label minus its cost.

    Args:
        core: whose backbone and costs to use.
        images: as the backbone takes them.
        labels: of the images.
        cost_weight: what running every unit costs, by image.
    """
    run = unit_runner(core.backbone, core.config.action_unit)
    tokens, labels = core.backbone.embed(images.to(core.device)), labels.to(core.device)[:, None]
    cost_weight = cost_weight.to(core.device)
    share = torch.as_tensor(core.cost_share, dtype=torch.float32, device=core.device)
    scores = []
    for unit in range(core.num_units):
        tokens = run(unit, tokens)
        log_probability = core.backbone.classify(tokens).float().log_softmax(1).gather(1, labels)[:, 0]
        scores.append(log_probability - cost_weight * share[: unit + 1].sum())
    best = torch.stack(scores, 1).argmax(1)
    return torch.arange(core.num_units, device=core.device) <= best[:, None]


def straight_through_gate(log_odds: Float[Tensor, " B"], temperature: float) -> Float[Tensor, " B"]:
    """0 or 1, drawn with these odds, with the gradient of the tempered sigmoid."""
    noise = torch.rand_like(log_odds).logit(1e-6)  # logistic: the difference of two Gumbel variables
    soft = ((log_odds + noise) / temperature).sigmoid()
    return (soft > 0.5).to(soft) + soft - soft.detach()
