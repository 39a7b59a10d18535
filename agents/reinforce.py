"""REINFORCE with a baseline per image: the policy gradient without a critic.

Williams (1992); the greedy path as baseline after self-critical training (Rennie et al., 2017), the mean of the other
rollouts of the same image after leave-one-out (Kool et al., 2019).
"""

from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbone.registry import unknown_name
from .episodic import BoundedPolicy, EpisodicAlgorithm

Baseline = Literal["leave-one-out", "self-critical"]


class Reinforce(EpisodicAlgorithm):
    """Several rollouts of each image, weighted by how much better they went than the image's other ones.

    Args:
        policy: "MlpPolicy".
        env: `SkipVecEnv`, or one of its wrappers, whose number of rows is a multiple of `rollouts_per_image`.
        learning_rate: of Adam.
        n_steps: steps of a rollout, whole episodes.
        rollouts_per_image: K, neighbouring rows that get the same image; at least 2.
        baseline: "leave-one-out": the mean return of the image's K - 1 other rollouts; "self-critical": the return
            of its greedy path, which takes one of the K rows.
        ent_coef: weight of the entropy of both actions at every step.
        probability_floor: least probability of either action while learning, in [0, 0.5).
        max_grad_norm: largest norm of the gradient.
        **common: of SB3's base class.

    Raises:
        ValueError: for a baseline that is unknown or a number outside its range.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": BoundedPolicy}

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        learning_rate: Any = 3e-3,
        n_steps: int = 12,
        rollouts_per_image: int = 4,
        baseline: Baseline = "leave-one-out",
        ent_coef: float = 0.003,
        probability_floor: float = 0.02,
        max_grad_norm: float = 0.5,
        **common: Any,
    ) -> None:
        if baseline not in get_args(Baseline):
            raise unknown_name("baseline", baseline, get_args(Baseline))
        if not 0 <= probability_floor < 0.5:
            raise ValueError(f"probability_floor: expected a number in [0, 0.5), got {probability_floor}")
        if rollouts_per_image < 2 or env.num_envs % rollouts_per_image:
            raise ValueError(
                f"rollouts_per_image: expected at least 2 and a divisor of the {env.num_envs} environments, "
                f"got {rollouts_per_image}"
            )
        self.rollouts_per_image = rollouts_per_image
        self.baseline: Baseline = baseline
        policy_kwargs = {
            **(common.pop("policy_kwargs", None) or {}),
            "probability_floor": probability_floor,
            "greedy_stride": rollouts_per_image if baseline == "self-critical" else 0,
        }
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            policy_kwargs=policy_kwargs,
            rows_per_image=rollouts_per_image,
            **common,
        )

    def train(self) -> None:
        """One gradient step on the rollout."""
        self.policy.set_training_mode(True)
        returns = returns_to_go(self.by_episode(self.rollout_buffer.rewards))
        advantage, learns = image_advantage(returns, self.rollouts_per_image, self.baseline)
        _, log_prob, entropy = self.evaluate_rollout()
        policy_loss = -(advantage / (advantage[..., learns].std() + 1e-8) * log_prob)[..., learns].mean()
        entropy_loss = -entropy[..., learns].mean()
        self.descend(
            policy_loss + self.ent_coef * entropy_loss,
            policy_gradient_loss=policy_loss,
            entropy_loss=entropy_loss,
            advantage_std=advantage[..., learns].std(),
        )


def returns_to_go(rewards: Float[Tensor, "E T B"]) -> Float[Tensor, "E T B"]:
    """Sum of the rewards from each step on, undiscounted."""
    return rewards.flip(1).cumsum(1).flip(1)


def image_advantage(
    returns: Float[Tensor, "E T B"], rollouts_per_image: int, baseline: Baseline
) -> tuple[Float[Tensor, "E T B"], Bool[Tensor, " B"]]:
    """Returns minus the baseline of their image, and which rows learn from theirs.

    Args:
        returns: to go, of rows of which `rollouts_per_image` neighbours share an image.
        rollouts_per_image: K, a divisor of B.
        baseline: "leave-one-out", or "self-critical" where the first of the neighbours took the greedy path.
    """
    grouped = returns.unflatten(2, (-1, rollouts_per_image))
    learns = torch.ones(returns.shape[2], dtype=torch.bool, device=returns.device)
    if baseline == "self-critical":
        learns[::rollouts_per_image] = False
        return (grouped - grouped[..., :1]).flatten(2), learns
    others = (grouped.sum(3, keepdim=True) - grouped) / (rollouts_per_image - 1)
    return (grouped - others).flatten(2), learns
