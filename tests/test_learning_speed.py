"""The benchmark of learning: its parts add up, its contestants learn alike, and its looks cost no time."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import DEPTH, TINY

from vitskip.agents import algorithms
from vitskip.backbone import load_dataset
from vitskip.backbone.datasets import Split
from vitskip.envs import EnvConfig
from vitskip.eval import learning_speed
from vitskip.eval.learning_speed import (
    Clock,
    Contestant,
    Moment,
    make_judge,
    measure_known_states,
    measure_round_trip,
    race,
    seconds_to,
)

CONFIG = EnvConfig(**TINY)
STEPS = 8 * DEPTH * 6


def contestant(algorithm: str = "a2c", config: EnvConfig = CONFIG) -> Contestant:
    return Contestant.make(algorithm, config, num_envs=8, total_timesteps=STEPS, seed=0)


def test_the_clock_adds_up_by_part() -> None:
    clock = Clock(torch.device("cpu"))
    for part in ("one", "other", "one"):
        with clock(part):
            time.sleep(0.02)
    assert 0.04 <= clock.seconds["one"] < 0.2
    assert clock.seconds["other"] >= 0.02


def test_a_cache_changes_the_time_and_nothing_else() -> None:
    """Both agents take the same number of steps, look as often, and end with the same weights."""
    entries = [contestant(), contestant(config=EnvConfig(**TINY, prefix_cache=10.0))]
    race(entries, make_judge(CONFIG), "race")
    plain, cached = (entry.summary(goal=-9.0) for entry in entries)
    assert [entry.moments[-1].timesteps for entry in entries] == [STEPS, STEPS]
    assert plain["held_out"] == pytest.approx(np.array(cached["held_out"]))
    assert len(plain["held_out"]) == STEPS / (8 * DEPTH)
    states = zip(*(entry.agent.policy.state_dict().values() for entry in entries), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in states)
    assert plain["known"] is None
    assert 0 < cached["known"] < 1


def test_equal_contestants_draw_the_same_random_numbers() -> None:
    """PPO shuffles its minibatches by NumPy's global generator."""
    entries = [contestant("ppo"), contestant("ppo")]
    for entry in entries:
        vars(entry.agent)["batch_size"] = 16
    race(entries, make_judge(CONFIG), "race")
    states = zip(*(entry.agent.policy.state_dict().values() for entry in entries), strict=True)
    assert all(torch.equal(one, other) for one, other in states)


def test_a_single_rollout_has_a_last_tenth() -> None:
    entry = contestant("a2c")
    entry.learn_once(None)
    assert entry.summary(goal=0.0)["late_us"] == entry.summary(goal=0.0)["us"]


def test_the_parts_are_all_of_it() -> None:
    entry = contestant("reinforce")
    start = time.perf_counter()
    race([entry], lambda agent: 0.0, "race")
    elapsed = time.perf_counter() - start
    summary = entry.summary(goal=1.0)
    total = sum(summary["us"].values()) * STEPS / 1e6
    assert min(summary["us"].values()) > 0
    assert 0.5 * elapsed < total <= elapsed
    assert summary["steps_per_s"] == pytest.approx(STEPS / total)
    assert summary["seconds_to_goal"] is None


def test_looking_is_not_learning_time() -> None:
    entry = contestant()
    entry.learn_once(lambda agent: time.sleep(0.5) or 0.0)
    assert sum(entry.moments[0].seconds.values()) < 0.4


def test_the_time_to_a_goal() -> None:
    seconds = dict.fromkeys(learning_speed.PARTS, 1.0)
    moments = [Moment(4, seconds, 0.2), Moment(8, {**seconds, "update": 3.0}, np.nan), Moment(12, seconds, 0.9)]
    assert seconds_to(moments, 0.1) == 3
    assert seconds_to(moments, 0.9) == 3
    assert seconds_to(moments[:2], 0.9) is None


@pytest.mark.parametrize(
    ("learnt", "judged"),
    [("train", "validation"), ("validation-even", "validation-odd"), ("validation", "test")],
)
def test_the_judge_follows_the_likeliest_actions_on_new_images(learnt: Split, judged: Split) -> None:
    """An agent that never runs a block pays nothing and is judged by the head on the embedded image."""
    entry = contestant()
    net: Any = entry.agent.policy.action_net
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([1.0, 0.0]))
    vit, images = CONFIG.load_backbone(), load_dataset("tiny-digits", judged)
    with torch.no_grad():
        correct = vit.classify(vit.embed(images.images)).argmax(1) == images.labels
    assert make_judge(replace(CONFIG, split=learnt))(entry.agent) == pytest.approx(correct.float().mean().item())


def test_algorithms_without_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="algorithms: expected on-policy ones, got 'dqn'"):
        contestant("dqn")


def test_the_round_trip_gives_two_rates() -> None:
    rates = measure_round_trip(4, CONFIG)
    assert set(rates) == {"sb3", "torch"}
    assert min(rates.values()) > 0


@pytest.mark.parametrize(("megabytes", "known"), [(10.0, 1.0), (0.0001, 0.0)])
def test_episodes_that_come_again_are_known_where_there_is_room(megabytes: float, known: float) -> None:
    """Without room a state is computed once for the rows that reach it together, so a few are still shared."""
    rates = measure_known_states(4, replace(CONFIG, prefix_cache=megabytes))
    assert rates["known"] == pytest.approx(known, abs=0.2 * (1 - known))
    assert min(rates["recomputing"], rates["cached"]) > 0


def test_without_a_cache_there_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="prefix_cache: expected megabytes"):
        learning_speed.main(("reinforce",), env=CONFIG)


def test_the_command_writes_its_numbers(tmp_path: Path) -> None:
    file, config = tmp_path / "speed.json", replace(CONFIG, prefix_cache=10.0)
    learning_speed.main(("reinforce",), num_envs=8, total_timesteps=STEPS, env=config, goal=-9.0, json=file)
    values = json.loads(file.read_text())
    assert set(values["learning"]["reinforce"]) == {"recomputing", "cached"}
    assert (values["settings"]["num_envs"], values["settings"]["env"]["prefix_cache"]) == (8, 10)
    assert values["learning"]["reinforce"]["cached"]["seconds_to_goal"] > 0
    assert values["known_states"]["known"] == 1
    assert algorithms.ALGORITHMS["reinforce"].num_envs != 8
