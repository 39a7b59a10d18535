"""How fast agents learn, where the time goes, and what the cache of visited states is worth.

python -m vitskip.eval.learning_speed [--algorithms a2c ppo reinforce] [--device cuda] [--json PATH]

For each algorithm two agents take turns, one rollout and one update each: the environment of one computes every state,
that of the other keeps the states it has visited.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from tqdm import tqdm

from ..agents.algorithms import make_agent
from ..agents.checkpoint import get_random, set_random
from ..agents.run_directory import versions
from ..backbone.allocator import keep_buffers
from ..backbone.datasets import validation_splits
from ..backbone.json_files import write_json
from ..envs import EnvConfig, SkipCore, SkipVectorEnv, make_sb3_env
from ..envs.sb3 import SkipVecEnv

PARTS = ("environment", "inference", "update")
JUDGED = 4_000  # of them, at most
ROUNDS, EPISODES = 9, 2  # of rollouts alone: a third of the rounds warms up; episodes of a round


class Clock:
    """Wall time by part [s]; waits for the GPU at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part."""
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class ClockedVecEnv(VecEnvWrapper):
    """Times the steps as the part "environment"."""

    def __init__(self, venv: SkipVecEnv) -> None:
        super().__init__(venv)
        self.core, self.clock = venv.core, Clock(venv.core.device)

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        with self.clock("environment"):
            return self.venv.step_wait()


@dataclass(frozen=True)
class Moment:
    """Where a contestant stands, counted from the start.

    Attributes:
        timesteps: environment steps.
        seconds: of each of `PARTS`.
        held_out: mean return of the likeliest actions on held-out images; NaN where it was not looked at.
    """

    timesteps: int
    seconds: dict[str, float]
    held_out: float


@dataclass
class Contestant:
    """One agent that learns in one environment, with random numbers of its own: equal ones learn the same.

    Attributes:
        agent: on-policy.
        venv: its environment.
        total_timesteps: how long it will learn.
        moments: after each rollout and update.
    """

    agent: OnPolicyAlgorithm
    venv: ClockedVecEnv
    total_timesteps: int
    moments: list[Moment] = field(default_factory=list)

    @classmethod
    def make(cls, algorithm: str, config: EnvConfig, *, num_envs: int, total_timesteps: int, seed: int) -> "Contestant":
        """An agent by name; ValueError for one that does not learn from whole rollouts."""
        core = SkipCore(config.load_backbone(), config.load_dataset(), config, num_envs)
        venv = ClockedVecEnv(SkipVecEnv(core, seed=seed))
        agent = make_agent(algorithm, venv, seed=seed, device=config.device)
        if not isinstance(agent, OnPolicyAlgorithm):
            raise ValueError(f"algorithms: expected on-policy ones, got {algorithm!r}")
        return cls(agent, venv, total_timesteps)

    def __post_init__(self) -> None:
        _, self._callback = self.agent._setup_learn(self.total_timesteps)
        self._random = get_random(self.agent)

    def learn_once(self, judge: Callable[[OnPolicyAlgorithm], float] | None) -> None:
        """One rollout and one update, as in SB3's `learn`, timed apart; then perhaps a look at held-out images."""
        agent, clock = self.agent, self.venv.clock
        assert agent.env is not None
        set_random(agent, *self._random)
        with clock("rollout"):
            agent.collect_rollouts(agent.env, self._callback, agent.rollout_buffer, agent.n_steps)
        agent._update_current_progress_remaining(agent.num_timesteps, self.total_timesteps)
        with clock("update"):
            agent.train()
        self._random = get_random(agent)
        environment = clock.seconds["environment"]
        times = (environment, clock.seconds["rollout"] - environment, clock.seconds["update"])
        held_out = judge(agent) if judge else np.nan
        self.moments.append(Moment(agent.num_timesteps, dict(zip(PARTS, times, strict=True)), held_out))

    def summary(self, goal: float) -> dict[str, Any]:
        """JSON values: microseconds per step of each part, in all and in the last tenth; seconds to the goal."""
        last, late = self.moments[-1], self._before_the_last_tenth()
        steps, late_steps = last.timesteps, last.timesteps - late.timesteps
        cache = self.venv.core.prefix_cache
        return {
            "steps_per_s": steps / sum(last.seconds.values()),
            "us": {part: 1e6 * last.seconds[part] / steps for part in PARTS},
            "late_us": {part: 1e6 * (last.seconds[part] - late.seconds[part]) / late_steps for part in PARTS},
            "seconds_to_goal": seconds_to(self.moments, goal),
            "held_out": [[at.timesteps, at.held_out] for at in self.moments if not math.isnan(at.held_out)],
            "known": cache.hits / cache.visits if cache else None,
            "megabytes": cache.nbytes / 1e6 if cache else None,
        }

    def _before_the_last_tenth(self) -> Moment:
        """The start where there is a single rollout."""
        before = self.moments[: len(self.moments) * 9 // 10]
        return before[-1] if before else Moment(0, dict.fromkeys(PARTS, 0.0), np.nan)


def seconds_to(moments: Sequence[Moment], goal: float) -> float | None:
    """Time until a look first showed a held-out return of at least `goal`; None if none did."""
    return next((sum(moment.seconds.values()) for moment in moments if moment.held_out >= goal), None)


def make_judge(config: EnvConfig) -> Callable[[OnPolicyAlgorithm], float]:
    """Gives an agent's mean return on validation images that it does not learn on, by its likeliest actions.

    Of one that learns on all of those, on test images: nothing is chosen by it.
    """
    config = replace(config, split="test" if config.split == "validation" else validation_splits(config.split)[1])
    dataset = config.load_dataset()
    judged = np.linspace(0, len(dataset) - 1, min(len(dataset), JUDGED)).astype(np.int64)
    core = SkipCore(config.load_backbone(), dataset, config, len(judged))

    def judge(agent: OnPolicyAlgorithm) -> float:
        core.reset(np.arange(core.num_envs), judged)
        total = 0.0
        while not core.ended.all():
            actions, _ = agent.predict(core.observe().cpu().numpy(), deterministic=True)
            total += float(core.step(actions).mean())
        return total

    return judge


def race(
    contestants: Sequence[Contestant], judge: Callable[[OnPolicyAlgorithm], float], description: str, looks: int = 40
) -> None:
    """Let all learn to their end, in turns of one rollout and update; judge them so many times, outside the clock."""
    total, looked = contestants[0].total_timesteps, 0
    with tqdm(total=total, desc=description, leave=False, disable=None) as progress:
        while (timesteps := contestants[0].agent.num_timesteps) < total:
            look = timesteps * looks >= total * looked
            looked += look
            for contestant in contestants:
                contestant.learn_once(judge if look else None)
            progress.update(contestants[0].agent.num_timesteps - timesteps)


def measure_round_trip(num_envs: int, config: EnvConfig, seed: int = 0) -> dict[str, float]:
    """Steps/s of rollouts by an untrained policy on the environment's device.

    Returns:
        `sb3`: through `SkipVecEnv`, observations and actions as NumPy arrays on the host, as SB3 exchanges them;
        `torch`: through `SkipVectorEnv` with `output="torch"`, observations and actions as tensors on the device.
    """
    arguments = config.arguments()
    venv = make_sb3_env(num_envs=num_envs, seed=seed, **arguments)
    native = SkipVectorEnv(num_envs, output="torch", **arguments)
    policy = make_agent("a2c", venv, seed=seed, device=config.device).policy.eval()
    steps, clock = EPISODES * venv.core.num_units, Clock(venv.core.device)
    host, device = venv.reset(), native.reset(seed=seed)[0]
    rates: dict[str, list[float]] = {"sb3": [], "torch": []}
    for _ in range(ROUNDS):
        clock.seconds.clear()
        with torch.no_grad(), clock("sb3"):
            for _ in range(steps):
                host = venv.step(policy(torch.as_tensor(host, device=policy.device))[0].cpu().numpy())[0]
        with torch.no_grad(), clock("torch"):
            for _ in range(steps):
                device = native.step(policy(device)[0])[0]
        for name, column in rates.items():
            column.append(steps * num_envs / clock.seconds[name])
    return {name: float(np.median(column[ROUNDS // 3 :])) for name, column in rates.items()}


def measure_known_states(num_envs: int, config: EnvConfig, seed: int = 0) -> dict[str, float]:
    """Environment steps/s of episodes that come again and again, by actions drawn once: the most a cache can give.

    Returns:
        `recomputing`: without a cache; `cached`: with one that has seen them before; `known`: share of the states
        that this one needed not compute, 1 unless it is too small for all of them.
    """
    contestants = {
        "recomputing": make_sb3_env(num_envs=num_envs, **replace(config, prefix_cache=0.0).arguments()),
        "cached": make_sb3_env(num_envs=num_envs, **config.arguments()),
    }
    core = contestants["cached"].core
    assert core.prefix_cache is not None
    cache, clock, rates = core.prefix_cache, Clock(core.device), defaultdict[str, list[float]](list)
    steps = core.num_units
    actions = np.random.default_rng(seed).integers(2, size=(steps, num_envs))
    for played in range(ROUNDS):
        if played == ROUNDS // 3:
            cache.visits = cache.hits = 0
        for name, venv in contestants.items():
            venv.seed(seed)
            venv.reset()
            clock.seconds.clear()
            with clock(name):
                for row in actions:
                    venv.step(row)
            rates[name].append(steps * num_envs / clock.seconds[name])
    medians = {name: float(np.median(column[ROUNDS // 3 :])) for name, column in rates.items()}
    return {**medians, "known": cache.hits / cache.visits}


def main(
    algorithms: tuple[str, ...] = ("a2c", "ppo", "reinforce"),
    num_envs: int = 256,
    total_timesteps: int = 2_000_000,
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = EnvConfig(prefix_cache=1500.0),  # noqa: B008 - frozen
    goal: float = 0.89,
    looks: int = 40,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Print what each algorithm's steps cost, with and without the cache.

    Args:
        algorithms: on-policy ones by name.
        num_envs: images side by side.
        total_timesteps: of each agent.
        env: environment arguments; `prefix_cache` is that of the cached one.
        goal: held-out return to which the time is told.
        looks: at held-out images, on the way.
        seed: of images, weights and sampling.
        json: also write the numbers here.

    Raises:
        ValueError: if the cached environment would have no memory.
    """
    if not env.prefix_cache:
        raise ValueError("prefix_cache: expected megabytes for the environment that keeps states, got 0")
    configs = {"recomputing": replace(env, prefix_cache=0.0), "cached": env}
    judge, console = make_judge(configs["recomputing"]), Console(width=120)
    learning: dict[str, dict[str, Any]] = {}
    for algorithm in algorithms:
        settings: dict[str, Any] = {"num_envs": num_envs, "total_timesteps": total_timesteps, "seed": seed}
        contestants = {name: Contestant.make(algorithm, config, **settings) for name, config in configs.items()}
        race(list(contestants.values()), judge, algorithm, looks)
        learning[algorithm] = {name: contestant.summary(goal) for name, contestant in contestants.items()}
    round_trip = {name: measure_round_trip(num_envs, config, seed) for name, config in configs.items()}
    known_states = measure_known_states(num_envs, env, seed)
    console.print(learning_table(learning, goal))
    ratio = known_states["cached"] / known_states["recomputing"]
    known = f"{100 * known_states['known']:.0f}% of the states known"
    console.print(f"environment alone, {known}: {ratio:.1f} times as many steps/s as recomputing")
    for name, rates in round_trip.items():
        ratio = rates["torch"] / rates["sb3"]
        console.print(f"rollouts, {name}: with tensors on {env.device} {ratio:.2f} times as many steps/s as SB3's")
    if json is not None:
        settings = {
            "num_envs": num_envs,
            "total_timesteps": total_timesteps,
            "goal": goal,
            "looks": looks,
            "seed": seed,
        }
        settings |= {"env": env.arguments(), "threads": torch.get_num_threads()}
        results = {"learning": learning, "known_states": known_states, "round_trip": round_trip}
        write_json(json, {"settings": settings, "versions": versions(), **results})


def learning_table(learning: dict[str, dict[str, dict[str, Any]]], goal: float) -> Table:
    """A row for each contestant."""
    table = Table(title="microseconds per environment step (in the last tenth of the training)")
    for heading in ("algorithm", "states", *PARTS, "steps/s", "known [%]", f"s to {goal:g}", "held out"):
        table.add_column(heading, justify="left" if heading in ("algorithm", "states") else "right")
    for algorithm, summaries in learning.items():
        for name, summary in summaries.items():
            to_goal, known = summary["seconds_to_goal"], summary["known"]
            table.add_row(
                algorithm,
                name,
                *(f"{summary['us'][part]:.1f} ({summary['late_us'][part]:.1f})" for part in PARTS),
                f"{summary['steps_per_s']:,.0f}",
                "" if known is None else f"{100 * known:.1f}",
                "never" if to_goal is None else f"{to_goal:.0f}",
                f"{summary['held_out'][-1][1]:.4f}",
            )
    return table


if __name__ == "__main__":
    keep_buffers()
    tyro.cli(main)
