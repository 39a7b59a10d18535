"""Every command through a subprocess: help, a tiny run of each, and wrong arguments."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import toys  # noqa: F401 - registers the tiny names

from vitskip import agent_cli
from vitskip.agents import DynamicViT
from vitskip.agents.run_directory import read
from vitskip.agents.training import TrainConfig
from vitskip.backbone import load_backbone, load_dataset
from vitskip.eval.measurement import measure
from vitskip.eval.static_networks import run_whole

COMMANDS = (
    "download",
    "pretrain",
    "depth",
    "latency",
    "train",
    "distill",
    "evaluate",
    "benchmark",
    "compare",
    "report",
    "sweep",
    "demo",
)
TINY = ["--backbone", "tiny-vit4", "--dataset", "tiny-digits"]
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
BATCH = '{"batch_size": 64}'
SMALL = ["--embed-dim", "8", "--depth", "2", "--patch-size", "16", "--epochs", "1", "--dataset", "small-digits"]
HALF = ["--action-unit", "half"]
NO_MASKS = ["--static-mask-images", "0"]

# name: arguments, and what the message must say. RUN, FILE and BROKEN stand for paths.
WRONG: dict[str, tuple[list[str], str]] = {
    "algorithm": (
        ["train", "RUN2", "--algorithm", "pppo", *TINY],
        "unknown algorithm 'pppo': expected one of a2c, dqn",
    ),
    "suggestion": (["train", "RUN2", "--algorithm", "pppo", *TINY], "did you mean 'ppo'"),
    "backbone": (["train", "RUN2", "--backbone", "tiny-vit5"], "unknown backbone 'tiny-vit5': expected one of"),
    "data set": (["depth", "--dataset", "didgits"], "unknown data set 'didgits': expected one of"),
    "data root": (["depth", *TINY, "--data-root", "RUN2"], "data_root: expected an existing folder"),
    "no JSON": (["train", "RUN2", *TINY, "--hyperparameters", "{"], "hyperparameters: expected a JSON object, got '{'"),
    "no object": (["train", "RUN2", *TINY, "--hyperparameters", "[1]"], "expected a JSON object, got '[1]'"),
    "hyperparameter": (["train", "RUN2", *TINY, "--hyperparameters", '{"gama": 1}'], "unknown hyperparameter 'gama'"),
    "n_steps": (
        ["train", "RUN2", *TINY, "--hyperparameters", '{"n_steps": 3}'],
        "n_steps: expected a multiple of the 4",
    ),
    "num_envs": (["train", "RUN2", *TINY, "--num-envs", "0"], "num_envs: expected"),
    "timesteps": (["train", "RUN2", *TINY, "--total-timesteps", "0"], "total_timesteps: expected at least 1, got 0"),
    "run is a file": (["train", "FILE", *TINY, "--num-envs", "8", "--hyperparameters", BATCH], "FILE"),
    "no run": (["evaluate", "RUN2"], "run directory: expected a folder with run.json"),
    "broken run": (["benchmark", "BROKEN"], "run.json: expected JSON, got"),
    "masks": (["evaluate", "RUN", "--static-mask-images", "-1"], "images: expected at least 1, got -1"),
    "rival": (["evaluate", "RUN", "--rival", "tiny-vit5"], "unknown backbone 'tiny-vit5': expected one of"),
    "batch size": (
        ["benchmark", "RUN", "--batch-sizes", "4", "0"],
        "batch_sizes: expected integers of at least 1, each once",
    ),
    "device": (["benchmark", "RUN", "--device", "gpu"], 'device: expected a PyTorch device such as "cpu"'),
    "classes": (["pretrain", "--out", "RUN2", "--dataset", "tiny-digits"], "train: expected at least 128 images"),
    "patch": (["pretrain", "--out", "RUN2", "--dataset", "small-digits", "--patch-size", "5"], "image_size: expected"),
    "no comparison": (["report", "RUN2"], "RUN2"),
    "no cells": (["report", "RUN"], "expected a folder of `vitskip compare` with finished cells, or its JSON file"),
    "sweep": (["sweep", "RUN2", *TINY, "--vary", '{"gama": [1]}'], "unknown hyperparameter 'gama'"),
    "n_steps 0": (["train", "RUN2", *TINY, "--hyperparameters", '{"n_steps": 0}'], "n_steps: expected a multiple"),
    "no number": (["train", "RUN2", *TINY, "--hyperparameters", '{"gamma": "x"}'], "gamma: expected a number, got 'x'"),
    "no such device": (["train", "RUN2", *TINY, "--device", "meta"], "device: expected one that works here"),
    "another run": (["train", "RUN", *TINY, "--seed", "4"], "expected a run with"),
    "over a run": (["distill", "RUN", "RUN"], "out: expected a folder without a run"),
    "weights over a run": (["pretrain", "--out", "RUN"], "out: expected a folder without a run"),
    "other heads": (["pretrain", "--out", "small", *SMALL, "--num-heads", "4"], "was made with other architecture"),
    "other start": (["pretrain", "--out", "small", "--start", "small", *SMALL[-4:]], "was made with other start"),
    "import": (["--import", "no_such_module", "depth"], "No module named 'no_such_module'"),
    "import of nothing": (["--import"], "--import: expected the name of a Python module"),
    "rival of a comparison": (
        ["compare", "RUN3", *TINY, "--algorithms", "a2c", "--at", "0.8", "--rival", "tiny-vit5"],
        "unknown backbone 'tiny-vit5'",
    ),
    "one setting of many": (
        ["train", "RUN", *TINY, "--cost-weight", "0.9", "--seed", "3", "--num-envs", "8", "--total-timesteps", "192"],
        "expected a run with",
    ),
    "not joint": (["train", "RUN2", *TINY, "--joint.rounds", "2"], "joint: expected --joint beside options of joint"),
    "architecture": (
        ["pretrain", "--out", "RUN2", "--start", "tiny-vit4", "--depth", "3"],
        "start: expected no architecture beside 'tiny-vit4'",
    ),
    "rounds": (
        ["train", "RUN2", *TINY, "--num-envs", "8", "--total-timesteps", "64", "--joint", "--joint.batch-size", "16"],
        "rounds: expected at most",
    ),
    "budget of a planner": (["distill", "RUN", "RUN2", "--budget", "1.2"], "budget: expected a share of the dense"),
    "demo": (["demo", "--out", "RUN2", "--scale", "0"], "scale: expected more than 0, got 0.0"),
}

# name: arguments, and what tyro's message, in a box of several lines, must name.
UNPARSABLE: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "pretrain"),
    "command": (["trian"], "train"),
    "option": (["train", "RUN2", "--sed", "1"], "--seed"),
    "value": (["train", "RUN2", "--seed", "x"], "x"),
    "positional": (["evaluate"], "run directory"),
    "reward": (["train", "RUN2", *TINY, "--reward", "corect"], "unknown reward 'corect': expected one of"),
    "cost weight": (["train", "RUN2", *TINY, "--cost-weight", "-1"], "cost_weight: expected a finite number"),
    "choice": (["depth", "--split", "train"], "validation"),
    "folder as a file": (["depth", *TINY, "--json", "RUN"], "expected a file to write, got the folder"),
    "file as a folder": (["depth", *TINY, "--json", "FILE/depth.json"], "expected a file to write, got"),
}


MINE = """
import toys, vitskip
from vitskip.backbone import load_backbone, load_dataset
vitskip.register_dataset("mine", lambda split, data_root: load_dataset("tiny-digits", split))
vitskip.register_backbone("mine", lambda: load_backbone("tiny-vit4"))
"""


@dataclass(frozen=True)
class Finished:
    """A command that has run."""

    code: Any
    out: str
    error: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli [1]")  # brackets are markup to rich
    (path / "FILE").write_text("")
    (path / "BROKEN").mkdir()
    (path / "mine.py").write_text(MINE)
    (path / "BROKEN" / "run.json").write_text("{")
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Finished]:
    """All command lines, one after the other in one subprocess."""
    timesteps = ["--num-envs", "8", "--total-timesteps", "192", "--hyperparameters", BATCH]
    rounds = ["--joint.rounds", "2", "--joint.batch-size", "16"]
    sizes = ["--batch-sizes", "1", "4", "--seconds", "0.01"]
    lines = {
        "version": ["--version"],
        "help": ["--help"],
        **{f"help {command}": [command, "--help"] for command in COMMANDS},
        "train": ["train", "RUN", *TINY, *timesteps, "--cost-weight", "0.2", "--seed", "3", "--json", "train.json"],
        "train again": ["train", "RUN", *TINY, *timesteps, "--cost-weight", "0.2", "--seed", "3"],
        "train too little": [
            "train",
            "DQN",
            *TINY,
            "--algorithm",
            "dqn",
            "--num-envs",
            "8",
            "--total-timesteps",
            "192",
        ],
        "evaluate": ["evaluate", "RUN", "--static-mask-images", "8", "--json", "evaluate.json"],
        "evaluate on validation": ["evaluate", "RUN", "--part", "validation", *NO_MASKS, "--json", "validation.json"],
        "evaluate without masks": ["evaluate", "RUN", *NO_MASKS],
        "evaluate beside others": ["evaluate", "RUN", "--rival", "tiny-vit4", "tiny-vit4", *NO_MASKS],
        "train jointly": ["train", "JOINT", *TINY, *timesteps, "--joint", *rounds],
        "evaluate joint": ["evaluate", "JOINT", *NO_MASKS, "--json", "joint.json"],
        "benchmark": ["benchmark", "RUN", *sizes, "--rival", "tiny-vit4", "--json", "benchmark.json"],
        "benchmark adapted": ["benchmark", "RUN", *sizes, "--adapt", "--json", "adapted.json"],
        "report": ["report", "benchmark.json", "adapted.json", "--out", "speed.md"],
        "pretrain": ["pretrain", "--out", "small", *SMALL, "--json", "pretrain.json"],
        "fine-tune": ["pretrain", "--out", "tuned", "--start", "small", *SMALL[-4:], "--skip", "half", *NO_MASKS],
        "depth of a folder": ["depth", "--backbone", "tuned", "--dataset", "small-digits"],
        "import": ["--import", "mine", "depth", "--dataset", "mine", "--backbone", "mine", *NO_MASKS],
        "latency": ["latency", *TINY, *HALF, "--rounds", "4", "--json", "latency.json"],
        "train by latency": ["train", "TIMED", *TINY, *timesteps, *HALF, "--cost", "latency:latency.json"],
        "depth": ["depth", *TINY, "--split", "validation", "--json", "depth.json"],
        **{f"wrong {name}": arguments for name, (arguments, _) in WRONG.items()},
        **{f"unparsable {name}": arguments for name, (arguments, _) in UNPARSABLE.items()},
    }
    names = ("RUN", "RUN2", "RUN3", "JOINT", "TIMED", "FILE", "BROKEN")
    absolute = [[str(folder / word) if word in names else word for word in line] for line in lines.values()]
    (folder / "lines.json").write_text(json.dumps(absolute))
    driver = Path(__file__).with_name("cli_driver.py")
    subprocess.run(
        [sys.executable, driver, "lines.json", "finished.json"], cwd=folder, env=ENVIRONMENT, check=True, timeout=200
    )
    results = json.loads((folder / "finished.json").read_text())
    return {name: Finished(*result) for name, result in zip(lines, results, strict=True)}


def check(result: Finished) -> str:
    """Standard output of a command that succeeded."""
    assert result.code == 0, result.error
    return result.out


def test_version(finished: dict[str, Finished]) -> None:
    assert check(finished["version"]).strip() == version("vitskip")


def test_help_lists_the_commands(finished: dict[str, Finished]) -> None:
    assert all(command in check(finished["help"]) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(finished: dict[str, Finished], command: str) -> None:
    text = check(finished[f"help {command}"])
    assert f"usage: vitskip {command}" in text
    assert "--json" in text or command == "download"
    assert "TODO" not in text and "__" not in text


def test_train(finished: dict[str, Finished], folder: Path) -> None:
    text = check(finished["train"])
    run = folder / "RUN"
    assert f"{run}: last rollout: timesteps 192, episode_return " in text
    assert f"curves: tensorboard --logdir {run}\n" in text
    assert json.loads((folder / "train.json").read_text()) == read(run).record
    train = read(run).record["train"]
    assert (train["seed"], train["algorithm"], train["env"]["cost_weight"]) == (3, "ppo", 0.2)


def test_what_was_not_learnt_is_told(finished: dict[str, Finished]) -> None:
    assert "was finished, nothing was trained" in check(finished["train again"])
    assert "was finished" not in finished["train"].out
    assert "dqn learns nothing in 192 steps: learning_starts is 20000" in check(finished["train too little"])


def test_evaluate(finished: dict[str, Finished], folder: Path) -> None:
    text = check(finished["evaluate"])
    summary = json.loads((folder / "evaluate.json").read_text())
    assert {"run", "versions", "net", "dense", "rivals", "net_minus"} <= set(summary)
    rivals = {"random skip", "first k", "best static mask", "early exit", "early exit, falling", "token merging"}
    assert set(summary["rivals"]) == rivals
    for name in ("run-all (dense)", "RUN", "against run-all [points]", *summary["rivals"]):
        assert name in text
    assert "early exit" in check(finished["evaluate without masks"])
    assert "best static" not in finished["evaluate without masks"].out
    assert "other nets" not in finished["evaluate without masks"].out
    assert "other nets" in check(finished["evaluate beside others"])


def test_a_jointly_trained_net_is_held_against_the_original_too(finished: dict[str, Finished], folder: Path) -> None:
    assert "original dense" in check(finished["evaluate joint"])
    assert "left out a dense network tuned as long" in finished["evaluate joint"].out
    assert "tuned as long" not in check(finished["evaluate"])
    assert "original dense" not in finished["evaluate"].out
    summary = json.loads((folder / "joint.json").read_text())
    original = load_backbone("tiny-vit4")
    expected = run_whole(original, load_dataset("tiny-digits", "test")).mean()
    assert summary["references"]["original dense"]["accuracy"] == expected
    assert set(summary["no_worse_by_half_a_point"]) == {"dense", "original dense"}


def test_an_original_that_is_gone_is_left_out(
    finished: dict[str, Finished], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitskip import cli

    check(finished["train jointly"])
    gone = Path(shutil.copytree(folder / "JOINT", folder / "GONE"))
    run = json.loads((gone / "run.json").read_text())
    architecture = {"patch_size": 16, "embed_dim": 16, "depth": 4, "num_heads": 2}
    run |= {"backbone": "moved/away", "original": "moved/away", "architecture": architecture}
    (gone / "run.json").write_text(json.dumps(run))
    cli.evaluate(gone, static_mask_images=0)
    text = capsys.readouterr().out
    assert "left out the original dense network: unknown backbone 'moved/away'" in text
    assert "run-all (dense)" in text and "early exit" in text


def test_evaluate_on_validation(finished: dict[str, Finished], folder: Path) -> None:
    assert "validation part" in check(finished["evaluate on validation"])
    judged = json.loads((folder / "validation.json").read_text())
    expected = measure(DynamicViT.load(folder / "RUN"), load_dataset("tiny-digits", "validation")).summary()
    assert judged["part"] == "validation" and judged["net"] == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    ("learnt", "part", "title"),
    [
        ("validation", "validation", "validation part, on which it learnt, equal compute"),
        ("validation-even", "validation-odd", "validation-odd part, equal compute"),
    ],
)
def test_validation_images_that_an_agent_learnt_on_are_avoided_or_named(
    finished: dict[str, Finished],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    learnt: str,
    part: str,
    title: str,
) -> None:
    from vitskip import cli

    check(finished["train"])
    run = Path(shutil.copytree(folder / "RUN", tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record["record"]["train"]["env"]["split"] = learnt
    (run / "run.json").write_text(json.dumps(record))
    cli.evaluate(run, static_mask_images=0, part="validation", json=tmp_path / "found.json")
    assert title in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    expected = measure(DynamicViT.load(run), load_dataset("tiny-digits", part))
    assert (found["part"], found["net"]["accuracy"]) == (part, expected.accuracy)


def test_benchmark(finished: dict[str, Finished], folder: Path) -> None:
    text = check(finished["benchmark"])
    summary = json.loads((folder / "benchmark.json").read_text())
    assert [row["batch_size"] for row in summary["sizes"]] == [1, 4]
    setting = {"run", "budget", "device", "versions", "threads"}
    assert setting | {"speed_up_geometric_mean", "speed_up_worst"} <= set(summary)
    assert "dense [images/s]" in text and "geo. mean" in text and "tiny-vit4" in text
    assert summary["adapted"] == {}
    text = check(finished["benchmark adapted"])
    adapted = json.loads((folder / "adapted.json").read_text())["adapted"]
    slow = [size for size, speed_up in adapted.items() if speed_up < 1]
    assert "1" in adapted and ("runs all blocks in batches of about " + ", ".join(slow) in text) == bool(slow)


def test_a_report_of_benchmarks(finished: dict[str, Finished], folder: Path) -> None:
    assert "speed-up over dense at batch" in check(finished["report"])
    lines = (folder / "speed.md").read_text().splitlines()[4:]
    assert [line.split("|")[1].strip() for line in lines] == [
        str(folder / "RUN"),
        "tiny-vit4",
        f"{folder / 'RUN'}, adapted",
    ]


def test_pretrain(finished: dict[str, Finished], folder: Path) -> None:
    text = check(finished["pretrain"])
    assert "accuracy under skipping" in text and "batches alone come at" in text
    card = json.loads((folder / "small" / "card.json").read_text())
    assert card == json.loads((folder / "pretrain.json").read_text())
    assert (card["architecture"]["depth"], card["dataset"], card["result"]["steps"]) == (2, "small-digits", 2)
    assert card["command"].startswith("vitskip pretrain --out small")
    assert set(card["test"]["accuracy"]) == {
        "random skip",
        "first k",
        "best static mask",
        "early exit",
        "early exit, falling",
    }
    assert (folder / "small" / "weights.safetensors").stat().st_size > 1000


def test_fine_tuning_goes_on_from_a_folder(finished: dict[str, Finished], folder: Path) -> None:
    check(finished["fine-tune"])
    first, second = (json.loads((folder / name / "card.json").read_text()) for name in ("small", "tuned"))
    assert second["architecture"] == first["architecture"]
    assert second["recipe"]["skip"] == "half" and "--start small" in second["command"]
    assert set(first["test"]["accuracy"]) - set(second["test"]["accuracy"]) == {"best static mask"}
    assert "accuracy under skipping" in check(finished["depth of a folder"])


def test_what_a_module_registers_is_known(finished: dict[str, Finished]) -> None:
    assert "accuracy of the first k blocks" in check(finished["import"])


def test_latency_is_a_price(finished: dict[str, Finished], folder: Path) -> None:
    assert "latency of each half-block, batches of 64 on cpu" in check(finished["latency"])
    table = json.loads((folder / "latency.json").read_text())
    assert (table["backbone"], table["action_unit"], len(table["seconds"])) == ("tiny-vit4", "half", 8)
    check(finished["train by latency"])
    record = json.loads((folder / "TIMED" / "run.json").read_text())["record"]
    assert record["train"]["env"]["cost"] == "latency:latency.json"


def test_depth(finished: dict[str, Finished], folder: Path) -> None:
    assert "accuracy of the first k blocks" in check(finished["depth"])
    profile = json.loads((folder / "depth.json").read_text())
    assert (profile["backbone"], profile["dataset"], profile["split"]) == ("tiny-vit4", "tiny-digits", "validation")
    assert len(profile["accuracy"]) == 5
    assert profile["rank_correlation"] is not None


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_explained_on_one_line(finished: dict[str, Finished], name: str) -> None:
    result, (_, message) = finished[f"wrong {name}"], WRONG[name]
    assert result.code == 2, result.error
    line = result.error.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in result.error
    assert not result.out


@pytest.mark.parametrize("name", UNPARSABLE)
def test_what_cannot_be_parsed_is_explained(finished: dict[str, Finished], name: str) -> None:
    result, (_, word) = finished[f"unparsable {name}"], UNPARSABLE[name]
    assert result.code == 2
    assert word in " ".join(result.error.split())
    assert "Traceback" not in result.error


def test_wrong_arguments_write_nothing(finished: dict[str, Finished], folder: Path) -> None:
    assert finished
    assert not list(folder.glob("RUN2*"))
    assert (folder / "FILE").read_text() == ""


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed `vitskip` itself."""
    path = Path(sys.executable).with_name("vitskip")
    return subprocess.run([path, *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)


def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitskip import cli

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tyro.extras.subcommand_cli_from_dict", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "go on from the last checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_installed_script_on_the_default_task(tmp_path: Path) -> None:
    assert script("evaluate", "missing", cwd=tmp_path).returncode == 2
    steps = ["--num-envs", "64", "--total-timesteps", "1536", "--hyperparameters", '{"batch_size": 512}']
    for arguments in (
        ["depth", "--json", "depth.json"],
        ["train", "run", *steps],
        ["evaluate", "run", "--static-mask-images", "4", "--json", "evaluate.json"],
        ["benchmark", "run", "--batch-sizes", "1", "8", "--seconds", "0.2", "--json", "benchmark.json"],
    ):
        result = script(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    accuracy = json.loads((tmp_path / "depth.json").read_text())["accuracy"]
    assert accuracy[12] > 0.8 and accuracy[0] < 0.3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_demo(tmp_path: Path) -> None:
    result = script("demo", "--out", "demo", "--scale", "0.03", "--json", "results.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "in points" in " ".join(result.stdout.split())
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["agents"]) == {"PPO at 50%", "PPO at 30%", "A2C at 50%", "A2C at 30%"}
    for picture in ("reward_curves", "accuracy_over_compute", "episodes"):
        assert (tmp_path / "demo" / f"{picture}.png").stat().st_size > 10_000


def test_what_an_algorithm_brings_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig("dynavit", env={"observation": "tokens", "reward": "kl"})
    agent_cli._tell_published("dynavit", config)
    assert "dynavit: as published, with cost_weight 3.0; other values" in capsys.readouterr().out
    agent_cli._tell_published("ppo", config)
    assert not capsys.readouterr().out
