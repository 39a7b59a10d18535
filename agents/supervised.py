"""Rivals that answer whether reinforcement learning is needed: a differentiable gate, and a router shown good paths.

Both see the images of the same rollouts as the other algorithms, so that curves, budgets and callbacks are alike; only
`train` differs.
"""

from typing import Any, ClassVar

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
        ent_coef: weight of the entropy.
        max_grad_norm: largest norm of the gradient.
        **common: of SB3's base class.

    Raises:
        ValueError: if the environment has several budgets.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": BoundedPolicy}

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        learning_rate: Any = 2e-3,
        n_steps: int = 12,
        ent_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            **common,
        )
        if self.core.config.budgets:
            raise ValueError(f"budgets: expected none for {type(self).__name__}, got {self.core.config.budgets}")

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
        temperature: of the soft gate.
        **kwargs: as `Supervised`.
    """

    def __init__(self, *args: Any, temperature: float = 1.0, **kwargs: Any) -> None:
        self.temperature = temperature
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """One gradient step for each episode of the rollout."""
        self.policy.set_training_mode(True)
        for image_index in self.episode_images:
            logits, cost = self._gated_pass(image_index.cpu())
            labels = self.core.dataset.labels[image_index.cpu()].to(logits.device)
            task_loss, cost = F.cross_entropy(logits.float(), labels), cost.mean()
            self.descend(task_loss + float(self.core.cost_weight[0]) * cost, task_loss=task_loss, cost=cost)

    def _gated_pass(self, image_index: Int64[Tensor, " B"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, " B"]]:
        core = self.core
        backbone, run = core.backbone, unit_runner(core.backbone, core.config.action_unit)
        with torch.no_grad():
            tokens = backbone.embed(core.dataset.images[image_index].to(core.device))
        share = torch.as_tensor(core.cost_share, dtype=torch.float32, device=core.device)
        spent = torch.zeros(len(tokens), device=core.device)
        units = torch.eye(core.num_units, device=core.device)
        logits = backbone.classify(tokens)
        for unit in range(core.num_units):
            progress = torch.cat([units[unit].expand(len(tokens), -1), spent.detach()[:, None]], 1)
            observation = core.layout.observe(logits.detach(), progress, tokens.detach())
            gate = straight_through_gate(self.log_odds(observation), self.temperature)
            tokens = torch.lerp(tokens, run(unit, tokens), gate[:, None, None])
            logits = backbone.classify(tokens)
            spent = spent + gate * share[unit]
        return logits, spent


class Router(Supervised):
    """Learns by example: at every state it visits, what the best of the image's first-k paths would do there.

    For each image all first-k paths are searched (one pass of the full net gives them); the best has the largest
    log-probability of the label minus `cost_weight` times its cost.
    """

    def train(self) -> None:
        """One gradient step on the rollout."""
        self.policy.set_training_mode(True)
        observations = self.by_episode(self.rollout_buffer.observations)  # [E, U, B, O]
        targets = torch.stack([self._target(image_index.cpu()) for image_index in self.episode_images])  # [E, B, U]
        log_odds = self.log_odds(observations.flatten(0, 2)).reshape(observations.shape[:3])
        wanted = targets.transpose(1, 2).to(log_odds)
        loss = F.binary_cross_entropy_with_logits(log_odds, wanted)
        self.descend(loss, agreement=((log_odds > 0) == (wanted > 0)).float().mean())

    def _target(self, image_index: Int64[Tensor, " B"]) -> Bool[Tensor, "B U"]:
        dataset, core = self.core.dataset, self.core
        return best_prefix(core, dataset.images[image_index], dataset.labels[image_index])


@torch.no_grad()
def best_prefix(core: SkipCore, images: Shaped[Tensor, "B 3 H W"], labels: Int64[Tensor, " B"]) -> Bool[Tensor, "B U"]:
    """The first-k path of each image with the largest log-probability of the label minus its cost."""
    run = unit_runner(core.backbone, core.config.action_unit)
    tokens, labels = core.backbone.embed(images.to(core.device)), labels.to(core.device)[:, None]
    scores = []
    price = float(core.cost_weight[0]) * torch.as_tensor(core.cost_share, dtype=torch.float32, device=core.device)
    for unit in range(core.num_units):
        tokens = run(unit, tokens)
        log_probability = core.backbone.classify(tokens).float().log_softmax(1).gather(1, labels)[:, 0]
        scores.append(log_probability - price[: unit + 1].sum())
    best = torch.stack(scores, 1).argmax(1)
    return torch.arange(core.num_units, device=core.device) <= best[:, None]


def straight_through_gate(log_odds: Float[Tensor, " B"], temperature: float) -> Float[Tensor, " B"]:
    """0 or 1, drawn with these odds, with the gradient of the tempered sigmoid."""
    noise = torch.rand_like(log_odds).logit(1e-6)  # logistic: the difference of two Gumbel variables
    soft = ((log_odds + noise) / temperature).sigmoid()
    return (soft > 0.5).to(soft) + soft - soft.detach()
