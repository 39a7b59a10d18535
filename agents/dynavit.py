"""The published method: "DynamicViT: Faster Vision Transformer" (Mersha and Assefa, 2022), as its code does it.

One linear layer per block on the detached class token decides; a reward at the end of the episode
(`reward="dynavit"`); the return of step l is that reward times 0.9^(L - 1 - l), then standardised over the depth of its
own image, and a critic per block is subtracted. That standardisation takes the reward's size away: only its sign is
left, and early blocks get the opposite sign of late ones. `normalize_depth=False` repairs that one thing.

What differs here: the class token is layer-normed before it is looked at, and the steps are Stable-Baselines3's
(Adam, gradient clipping) instead of two AdamW.
"""

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ..envs.observation import ObservationLayout
from .episodic import EpisodicAlgorithm


class PerUnitFeatures(BaseFeaturesExtractor):
    """The class token and a one, in the place of the unit to decide, zero elsewhere: [B, U * (D + 1)].

    A linear layer on it is one linear layer with bias for each unit.
    """

    def __init__(self, observation_space: spaces.Box, layout: ObservationLayout) -> None:
        if layout.kind != "tokens":
            raise ValueError(f'observation: expected "tokens", which hold the class token, got {layout.kind!r}')
        super().__init__(observation_space, layout.num_units * (layout.embed_dim + 1))
        self.layout = layout

    def forward(self, observations: Tensor) -> Tensor:
        unit, cls_token = observations[:, self.layout.depth], observations[:, self.layout.cls_token]
        token = torch.cat([cls_token, torch.ones_like(cls_token[:, :1])], 1)
        return (unit[:, :, None] * token[:, None]).flatten(1)


class PerUnitCritic(nn.Module):
    """A hidden layer for each unit, its output again in the place of that unit; the actor sees the features."""

    def __init__(self, layout: ObservationLayout) -> None:
        super().__init__()
        width = layout.embed_dim + 1
        self.shape = (layout.num_units, width)
        self.latent_dim_pi = self.latent_dim_vf = layout.num_units * width
        self.hidden = nn.Parameter(torch.randn(layout.num_units, width, width) / width**0.5)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return features

    def forward_critic(self, features: Tensor) -> Tensor:
        tokens = features.unflatten(1, self.shape)
        return torch.einsum("bud,ude->bue", tokens, self.hidden).relu().flatten(1)


class PerUnitPolicy(ActorCriticPolicy):
    """Actor and critic of the published code.

    Args:
        *args: as SB3's `ActorCriticPolicy`.
        layout: of the observations.
        **kwargs: as SB3's `ActorCriticPolicy`.
    """

    def __init__(self, *args: Any, layout: ObservationLayout, **kwargs: Any) -> None:
        self.layout = layout
        features = {"features_extractor_class": PerUnitFeatures, "features_extractor_kwargs": {"layout": layout}}
        super().__init__(*args, **{**kwargs, **features, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = PerUnitCritic(self.layout)  # pyright: ignore[reportAttributeAccessIssue] - declared as an MlpExtractor


class DynaViT(EpisodicAlgorithm):
    """The published policy gradient.

    Args:
        policy: "MlpPolicy", which stands for `PerUnitPolicy`.
        env: `SkipVecEnv` with `observation="tokens"`; published with `reward="dynavit"`, `cost_weight=3.0`.
        learning_rate: of Adam.
        n_steps: steps of a rollout, whole episodes.
        discount: per step back from the last one.
        normalize_depth: standardise the returns of each episode over its depth, as published.
        ent_coef: weight of the entropy; published without.
        max_grad_norm: largest norm of the gradient.
        **common: of SB3's base class.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": PerUnitPolicy}

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        learning_rate: Any = 1e-3,
        n_steps: int = 12,
        discount: float = 0.9,
        normalize_depth: bool = True,
        ent_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        **common: Any,
    ) -> None:
        self.discount, self.normalize_depth = discount, normalize_depth
        common["policy_kwargs"] = {"layout": env.unwrapped.core.layout}
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            **common,
        )

    def train(self) -> None:
        """One gradient step on the rollout."""
        self.policy.set_training_mode(True)
        episode_return = self.by_episode(self.rollout_buffer.rewards).sum(1)
        returns = published_returns(episode_return, self.core.num_units, self.discount, self.normalize_depth)
        values, log_prob, entropy = self.evaluate_rollout()
        policy_loss = -((returns - values.detach()) * log_prob).sum(1).mean()
        value_loss = (returns - values).square().mean()
        self.descend(
            policy_loss + value_loss - self.ent_coef * entropy.mean(),
            policy_gradient_loss=policy_loss,
            value_loss=value_loss,
            entropy_loss=-entropy.mean(),
        )


def published_returns(
    episode_return: Float[Tensor, "E B"], num_units: int, discount: float, normalize_depth: bool
) -> Float[Tensor, "E U B"]:
    """The reward times discount^(U - 1 - u); standardised over u by the sample deviation if so published."""
    powers = discount ** torch.arange(num_units - 1, -1, -1, device=episode_return.device)
    returns = episode_return[:, None] * powers[:, None]
    if not normalize_depth:
        return returns
    return (returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-12)
