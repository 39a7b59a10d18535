"""REINFORCE and the published method: advantages by hand, groups of rows that share an image, bounded probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from toys import DEPTH, TINY

from vitskip.agents import make_agent
from vitskip.agents.dynavit import published_returns
from vitskip.agents.reinforce import image_advantage, returns_to_go
from vitskip.agents.supervised import best_prefix, straight_through_gate
from vitskip.backbone import load_backbone, run_masked
from vitskip.envs import make_sb3_env

RETURNS = torch.tensor([[[1.0, 0.0, 5.0, 1.0], [1.0, 3.0, 2.0, 4.0]]])  # one episode of two steps, two images


def test_returns_to_go_by_hand() -> None:
    rewards = torch.tensor([[[1.0, -1.0], [0.5, 0.0], [2.0, 3.0]]])
    assert returns_to_go(rewards).tolist() == [[[3.5, 2.0], [2.5, 3.0], [2.0, 3.0]]]


def test_leave_one_out_by_hand() -> None:
    """With two rollouts the baseline is the other one."""
    advantage, learns = image_advantage(RETURNS, 2, "leave-one-out")
    assert advantage.tolist() == [[[1, -1, 4, -4], [-2, 2, -2, 2]]]
    assert learns.all()


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    advantage, _ = image_advantage(RETURNS, 4, "leave-one-out")
    assert advantage[0, 0, 2].item() == pytest.approx(5 - (1 + 0 + 1) / 3)


def test_self_critical_subtracts_the_greedy_path_which_learns_nothing() -> None:
    advantage, learns = image_advantage(RETURNS, 2, "self-critical")
    assert advantage.tolist() == [[[0, -1, 0, -4], [0, 2, 0, 2]]]
    assert learns.tolist() == [False, True, False, True]


def test_published_returns_keep_the_sign_only_and_invert_it_early() -> None:
    """The standardised return of every success is alike, whatever it is worth, and negative at the early units."""
    returns = published_returns(torch.tensor([[0.2, 0.9, -0.4]]), 12, 0.9, normalize_depth=True)[0]
    torch.testing.assert_close(returns[:, 0], returns[:, 1])
    torch.testing.assert_close(returns[:, 0], -returns[:, 2])
    assert (returns[:7, 0] < 0).all() and (returns[7:, 0] > 0).all()
    plain = published_returns(torch.tensor([[0.2]]), 12, 0.9, normalize_depth=False)[0, :, 0]
    torch.testing.assert_close(plain, 0.2 * 0.9 ** torch.arange(11, -1, -1.0))


@pytest.mark.parametrize("name", ["reinforce", "self-critical"])
def test_rollouts_of_an_image_are_neighbours(name: str) -> None:
    venv = make_sb3_env(num_envs=8, seed=0, **TINY)
    agent = make_agent(name, venv, rollouts_per_image=4)
    agent.learn(2 * 8 * DEPTH)
    images = venv.core.image_index.reshape(2, 4)
    assert (images == images[:, :1]).all()
    assert images[0, 0] != images[1, 0]


def test_the_greedy_rows_take_the_likelier_actions() -> None:
    venv = make_sb3_env(num_envs=64, seed=0, **TINY)
    agent: Any = make_agent("self-critical", venv, rollouts_per_image=2)
    observations = torch.from_numpy(venv.reset())
    with torch.no_grad():
        actions = agent.policy(observations)[0]
        likelier = agent.policy.get_distribution(observations).mode()
    assert torch.equal(actions[::2], likelier[::2])
    assert not torch.equal(actions[1::2], likelier[1::2])  # drawn: one in eight differs


def test_probabilities_are_bounded() -> None:
    agent: Any = make_agent("reinforce", make_sb3_env(num_envs=4, **TINY), probability_floor=0.2)
    with torch.no_grad():
        agent.policy.action_net.bias.copy_(torch.tensor([-50.0, 50.0]))
        distribution = agent.policy.get_distribution(torch.zeros(1, agent.observation_space.shape[0]))
    torch.testing.assert_close(distribution.distribution.probs, torch.tensor([[0.2, 0.8]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "self"}, "unknown baseline 'self': expected one of leave-one-out, self-critical"),
        ({"probability_floor": 0.5}, r"probability_floor: expected a number in \[0, 0.5\), got 0.5"),
        (
            {"rollouts_per_image": 3},
            "rollouts_per_image: expected at least 2 and a divisor of the 8 environments, got 3",
        ),
        ({"rollouts_per_image": 1}, "rollouts_per_image: expected at least 2"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent("reinforce", make_sb3_env(num_envs=8, **TINY), **arguments)


@pytest.mark.parametrize("name", ["dynavit", "dynavit-repaired"])
def test_the_published_method_needs_the_class_token(name: str) -> None:
    with pytest.raises(ValueError, match="observation: expected \"tokens\", which hold the class token, got 'belief'"):
        make_agent(name, make_sb3_env(num_envs=8, **TINY))


def test_the_gate_is_hard_and_its_gradient_is_soft() -> None:
    torch.manual_seed(0)
    log_odds = torch.full((4000,), 1.0, requires_grad=True)
    gate = straight_through_gate(log_odds, 1.0)
    assert set(gate.detach().round(decimals=6).tolist()) == {0.0, 1.0}
    assert gate.mean().item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)
    gate.sum().backward()
    assert log_odds.grad is not None and (log_odds.grad > 0).all()


def test_the_best_prefix_is_the_best_of_all_prefixes() -> None:
    """Recomputed by masked batches."""
    venv = make_sb3_env(num_envs=4, cost_weight=0.7, **TINY)
    core, backbone = venv.core, load_backbone("tiny-vit4").eval()
    images, labels = core.dataset.images[:12], core.dataset.labels[:12]
    best = best_prefix(core, images, labels, torch.full((len(images),), float(core.cost_weight[0])))
    scores = []
    with torch.no_grad():
        for k in range(1, DEPTH + 1):
            keep_mask = torch.arange(DEPTH).expand(12, -1) < k
            log_probability = run_masked(backbone, images, keep_mask).log_softmax(1)[torch.arange(12), labels]
            scores.append(log_probability - 0.7 * float(np.sum(core.cost_share[:k])))
    assert best.sum(1).tolist() == (torch.stack(scores).argmax(0) + 1).tolist()
    assert (best.int().diff(dim=1) <= 0).all()
    assert len(best.unique(dim=0)) > 1


def test_advantages_are_scaled_by_those_that_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The greedy rows of the self-critical baseline, whose advantage is 0, have no part in the deviation."""
    agent: Any = make_agent("self-critical", make_sb3_env(num_envs=8, seed=0, **TINY))
    told = {}
    monkeypatch.setattr(agent, "descend", lambda loss, **logged: told.update(logged))
    agent.learn(8 * DEPTH)
    rewards = agent.by_episode(agent.rollout_buffer.rewards)
    advantage, _ = image_advantage(returns_to_go(rewards), 2, "self-critical")
    drawn, log_prob = advantage[..., 1::2], agent.evaluate_rollout()[1][..., 1::2]
    assert drawn.std() > 0
    assert told["policy_gradient_loss"].item() == pytest.approx(
        -(drawn / drawn.std() * log_prob).mean().item(), rel=1e-4
    )
