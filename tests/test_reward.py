"""Rewards by hand, and the return of an episode recomputed from what the episode did."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import DEPTH, tiny_core, tiny_vit4

from vitskip.backbone import run_masked
from vitskip.envs.cost import cost_shares
from vitskip.envs.reward import TASK_REWARDS, Outcome, blockdrop, correct, dynavit, gain, kl, logprob, margin

EVERY_REWARD = pytest.mark.parametrize("reward", sorted(TASK_REWARDS))
LOG = math.log
# Probabilities (0.5, 0.3, 0.2), (0.5, 0.3, 0.2) and (0.1, 0.1, 0.8), up to a constant that softmax takes away.
LOGITS = torch.tensor([[LOG(5.0), LOG(3.0), LOG(2.0)], [LOG(5.0), LOG(3.0), LOG(2.0)], [LOG(1.0), LOG(1.0), LOG(8.0)]])
LABELS = torch.tensor([0, 1, 2])
KEEP_MASK = torch.tensor([[False] * 4, [True, False, True, False], [True, True, True, False]])


def outcome(logits: Tensor = LOGITS, full_logits: Tensor | None = None, cost_weight: float = 0.1) -> Outcome:
    return Outcome(logits, LABELS, full_logits, KEEP_MASK, cost_weight)


def test_correct_is_one_where_the_prediction_is_the_label() -> None:
    assert correct(outcome()).tolist() == [1, 0, 1]


def test_gain_counts_only_images_on_which_the_full_net_differs() -> None:
    assert gain(outcome(full_logits=LOGITS)).tolist() == [0, 0, 0]
    wrong_right_wrong = torch.eye(3)[[1, 1, 0]]
    assert gain(outcome(full_logits=wrong_right_wrong)).tolist() == [1, -1, 1]


def test_margin_is_the_labels_lead_in_probability() -> None:
    torch.testing.assert_close(margin(outcome()), torch.tensor([0.2, -0.2, 0.7]))
    torch.testing.assert_close(margin(outcome(100 * LOGITS)), torch.tensor([1.0, -1.0, 1.0]))


def test_logprob_is_the_labels_log_probability() -> None:
    torch.testing.assert_close(logprob(outcome()), torch.tensor([LOG(0.5), LOG(0.3), LOG(0.8)]))


def test_kl_is_zero_for_the_full_nets_own_logits() -> None:
    torch.testing.assert_close(kl(outcome(full_logits=LOGITS + 3)), torch.zeros(3), atol=1e-6, rtol=0)


def test_kl_is_the_divergence_from_the_full_net_by_hand() -> None:
    full = LOGITS.roll(1, 0)  # row 0: (0.1, 0.1, 0.8) || (0.5, 0.3, 0.2)
    first = -(0.1 * LOG(0.1 / 0.5) + 0.1 * LOG(0.1 / 0.3) + 0.8 * LOG(0.8 / 0.2))
    last = -(0.5 * LOG(0.5 / 0.1) + 0.3 * LOG(0.3 / 0.1) + 0.2 * LOG(0.2 / 0.8))
    torch.testing.assert_close(kl(outcome(full_logits=full)), torch.tensor([first, 0.0, last]))


@pytest.mark.parametrize("reward", [kl, gain])
def test_a_comparison_with_the_full_net_asks_for_its_logits(reward: Callable[[Outcome], Tensor]) -> None:
    with pytest.raises(ValueError, match=f"expected the full net's logits for the reward '{reward.__name__}'"):
        reward(outcome())


def test_blockdrop_by_hand() -> None:
    """1 - kept^2 where correct, else -1 / cost_weight."""
    torch.testing.assert_close(blockdrop(outcome(cost_weight=0.1)), torch.tensor([1.0, -10.0, 1 - 0.75**2]))
    torch.testing.assert_close(blockdrop(outcome(cost_weight=4.0)), torch.tensor([1.0, -0.25, 1 - 0.75**2]))


def test_dynavit_by_hand() -> None:
    """With 4 units the schedule is 0.1 * 9^(i / 4); its softmax over five depths prices the first four."""
    schedule = [0.1, 0.1 * 3**0.5, 0.3, 0.1 * 27**0.5, 0.9]
    price = [math.exp(value) / sum(map(math.exp, schedule)) for value in schedule]
    expected = [1.0, -3 * (price[0] + price[2]), 1 - 3 * (price[0] + price[1] + price[2])]
    torch.testing.assert_close(dynavit(outcome(cost_weight=3.0)), torch.tensor(expected))
    assert price[3] > price[2] > price[1] > price[0]


@pytest.mark.parametrize("reward", ["blockdrop", "dynavit"])
def test_rewards_that_price_compute_need_a_cost_weight(reward: str) -> None:
    with pytest.raises(ValueError, match=rf"cost_weight: expected more than 0 for reward '{reward}', got 0"):
        tiny_core(1, reward=reward, cost_weight=0)


@EVERY_REWARD
def test_each_row_has_its_own_reward(reward: str) -> None:
    """Rows in another order, or alone, give the same rewards."""
    rng = torch.Generator().manual_seed(0)
    logits, full_logits = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    kept = torch.rand(6, 5, generator=rng) < 0.5
    labels, task = torch.tensor([0, 1, 2, 3, 0, 1]), TASK_REWARDS[reward]
    together = task.compute(Outcome(logits, labels, full_logits, kept, 0.3))
    for row in range(6):
        rows = [row]
        alone = task.compute(Outcome(logits[rows], labels[rows], full_logits[rows], kept[rows], 0.3))
        torch.testing.assert_close(together[rows], alone)


def test_cost_shares_by_hand() -> None:
    """Five tokens of width 16: attention 4 * 5 * 16^2 + 2 * 5^2 * 16 MACs, MLP 2 * 5 * 16 * 64."""
    attention, mlp = 4 * 5 * 16**2 + 2 * 5**2 * 16, 2 * 5 * 16 * 64
    half = cost_shares("macs", tiny_vit4(), "half")
    np.testing.assert_allclose(half, np.array([attention, mlp] * DEPTH) / (DEPTH * (attention + mlp)))
    np.testing.assert_allclose(cost_shares("macs", tiny_vit4(), "block"), [1 / DEPTH] * DEPTH)


@EVERY_REWARD
@pytest.mark.parametrize("action_unit", ["block", "half"])
@pytest.mark.parametrize("cost_weight", [0.25, 2])
def test_the_return_is_the_task_term_minus_the_price_of_compute(
    reward: str, action_unit: str, cost_weight: float
) -> None:
    """Recomputed from the masked batch and the MACs that the infos report."""
    core = tiny_core(16, reward=reward, action_unit=action_unit, cost_weight=cost_weight)
    rows, images = np.arange(16), np.arange(16) * 3
    keep_mask = np.random.default_rng(0).random((16, core.num_units)) < 0.5
    keep_mask[0], keep_mask[1] = True, False
    core.reset(rows, images)
    start = core.info()["macs"]
    rewards = torch.stack([core.step(keep_mask[:, unit].astype(np.int64)) for unit in range(core.num_units)], 1)

    backbone, dataset = tiny_vit4().eval(), core.dataset
    with torch.no_grad():
        logits = run_masked(backbone, dataset.images[images], torch.from_numpy(keep_mask), action_unit)
        full_logits = backbone(dataset.images[images])
    labels, kept = dataset.labels[images], torch.from_numpy(keep_mask)
    task = TASK_REWARDS[reward].compute(Outcome(logits, labels, full_logits, kept, cost_weight))
    total = backbone.macs.total - backbone.macs.stem - backbone.macs.head
    spent = torch.from_numpy((core.info()["macs"] - start) / total).float()
    price = 0.0 if reward in ("blockdrop", "dynavit") else cost_weight
    torch.testing.assert_close(rewards.sum(1), task - price * spent, rtol=1e-4, atol=1e-5)
    shares = torch.from_numpy(cost_shares("macs", backbone, action_unit) * keep_mask).float()
    torch.testing.assert_close(rewards[:, :-1], -price * shares[:, :-1])  # dense: each block is paid when it runs
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize("reward", ["kl", "gain"])
def test_running_everything_costs_the_cost_weight_and_a_comparison_with_it_is_then_zero(reward: str) -> None:
    core = tiny_core(4, reward=reward, cost_weight=0.3)
    core.reset(np.arange(4), np.arange(4))
    total = sum(core.step(np.ones(4, np.int64)) for _ in range(DEPTH))
    torch.testing.assert_close(total, torch.full((4,), -0.3))


@EVERY_REWARD
def test_rows_that_end_at_different_times_get_finite_rewards(reward: str) -> None:
    """The full net is asked only about the images whose episodes end; the other rows must not see the gaps."""
    core, alone = tiny_core(3, reward=reward), tiny_core(3, reward=reward)
    core.reset(np.arange(3), np.array([1, 2, 3]))
    alone.reset(np.arange(3), np.array([1, 2, 3]))
    expected = [alone.step(np.array([1, 0, 1])) for _ in range(DEPTH)]
    active, actions = np.array([True, False, True]), np.array([1, 0, 1])
    for unit in range(DEPTH):  # rows 0 and 2 first, row 1 stands still
        rewards = core.step(actions, active)
        assert torch.isfinite(rewards).all()
        torch.testing.assert_close(rewards[[0, 2]], expected[unit][[0, 2]])
        assert rewards[1] == 0
    for unit in range(DEPTH):
        rewards = core.step(actions, ~active)
        assert torch.isfinite(rewards).all()
        torch.testing.assert_close(rewards[1], expected[unit][1])
        assert rewards[[0, 2]].tolist() == [0, 0]
