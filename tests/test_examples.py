"""Every example through a subprocess with tiny settings; those of tools that are not installed are skipped."""

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import stable_baselines3
import toys

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text()
DEPTH = 12  # of the backbone that the files are written for
TINY = ("--backbone", "tiny-vit4", "--dataset", "tiny-digits", "--test-images", "8")
TINY_ZOO = ("--env-kwargs", "backbone:'tiny-vit4'", "dataset:'tiny-digits'")
SMALL = ("--num-envs", "4", "--num-episodes", "2", "--num-minibatches", "2")
ALGORITHMS = ("a2c", "dqn", "ppo", "trpo")
# The tiny names are registered first; then the script runs as if it were called.
START = "import runpy, sys, toys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run(folder: Path, *arguments: str | Path, timeout: int = 280) -> str:
    """Standard output of `python ARGUMENTS`, which must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def returns(text: str) -> dict[str, float]:
    """Number after "return", by what stands before it."""
    return {who.strip(): float(number) for who, number in re.findall(r"^(.*?): return (-?[\d.]+),", text, re.MULTILINE)}


def zoo_arguments(algorithm: str) -> list[str]:
    """The options that examples/README.md gives; `toys` registers the tiny names."""
    (options,) = re.findall(r"^ *python -m rl_zoo3\.train (.*)$", README, re.MULTILINE)
    arguments = options.replace("ppo", algorithm).replace("vitskip", "vitskip toys").split()
    return [str(ROOT / argument) if argument.endswith(".yml") else argument for argument in arguments]


def zoo_settings(algorithm: str) -> dict[str, Any]:
    """What the file holds for `ViTSkip-v0`."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((EXAMPLES / "rl_zoo" / f"{algorithm}.yml").read_text())["ViTSkip-v0"]


def test_cleanrl_style_ppo(tmp_path: Path) -> None:
    script = EXAMPLES / "cleanrl_ppo.py"
    text = run(tmp_path, "-c", START, script, *TINY, *SMALL, "--total-timesteps", "64", "--log-dir", "log")
    assert list(returns(text)) == ["32 steps", "64 steps", "PPO", "random skipping", "run all"]
    assert re.search(r"run all: return .*, 4\.00 blocks, 100\.0% of the MACs", text)
    assert len(list((tmp_path / "log").glob("events.*"))) == 1


@pytest.mark.slow  # a minute of one core
@pytest.mark.timeout(1800)
def test_cleanrl_style_ppo_learns_more_than_random_skipping(tmp_path: Path) -> None:
    text = run(tmp_path, EXAMPLES / "cleanrl_ppo.py", "--total-timesteps", "100000", timeout=1700)
    scores = returns(text)
    assert scores["PPO"] > scores["random skipping"] + 0.02
    assert scores["PPO"] > scores["run all"] + 0.02


def test_torchrl(tmp_path: Path) -> None:
    pytest.importorskip("torchrl")
    script = EXAMPLES / "torchrl_env.py"
    text = run(tmp_path, "-c", START, script, *TINY, *SMALL, "--total-timesteps", "64")
    assert list(returns(text)) == ["32 steps", "64 steps", "Test part, greedy decisions"]


@pytest.mark.filterwarnings("ignore")  # TorchRL's own
@pytest.mark.parametrize("arguments", [{}, {"num_envs": 3}, {"num_envs": 3, "autoreset_mode": "DISABLED"}])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_torchrl_finds_no_fault(arguments: dict[str, Any], output: str) -> None:
    torchrl = pytest.importorskip("torchrl.envs")
    make = functools.partial(gym.make_vec, output=output) if arguments else gym.make
    env = torchrl.GymWrapper(make("ViTSkip-v0", **toys.TINY, **arguments))
    torchrl.check_env_specs(env)
    rollout = env.rollout(3 * toys.DEPTH, break_when_any_done=False)
    ended = rollout["next", "done"][..., 0].reshape(-1, 3, toys.DEPTH)
    assert ended[..., -1].all() and not ended[..., :-1].any()
    depth = rollout["next", "observation"].reshape(-1, 3, toys.DEPTH, rollout["observation"].shape[-1])[..., -1, 13:17]
    assert (depth == 0).all()  # the last observation of an episode, not the first of the next


@pytest.mark.filterwarnings("ignore")
def test_torchrl_makes_it_by_its_id() -> None:
    """It tries arguments, and goes on without those that a TypeError names as unexpected."""
    torchrl = pytest.importorskip("torchrl.envs")
    torchrl.check_env_specs(torchrl.GymEnv("ViTSkip-v0", **toys.TINY))


def test_torchrl_reads_two_rewards() -> None:
    torchrl = pytest.importorskip("torchrl.envs")
    env = torchrl.GymWrapper(gym.make("mo-ViTSkip-v0", **toys.TINY))
    assert env.rollout(toys.DEPTH)["next", "reward"].shape == (toys.DEPTH, 2)


def test_mo_gymnasiums_snippet(tmp_path: Path) -> None:
    pytest.importorskip("mo_gymnasium")
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    text = run(tmp_path, "-c", snippet + "env.reset(seed=0)\nprint(env.step(1)[1])")
    assert float(text) == pytest.approx(-0.1 / DEPTH)


def test_there_is_a_file_for_each_algorithm() -> None:
    assert {path.stem for path in (EXAMPLES / "rl_zoo").glob("*.yml")} == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rl_zoos_files_name_arguments_of_their_algorithm(algorithm: str) -> None:
    settings = zoo_settings(algorithm)
    library = stable_baselines3 if algorithm != "trpo" else pytest.importorskip("sb3_contrib")
    known = inspect.signature(getattr(library, algorithm.upper())).parameters
    assert settings.keys() - known.keys() == {"n_envs", "n_timesteps"}
    assert settings["gamma"] == 1
    assert settings.get("n_steps", DEPTH) % DEPTH == 0
    assert settings["n_envs"] * settings.get("n_steps", 1) % settings.get("batch_size", 1) == 0 or algorithm == "dqn"


def test_rl_zoo_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    few = ("-n", "32", "-params", "n_envs:2", "n_steps:8", "batch_size:8", "--eval-freq", "16", "-f", "logs")
    text = run(tmp_path, "-m", "rl_zoo3.train", *zoo_arguments("ppo"), *few, *TINY_ZOO)
    assert "success_rate" in text and "Eval num_timesteps=32" in text
    assert len(list(tmp_path.glob("logs/ppo/ViTSkip-v0_1/*.monitor.csv"))) == 2
    assert (tmp_path / "logs/ppo/ViTSkip-v0_1/ViTSkip-v0.zip").is_file()


@pytest.mark.slow  # RL Zoo alone takes ten seconds to import
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rl_zoo_on_the_batched_environment(algorithm: str, tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    few = ("-n", "1000", "--eval-freq", "512", "--n-eval-envs", "3", "-f", "logs", "--log-interval", "1")
    text = run(tmp_path, EXAMPLES / "rl_zoo" / "train.py", *zoo_arguments(algorithm), *few, *TINY_ZOO)
    assert "success_rate" in text and "Eval num_timesteps=512" in text
    assert (tmp_path / "logs" / algorithm / "ViTSkip-v0_1" / "ViTSkip-v0.zip").is_file()
