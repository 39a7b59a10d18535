"""Observations by hand: belief, layout, bounds."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import DEPTH, tiny_core, tiny_vit4

from vitskip.envs import ObservationLayout
from vitskip.envs.observation import belief

LOG = math.log
KINDS = pytest.mark.parametrize("kind", ["belief", "confidence", "tokens"])
UNITS = pytest.mark.parametrize(("action_unit", "units"), [("block", DEPTH), ("half", 2 * DEPTH)])


def test_belief_of_three_classes_by_hand() -> None:
    """Up to ten classes the probabilities keep the classes' order."""
    values = belief(torch.tensor([[LOG(2.0), LOG(5.0), LOG(3.0)]]))[0]
    entropy = -(0.2 * LOG(0.2) + 0.5 * LOG(0.5) + 0.3 * LOG(0.3)) / LOG(3)
    torch.testing.assert_close(values, torch.tensor([0.2, 0.5, 0.3, 0.0, entropy, 0.2]))  # logit(0.5) = 0


def test_belief_of_twenty_classes_by_hand() -> None:
    """Beyond ten classes the largest ten, sorted; entropy is over all twenty."""
    weights = torch.arange(1.0, 21.0)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    values, total = belief(weights.log()[None])[0], 210
    shares = [weight / total for weight in range(20, 0, -1)]
    top_logit = LOG(shares[0] / (1 - shares[0])) / 10
    entropy = -sum(share * LOG(share) for share in shares) / LOG(20)
    expected = [*shares[:10], top_logit, entropy, shares[0] - shares[1]]
    torch.testing.assert_close(values, torch.tensor(expected))


@pytest.mark.parametrize(("classes", "columns"), [(2, 5), (3, 6), (10, 13), (11, 13), (1000, 13)])
def test_belief_is_bounded_and_finite_for_any_logits(classes: int, columns: int) -> None:
    rng = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 0.1, 1.0, 10.0, 1e3, 1e6, 1e30])
    values = belief(scales[:, None] * torch.randn(7, classes, generator=rng))
    assert values.shape == (7, columns)
    assert torch.isfinite(values).all()
    assert values.abs().max() <= 1
    assert values[0, -2] == pytest.approx(1)  # no opinion: full entropy, no lead
    assert values[0, -1] == 0
    assert values[-1, -3:].tolist() == [1, 0, 1]  # certainty


def test_belief_of_half_precision_logits_is_float32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    values = belief(logits.bfloat16())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, belief(logits))


@KINDS
@UNITS
def test_everything_stands_where_the_layout_says(kind: str, action_unit: str, units: int) -> None:
    core = tiny_core(3, observation=kind, action_unit=action_unit)
    layout = core.layout
    core.reset(np.arange(3), np.array([1, 2, 3]))
    core.step(np.array([1, 0, 1]))
    observation, macs = core.observe(), np.array(core.backbone.macs.units(action_unit))
    shown = 0 if kind == "confidence" else 10
    assert (layout.probabilities, layout.depth) == (slice(0, shown), slice(shown + 3, shown + 3 + units))
    assert observation.shape == (3, layout.size)
    assert observation.dtype == torch.float32
    assert layout.size == shown + 4 + units + (32 if kind == "tokens" else 0)
    torch.testing.assert_close(observation[:, layout.probabilities], core.logits.softmax(1)[:, :shown])
    torch.testing.assert_close(observation[:, : shown + 3], belief(core.logits)[:, -(shown + 3) :])
    assert observation[:, layout.depth].tolist() == [[0, 1, *[0] * (units - 2)]] * 3
    spent = macs[0] / macs.sum()
    np.testing.assert_allclose(observation[:, layout.depth.stop], [spent, 0, spent], rtol=1e-6)


@pytest.mark.parametrize(("kind", "tells"), [("belief", True), ("confidence", False)])
def test_confidence_does_not_tell_the_classes_apart(kind: str, tells: bool) -> None:
    layout, logits = ObservationLayout.of(tiny_vit4(), kind, "block"), torch.randn(5, 10)
    progress, tokens = torch.zeros(5, DEPTH + 1), torch.zeros(5, 5, 16)
    seen, permuted = (layout.observe(given, progress, tokens) for given in (logits, logits.roll(3, 1)))
    assert torch.allclose(seen, permuted, atol=1e-6) != tells


@UNITS
def test_the_tokens_kind_adds_normed_summaries(action_unit: str, units: int) -> None:
    core = tiny_core(3, observation="tokens", action_unit=action_unit)
    core.reset(np.arange(3), np.array([1, 2, 3]))
    core.step(np.array([1, 0, 1]))
    summaries = core.observe()[:, 14 + units :].unflatten(1, (2, 16))
    torch.testing.assert_close(summaries[:, 0], F.layer_norm(core.tokens[:, 0], (16,)))
    torch.testing.assert_close(summaries[:, 1], F.layer_norm(core.tokens[:, 1:].mean(1), (16,)))
    torch.testing.assert_close(summaries.mean(2), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(summaries.square().mean(2), torch.ones(3, 2), atol=1e-2, rtol=0)


def test_summaries_stay_within_the_bound_for_any_tokens() -> None:
    """The worst case is a token with a single large entry."""
    layout = ObservationLayout.of(tiny_vit4(), "tokens", "block")
    tokens = torch.zeros(4, 5, 16)
    tokens[0, :, 3], tokens[1, :, 0], tokens[2, 0, 5] = 1e4, -1e4, 1e-4
    observation = layout.observe(torch.zeros(4, 10), torch.zeros(4, DEPTH + 1), tokens)
    assert torch.isfinite(observation).all()
    assert 3.8 < observation.abs().max() < layout.bound == 4
    assert ObservationLayout.of(tiny_vit4(), "belief", "block").bound == 1


@KINDS
@UNITS
def test_the_depth_one_hot_moves_and_is_zero_at_the_end(kind: str, action_unit: str, units: int) -> None:
    core = tiny_core(2, observation=kind, action_unit=action_unit)
    core.reset(np.arange(2), np.array([5, 6]))
    for unit in range(units):
        expected = [float(unit == other) for other in range(units)]
        assert core.observe()[:, core.layout.depth].tolist() == [expected] * 2
        core.step(np.array([1, 0]))
    last = core.observe()
    assert last[:, core.layout.depth].tolist() == [[0.0] * units] * 2
    assert last[:, core.layout.depth.stop].tolist() == [1, 0]


def test_an_observation_is_not_overwritten_by_the_next() -> None:
    core = tiny_core(2, observation="tokens")
    core.reset(np.arange(2), np.array([5, 6]))
    first = core.observe()
    before = first.clone()
    core.step(np.array([1, 0]))
    assert not torch.equal(core.observe(), before)
    assert torch.equal(first, before)
