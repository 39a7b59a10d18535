"""Run directories that are damaged, foreign or hostile: a clear error that names the file, and nothing is executed."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import interrupt_writes
from nets import make_net
from safetensors.torch import load_file, save_file
from torch import nn

from vitskip.agents import DynamicViT, run_directory
from vitskip.backbone.weights import load_weights, save_weights

WEIGHTS = pytest.mark.parametrize("file", ["backbone.safetensors", "policy.safetensors"])


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "intact"
    make_net().save(path, backbone_name="tiny-vit4", record={"seed": 3})
    return path


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Path:
    """A run directory to damage."""
    return Path(shutil.copytree(intact, tmp_path / "run"))


def change(run: Path, **values: Any) -> None:
    """Replace keys of run.json."""
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(run: Path, file: str, *parts: str, error: type[Exception] = ValueError) -> None:
    """Loading fails, and the message names the file and has these parts."""
    with pytest.raises(error) as caught:
        DynamicViT.load(run)
    for part in (str(run / file), *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read(intact: Path) -> None:
    run = run_directory.read(intact)
    assert (run.path, run.backbone, run.action_unit, run.observation) == (intact, "tiny-vit4", "block", "belief")
    assert (run.rule, run.rule_arguments) == ("mlp", {"widths": [8, 8]})
    assert run.record["seed"] == 3
    assert torch.__version__.startswith(run.record["versions"]["torch"])
    assert sorted(path.name for path in intact.iterdir()) == ["backbone.safetensors", "policy.safetensors", "run.json"]
    DynamicViT.load(intact)
    DynamicViT.load(str(intact))


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"expected a folder with run\.json.*, got .*/run$"):
        DynamicViT.load(tmp_path / "run")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format": "vitskip-run"', b"\xff\xfe\x00", b"PK\x03\x04", b"[" * 100_000, b"1" * 5_000],
    ids=["empty", "brace", "truncated", "binary", "zip", "nested", "digits"],
)
def test_a_description_that_is_no_json_is_refused(run: Path, content: bytes) -> None:
    (run / "run.json").write_bytes(content)
    refused(run, "run.json", "expected JSON, got")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"vitskip-run"', "{}", '{"format": "other", "rule": "mlp"}'])
def test_json_of_something_else_is_refused(run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    refused(run, "run.json", "expected a file with format 'vitskip-run', got something else")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused(run: Path, version: object) -> None:
    change(run, format_version=version)
    refused(run, "run.json", f"expected format_version 1, got {version!r}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": 7}, "expected 'backbone' to be a str, got 7"),
        ({"backbone": None}, "expected 'backbone' to be a str, got None"),
        ({"rule": ["mlp"]}, "expected 'rule' to be a str, got ['mlp']"),
        ({"rule_arguments": [1]}, "expected 'rule_arguments' to be a dict, got [1]"),
        ({"record": "x"}, "expected 'record' to be a dict, got 'x'"),
        ({"action_unit": "layer"}, "expected 'action_unit' to be one of block, half, got 'layer'"),
        ({"observation": "pixels"}, "expected 'observation' to be one of belief, confidence, tokens, got 'pixels'"),
        ({"backbone": "tiny-vit5"}, "unknown backbone 'tiny-vit5'"),
        ({"backbone": "tiny-vit5"}, "did you mean 'tiny-vit4'"),
        ({"backbone": "tiny-vit5"}, "register_backbone makes your own known"),
        ({"rule": "mpl"}, "unknown rule 'mpl'"),
        ({"rule": "mpl"}, "did you mean 'mlp'"),
        ({"rule_arguments": {}}, "widths"),
        ({"rule_arguments": {"widths": [8], "depth": 3}}, "depth"),
        ({"rule_arguments": {"widths": 8}}, "expected a policy that fits the backbone"),
        ({"rule_arguments": {"widths": ["8"]}}, "widths: expected positive integers, got ['8']"),
        ({"rule_arguments": {"widths": [-8]}}, "widths: expected positive integers, got [-8]"),
        ({"rule": "mask", "rule_arguments": {"keep": [True]}}, "keep: expected 4 truth values, one per unit, got 1"),
        ({"rule": "mask", "rule_arguments": {"keep": "abcd"}}, "keep: expected truth values, got 'abcd'"),
        ({"rule": "random", "rule_arguments": {"rate": 2}}, "rate: expected a probability in [0, 1], got 2"),
        ({"rule": "early-exit", "rule_arguments": {"threshold": "high"}}, "expected a policy that fits the backbone"),
        ({"rule": "early-exit", "rule_arguments": {"layout": 1, "threshold": 0.5}}, "layout"),
    ],
)
def test_values_that_do_not_fit_are_refused(run: Path, unchecked: None, values: dict[str, Any], message: str) -> None:
    change(run, **values)
    refused(run, "run.json", message)


def test_a_missing_value_is_refused(run: Path) -> None:
    values = json.loads((run / "run.json").read_text())
    del values["observation"]
    (run / "run.json").write_text(json.dumps(values))
    refused(run, "run.json", "expected 'observation' to be a str, got None")


@WEIGHTS
def test_missing_weights_are_refused(run: Path, file: str) -> None:
    (run / file).unlink()
    refused(run, file, "expected a safetensors file, found none", error=FileNotFoundError)


@WEIGHTS
@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(run: Path, file: str, length: int) -> None:
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[:length])
    refused(run, file, "expected an intact safetensors file")


@WEIGHTS
@pytest.mark.parametrize("content", [b"\xff" * 64, b"not weights at all", b"\x08" + b"\x00" * 7 + b"not json"])
def test_foreign_weights_are_refused(run: Path, file: str, content: bytes) -> None:
    (run / file).write_bytes(content)
    refused(run, file, "expected an intact safetensors file")


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@WEIGHTS
@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_not_executed(run: Path, file: str, save: Callable[[Any, Any], None]) -> None:
    with (run / file).open("wb") as stream:
        save(Touch(run / "touched"), stream)
    refused(run, file, "expected an intact safetensors file")
    assert not (run / "touched").exists()
    if save is pickle.dump:  # the payload is live
        pickle.loads((run / file).read_bytes())
        assert (run / "touched").exists()


def test_weights_of_another_network_are_refused(run: Path) -> None:
    shutil.copy(run / "policy.safetensors", run / "backbone.safetensors")
    refused(run, "backbone.safetensors", "that do not fit: cls_token missing; ", "; ...")


@WEIGHTS
def test_one_tensor_too_few_or_too_many_or_of_another_shape_is_refused(run: Path, file: str) -> None:
    tensors = load_file(run / file)
    name, tensor = next(iter(tensors.items()))
    save_file({key: value for key, value in tensors.items() if key != name}, run / file)
    refused(run, file, f"got 1 that do not fit: {name} missing")
    save_file({**tensors, "extra": tensor.clone()}, run / file)
    refused(run, file, "got 1 that do not fit: extra unexpected")
    save_file({**tensors, name: torch.zeros(*tensor.shape, 2)}, run / file)
    refused(run, file, f"{name} has shape {(*tensor.shape, 2)} instead of {tuple(tensor.shape)}")


def test_weights_of_a_wider_policy_are_refused(run: Path) -> None:
    change(run, rule_arguments={"widths": [8, 9]})
    refused(run, "policy.safetensors", "rule.network.2.weight has shape (8, 8) instead of (9, 8)")


@WEIGHTS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(run: Path, file: str, value: float) -> None:
    tensors = load_file(run / file)
    name = next(iter(tensors))
    tensors[name].view(-1)[-1] = value
    save_file(tensors, run / file)
    refused(run, file, f"got 1 that do not fit: {name} is not finite")


def test_weights_of_another_dtype_are_converted(run: Path) -> None:
    file = run / "policy.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert {tensor.dtype for tensor in DynamicViT.load(run).policy.state_dict().values()} == {torch.float32}


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, old, new = tmp_path / "weights.safetensors", nn.Linear(2, 2), nn.Linear(2, 2)
    save_weights(file, old)
    with monkeypatch.context() as patch:
        interrupt_writes(patch)
        with pytest.raises(KeyboardInterrupt):
            save_weights(file, new)
    loaded = nn.Linear(2, 2)
    load_weights(file, loaded)
    assert torch.equal(loaded.weight, old.weight)
    save_weights(file, new)
    load_weights(file, loaded)
    assert torch.equal(loaded.weight, new.weight)
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_rewrite_leaves_no_mixture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old description must not stand beside new weights."""
    with monkeypatch.context() as patch:
        interrupt_writes(patch)
        with pytest.raises(KeyboardInterrupt):
            make_net("mask").save(run, backbone_name="tiny-vit4")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        DynamicViT.load(run)
    make_net("mask").save(run, backbone_name="tiny-vit4")
    assert DynamicViT.load(run).policy.rule_name == "mask"


def test_loading_twice_gives_two_networks(intact: Path) -> None:
    first, second = DynamicViT.load(intact), DynamicViT.load(intact)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(np.shares_memory(one.numpy(), other.numpy()) is False for one, other in pairs)


def test_a_run_on_a_backbone_of_a_folder_outlives_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    architecture = {"image_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 4, "num_heads": 2}
    (folder / "card.json").write_text(json.dumps({"architecture": architecture}))
    net = make_net()
    save_weights(folder / "weights.safetensors", net.backbone)
    net.save(tmp_path / "run", backbone_name=str(folder))
    shutil.rmtree(folder)
    images = torch.rand(5, 3, 32, 32)
    assert torch.equal(DynamicViT.load(tmp_path / "run")(images), net(images))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [([1], "expected 'architecture' to be a dict"), ({"family": "vitt"}, "unknown family of ViTs 'vitt'")],
)
def test_a_bad_architecture_is_refused(run: Path, architecture: Any, message: str) -> None:
    change(run, architecture=architecture)
    refused(run, "run.json", message)
