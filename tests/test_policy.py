"""Rules by hand, `predict` as Stable-Baselines3 has it, and the baselines in the environment."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from nets import RULES, make_policy, roll_out
from numpy.typing import NDArray
from torch import Tensor

from vitskip.agents import Policy, baselines
from vitskip.backbone import load_backbone, load_dataset
from vitskip.envs import ObservationLayout

UNITS = 4
LAYOUT = ObservationLayout("belief", num_classes=3, num_units=UNITS, embed_dim=8, num_prefix_tokens=1)
TINY = ObservationLayout.of(load_backbone("tiny-vit4"), "belief", "block")
IMAGES = range(32)


def observation(unit: int, probabilities: tuple[float, float, float] = (0.5, 0.3, 0.2), spent: float = 0.0) -> Tensor:
    """One row [1, O] before unit `unit`, or at the end of the episode where it is 4; belief columns 3 to 5 are 0."""
    depth = [float(unit == other) for other in range(UNITS)]
    return torch.tensor([[*probabilities, 0.0, 0.0, 0.0, *depth, spent]])


def decisions(policy: Policy, **arguments) -> list[bool]:
    """What a policy does at each unit."""
    return [bool(policy.decide(observation(unit, **arguments))) for unit in range(UNITS)]


def observations(rows: int, layout: ObservationLayout = LAYOUT) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (rows, layout.size)).astype(np.float32)


def plan_of(policy: Policy, rows: int) -> Tensor:
    plan = policy.plan(rows)
    assert plan is not None
    return plan


def test_a_mask_is_followed_whatever_is_seen() -> None:
    policy = Policy("mask", LAYOUT, keep=[True, False, False, True])
    for probabilities in ((1.0, 0.0, 0.0), (0.3, 0.4, 0.3)):
        assert decisions(policy, probabilities=probabilities, spent=0.7) == [True, False, False, True]
    assert not policy.decide(observation(UNITS)).any()
    assert policy.macs == 0


def test_a_mask_is_planned_for_every_row() -> None:
    policy = Policy("mask", LAYOUT, keep=[False, True, False, True])
    plan = plan_of(policy, 3)
    assert plan.tolist() == [[False, True, False, True]] * 3
    plan[0, 0] = True  # a plan is the caller's
    assert plan_of(policy, 1).tolist() == [[False, True, False, True]]


def test_random_log_odds_are_those_of_the_rate() -> None:
    policy = Policy("random", LAYOUT, rate=0.2)
    assert policy.rule(observation(2)).item() == pytest.approx(math.log(0.2 / 0.8))
    assert policy.rule(observation(0)).item() > 1000
    assert policy.macs == 0


def test_random_runs_unit_0_always_and_the_others_at_the_rate() -> None:
    policy = Policy("random", LAYOUT, rate=0.3)
    for unit in range(UNITS):
        share = policy.decide(observation(unit).expand(4000, -1)).float().mean().item()
        assert share == pytest.approx(1.0 if unit == 0 else 0.3, abs=0.03)  # 4 standard errors
    plan = plan_of(policy, 4000)
    assert plan[:, 0].all()
    assert plan[:, 1:].float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.03)


@pytest.mark.parametrize(("rate", "others"), [(0, False), (1, True)])
def test_random_at_the_ends_of_the_range_is_certain(rate: float, others: bool) -> None:
    policy = Policy("random", LAYOUT, rate=rate)
    assert all(decisions(policy) == [True, others, others, others] for _ in range(20))
    assert (plan_of(policy, 50)[:, 1:] == others).all()


def test_random_plans_follow_from_the_seed_and_differ_from_batch_to_batch() -> None:
    first, again, other = (Policy("random", LAYOUT, rate=0.5, seed=seed) for seed in (0, 0, 1))
    plan, next_plan = plan_of(first, 50), plan_of(first, 50)
    assert torch.equal(plan, plan_of(again, 50)) and torch.equal(next_plan, plan_of(again, 50))
    assert not torch.equal(plan, next_plan)
    assert not torch.equal(plan, plan_of(other, 50))


@pytest.mark.parametrize("rule", ["mlp", "lstm", "plan", "early-exit"])
def test_rules_that_look_at_the_image_have_no_plan(rule: str) -> None:
    assert make_policy(rule, LAYOUT).plan(3) is None


@pytest.mark.parametrize(
    ("threshold", "top", "runs"),
    [
        (0.6, 0.59, [True] * 4),
        (0.6, 0.61, [True, False, False, False]),
        (0.5, 0.5, [True, False, False, False]),  # reached is reached
        (0.0, 0.34, [True, False, False, False]),
        (1.0, 1.0, [True, False, False, False]),
        (1.001, 1.0, [True] * 4),
    ],
)
def test_early_exit_runs_until_the_head_is_confident(threshold: float, top: float, runs: list[bool]) -> None:
    policy = Policy("early-exit", LAYOUT, threshold=threshold)
    rest = (1 - top) / 2
    for probabilities in ((top, rest, rest), (rest, rest, top)):
        assert decisions(policy, probabilities=probabilities) == runs
    assert policy.macs == 0


def test_early_exit_decides_row_by_row() -> None:
    policy = Policy("early-exit", LAYOUT, threshold=0.6)
    rows = torch.cat([observation(2, (0.7, 0.2, 0.1)), observation(2), observation(0, (0.7, 0.2, 0.1))])
    assert policy.decide(rows).tolist() == [False, True, True]


def test_early_exit_may_ask_for_less_the_deeper_it_is() -> None:
    policy = Policy("early-exit", LAYOUT, threshold=[0.9, 0.7, 0.6, 0.6])
    assert decisions(policy, probabilities=(0.95, 0.03, 0.02)) == [False] * 4
    assert decisions(policy, probabilities=(0.8, 0.1, 0.1)) == [True, False, False, False]
    assert decisions(policy, probabilities=(0.65, 0.2, 0.15)) == [True, True, False, False]
    assert decisions(policy, probabilities=(0.4, 0.3, 0.3)) == [True] * 4


def test_mlp_equals_its_formula() -> None:
    policy = make_policy("mlp", LAYOUT)
    weights = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
    rows = observations(20)
    hidden = rows
    for layer in (0, 2):
        hidden = np.tanh(hidden @ weights[f"rule.network.{layer}.weight"].T + weights[f"rule.network.{layer}.bias"])
    expected = (hidden @ weights["rule.network.4.weight"].T + weights["rule.network.4.bias"])[:, 0]
    with torch.no_grad():
        np.testing.assert_allclose(policy.rule(torch.from_numpy(rows)).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert policy.predict(rows)[0].tolist() == (expected > 0).tolist()
    assert 0 < (expected > 0).mean() < 1


@pytest.mark.parametrize(("widths", "macs"), [([5, 3], 11 * 5 + 5 * 3 + 3), ([7], 11 * 7 + 7), ([], 11)])
def test_mlp_macs(widths: list[int], macs: int) -> None:
    assert Policy("mlp", LAYOUT, widths=widths).macs == macs


@pytest.mark.parametrize("rule", [*RULES, "random"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_has_the_shapes_of_stable_baselines3(rule: str, deterministic: bool) -> None:
    policy, rows = make_policy(rule, LAYOUT), observations(5)
    state = None if rule == "lstm" else object()
    batch, passed = policy.predict(rows, state, np.ones(5, bool), deterministic)
    one, _ = policy.predict(rows[0], deterministic=deterministic)
    assert passed is state or rule == "lstm"
    assert (batch.shape, one.shape) == ((5,), ())
    assert batch.dtype == one.dtype == np.int64
    assert set(batch.tolist()) <= {0, 1}


@pytest.mark.parametrize("rule", RULES)
def test_one_row_and_a_batch_agree(rule: str) -> None:
    policy, rows = make_policy(rule, LAYOUT), observations(12)
    assert policy.predict(rows)[0].tolist() == [int(policy.predict(row)[0]) for row in rows]


def test_predict_draws_only_when_asked() -> None:
    policy = Policy("mlp", LAYOUT, widths=[])
    for parameter in policy.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        list(policy.parameters())[-1].fill_(math.log(3))  # RUN with probability 3/4
    rows = observations(4000)
    assert policy.predict(rows)[0].all()
    assert policy.predict(rows, deterministic=False)[0].mean() == pytest.approx(0.75, abs=0.03)


def test_draws_follow_from_the_seed_alone() -> None:
    rows = observations(50)
    drawn = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(torch.seed())  # whatever the global state
        policy = Policy("random", LAYOUT, rate=0.5, seed=seed)
        drawn[name] = [*policy.predict(rows)[0], *policy.predict(rows, deterministic=False)[0]]
    assert drawn["first"] == drawn["again"] != drawn["other"]


def test_a_certain_rule_leaves_nothing_to_draw() -> None:
    rows = torch.cat([observation(unit) for unit in range(UNITS)]).numpy()
    for rule in ("mask", "early-exit"):
        policy = make_policy(rule, LAYOUT)
        for _ in range(20):
            assert policy.predict(rows, deterministic=False)[0].tolist() == policy.predict(rows)[0].tolist()


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        ("early-exti", {}, "unknown rule 'early-exti': .*mlp.*did you mean 'early-exit'"),
        ("mask", {"keep": [True]}, "keep: expected 4 truth values, one per unit, got 1"),
        ("mask", {"keep": "runs"}, "keep: expected truth values, got 'runs'"),
        ("random", {"rate": 1.5}, r"rate: expected a probability in \[0, 1\], got 1.5"),
        ("random", {"rate": math.nan}, r"rate: expected a probability in \[0, 1\], got nan"),
        ("early-exit", {"threshold": -0.1}, "threshold: expected numbers of at least 0 that do not rise, got -0.1"),
        ("early-exit", {"threshold": math.nan}, "threshold: expected numbers of at least 0 that do not rise, got nan"),
        ("early-exit", {"threshold": [0.9, 0.8, 0.85, 0.7]}, "expected numbers of at least 0 that do not rise, got"),
        ("early-exit", {"threshold": [0.9, 0.8]}, "threshold: expected a number, or one for each of 4 units, got"),
        ("mlp", {"widths": [8, 0]}, r"widths: expected positive integers, got \[8, 0\]"),
        ("mlp", {"widths": [-8]}, r"widths: expected positive integers, got \[-8\]"),
        ("mlp", {"widths": "88"}, "widths: expected positive integers, got '88'"),
    ],
)
def test_bad_arguments_are_refused(unchecked: None, rule: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(rule, LAYOUT, **arguments)


def test_early_exit_needs_the_probabilities() -> None:
    layout = ObservationLayout("confidence", num_classes=3, num_units=UNITS, embed_dim=8, num_prefix_tokens=1)
    with pytest.raises(ValueError, match=r'observation: expected "belief" or "tokens", .* got \'confidence\''):
        Policy("early-exit", layout, threshold=0.5)


def test_arguments_of_another_rule_are_refused(unchecked: None) -> None:
    with pytest.raises(TypeError, match="threshold"):
        Policy("mask", LAYOUT, threshold=0.5)


def fixed_masks() -> dict[str, tuple[Policy, list[bool]]]:
    return {
        "run_all": (baselines.run_all(TINY), [True] * 4),
        "skip_all": (baselines.skip_all(TINY), [False] * 4),
        "first 1": (baselines.first_k(TINY, 1), [True, False, False, False]),
        "first 3": (baselines.first_k(TINY, 3), [True, True, True, False]),
        "fixed": (baselines.fixed_mask(TINY, [False, True, True, False]), [False, True, True, False]),
    }


@pytest.mark.parametrize("name", fixed_masks())
def test_static_baselines_in_the_environment(name: str) -> None:
    """What `plan` says up front is what `predict` does step by step."""
    policy, keep = fixed_masks()[name]
    core = roll_out(policy, IMAGES)
    assert core.keep_mask.tolist() == [keep] * len(IMAGES)
    assert np.array_equal(core.keep_mask, plan_of(policy, len(IMAGES)).numpy())


def test_random_skip_in_the_environment() -> None:
    keep_mask = roll_out(baselines.random_skip(TINY, 0.25), [0] * 1000).keep_mask
    assert keep_mask[:, 0].all()
    assert keep_mask[:, 1:].mean(0).tolist() == pytest.approx([0.25] * 3, abs=0.055)  # 4 standard errors


def test_early_exit_in_the_environment() -> None:
    """Unit u > 0 runs where the head was not confident after any prefix of 1 to u units."""
    keep_mask = roll_out(baselines.early_exit(TINY, 0.6), IMAGES).keep_mask
    backbone, expected = load_backbone("tiny-vit4"), []
    with torch.no_grad():
        tokens = backbone.embed(load_dataset("tiny-digits", "test").images[: len(IMAGES)])
        unsure = torch.ones(len(IMAGES), dtype=torch.bool)
        for unit in range(4):
            expected.append(unsure.numpy())
            tokens = backbone.run_block(unit, tokens)
            unsure = unsure & (backbone.classify(tokens).softmax(1).amax(1) < 0.6)
    assert np.array_equal(keep_mask, np.stack(expected, 1))
    assert len(set(keep_mask.sum(1))) > 2


@pytest.mark.parametrize("k", [-1, 5])
def test_first_k_has_bounds(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k: expected 0\.\.4, got {k}"):
        baselines.first_k(TINY, k)


def test_a_fixed_mask_has_one_value_per_unit() -> None:
    with pytest.raises(ValueError, match="keep: expected 4 truth values, one per unit, got 5"):
        baselines.fixed_mask(TINY, [True] * 5)


def test_the_memory_is_carried_within_an_episode_only() -> None:
    """A state carried on gives what the torch cell gives step by step; a new episode begins as the first one did."""
    policy, rows = make_policy("lstm", LAYOUT), observations(30)
    rule: Any = policy.rule
    first, state = policy.predict(rows)
    with torch.no_grad():
        hidden = rule.cell(torch.from_numpy(rows), rule.cell(torch.from_numpy(rows)))[0]
        expected = rule.output(hidden)[:, 0] > 0
    second, _ = policy.predict(rows, state, np.zeros(30, bool))
    assert second.tolist() == expected.long().tolist() != first.tolist()
    assert policy.predict(rows, state, np.ones(30, bool))[0].tolist() == first.tolist()


def test_a_plan_is_one_path_of_the_codebook() -> None:
    codebook = [[True, False, False, True], [True, True, True, True], [True, False, True, False]]
    policy = Policy("plan", LAYOUT, widths=[8], paths=codebook)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(1))
    rows = observations(50)
    actions, _ = policy.predict(rows)
    scores = policy.rule(torch.from_numpy(rows)).argmax(1)
    assert actions.tolist() == [[int(kept) for kept in codebook[score]] for score in scores]
    assert len(set(scores.tolist())) == 3
    assert policy.predict(rows[0])[0].shape == (UNITS,)


def test_a_plan_without_a_codebook_decides_each_unit() -> None:
    policy, rows = make_policy("plan", LAYOUT), observations(20)
    with torch.no_grad():
        expected = policy.rule(torch.from_numpy(rows)) > 0
    assert policy.predict(rows)[0].tolist() == expected.long().tolist()
    assert (policy.look_after, make_policy("mlp", LAYOUT).look_after) == (1, 0)


@pytest.mark.parametrize("rule", ["mlp", "lstm"])
def test_leaning_shifts_the_log_odds(rule: str) -> None:
    policy, rows = make_policy(rule, LAYOUT), torch.from_numpy(observations(9))
    with torch.no_grad():
        before = policy.log_odds(rows)[0]
        policy.lean(1.5)
        policy.lean(-0.5)
        torch.testing.assert_close(policy.log_odds(rows)[0], before + 1)


def test_leaning_a_codebook_favours_longer_paths() -> None:
    policy = Policy("plan", LAYOUT, widths=[8], paths=[[True, False, False, False], [True, True, True, True]])
    rows = observations(40)
    policy.lean(-20.0)
    assert (policy.predict(rows)[0].sum(1) == 1).all()
    policy.lean(40.0)
    assert (policy.predict(rows)[0].sum(1) == 4).all()


def test_only_learnt_rules_lean() -> None:
    with pytest.raises(ValueError, match="policy: expected a learnt rule to lean, got 'early-exit'"):
        make_policy("early-exit", LAYOUT).lean(1.0)
