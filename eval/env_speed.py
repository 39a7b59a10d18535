"""How fast the environment is: steps/s of its faces, and what they cost on top of the blocks that must be computed.

python -m vitskip.eval.env_speed [--json PATH]
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from ..agents.run_directory import versions
from ..backbone import load_backbone
from ..backbone.allocator import keep_buffers
from ..backbone.json_files import write_json
from ..envs.config import EnvConfig
from ..envs.sb3 import make_sb3_env

ENV_ID = "ViTSkip-v0"
NUM_ENVS = (1, 16, 256, 1024)
RUN_RATE = 0.5
EPISODES = 4  # per round; a round of each contestant, then the next round
ROUNDS = 9  # the first third warms up


def measure_env_speed(num_envs: int, arguments: dict[str, Any]) -> dict[str, float]:
    """Steps/s at one number of environments, contestants in turn, medians over rounds.

    Args:
        num_envs: images side by side.
        arguments: of the environment.

    Returns:
        steps/s of `native` (vector face), `sb3`, `blocks` (the same block calls on as many rows, alone), and `sync`
        (SyncVectorEnv of single environments; one episode only, it is slow).
    """
    native = gym.make_vec(ENV_ID, num_envs=num_envs, **arguments)
    venv = make_sb3_env(ENV_ID, num_envs=num_envs, **arguments)
    depth = venv.core.num_units
    actions = np.random.default_rng(0).random((EPISODES * depth, num_envs)) < RUN_RATE
    contestants: dict[str, Callable[[], None]] = {
        "native": lambda: _roll(native.step, actions),
        "sb3": lambda: _roll(venv.step, actions),
        "blocks": _block_calls(EnvConfig.from_arguments(arguments).backbone, actions),
    }
    native.reset(seed=0)
    venv.reset()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - start)
    speeds = {name: actions.size / float(np.median(times[ROUNDS // 3 :])) for name, times in seconds.items()}
    return {**speeds, "sync": _measure_sync(num_envs, actions[: depth + 1], arguments)}


def _measure_sync(num_envs: int, actions: NDArray[np.bool_], arguments: dict[str, Any]) -> float:
    """Steps/s of `SyncVectorEnv`, its first step not counted."""
    sync = gym.make_vec(ENV_ID, num_envs=num_envs, vectorization_mode="sync", **arguments)
    sync.reset(seed=0)
    _roll(sync.step, actions[:1])
    start = time.perf_counter()
    _roll(sync.step, actions[1:])
    return actions[1:].size / (time.perf_counter() - start)


def measure_single_env(arguments: dict[str, Any], seconds: float = 3.0) -> float:
    """Steps/s of `gym.make`, resets included."""
    env = gym.make(ENV_ID, **arguments)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        terminated = env.step(np.int64(rng.random() < RUN_RATE))[2]
        steps += 1
        if terminated:
            env.reset()
    return steps / (time.perf_counter() - start)


def _roll(step: Callable[[NDArray[np.int64]], Any], actions: NDArray[np.bool_]) -> None:
    for row in actions.astype(np.int64):
        step(row)


def _block_calls(backbone_name: str, actions: NDArray[np.bool_]) -> Callable[[], None]:
    """The blocks of a roll-out alone: the same number of rows each, on tokens that lie ready."""
    backbone = load_backbone(backbone_name)
    tokens = torch.randn(actions.shape[1], backbone.num_tokens, backbone.embed_dim)
    rows: list[Tensor] = [tokens[: int(row.sum())].clone() for row in actions]

    @torch.no_grad()
    def run() -> None:
        for step, active in enumerate(rows):
            if len(active):
                backbone.run_block(step % backbone.depth, active)

    return run


def main(num_envs: tuple[int, ...] = NUM_ENVS, json: Path | None = None) -> None:
    """Print the table of environment speeds.

    Args:
        num_envs: numbers of environments to measure.
        json: also write the numbers here.
    """
    arguments: dict[str, Any] = {"split": "validation"}
    single = measure_single_env(arguments)
    progress = tqdm(num_envs, desc="environment", leave=False, disable=None)
    rows = {count: measure_env_speed(count, arguments) for count in progress}
    table = Table(title=f"environment steps/s, {torch.get_num_threads()} threads; single environment: {single:,.0f}")
    for heading in (
        "environments",
        "SyncVectorEnv",
        "native",
        "SB3",
        "blocks alone",
        "native / blocks",
        "native / SB3",
    ):
        table.add_column(heading, justify="right")
    for count, speeds in rows.items():
        cells = [f"{speeds[name]:,.0f}" for name in ("sync", "native", "sb3", "blocks")]
        ratios = (speeds["native"] / speeds["blocks"], speeds["native"] / speeds["sb3"])
        table.add_row(str(count), *cells, *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    if json is not None:
        result = {"single": single, "vector": {str(count): speeds for count, speeds in rows.items()}}
        write_json(json, {"threads": torch.get_num_threads(), "versions": versions(), "steps_per_s": result})


if __name__ == "__main__":
    keep_buffers()
    tyro.cli(main)
