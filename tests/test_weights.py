"""Weights from elsewhere: what is read, what is refused, and that nothing in a file is executed."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitskip.backbone.weights import load_pretrained, read_state_dict, save_weights

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def assert_same(tensors: dict[str, Tensor]) -> None:
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "content",
    [TENSORS, {"model": TENSORS}, {"state_dict": TENSORS}, {"model": {"state_dict": TENSORS}, "epoch": 3}],
)
def test_torch_files_are_read(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth"))


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert_same(read_state_dict(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_no_file_is_an_error(tmp_path: Path, file: str) -> None:
    with pytest.raises(FileNotFoundError, match=file):
        read_state_dict(tmp_path / file)
    (tmp_path / file).mkdir()
    with pytest.raises(FileNotFoundError, match=file):
        read_state_dict(tmp_path / file)


@pytest.mark.parametrize("length", [0, 1, 4, 100, -1])
@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, file: str, length: int) -> None:
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"expected .*{file}, got"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content", [b"\xff" * 64, b"not weights", pickle.dumps({"a": 1})[:-3], b"PK\x03\x04" + b"0" * 99]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a state dictionary in .*weights\.pth"):
        read_state_dict(tmp_path / "weights.pth")


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_code_is_refused_and_not_executed(tmp_path: Path, file: str, save: Callable[[Any, Any], None]) -> None:
    with (tmp_path / file).open("wb") as stream:
        save({"model": TENSORS, "args": Touch(tmp_path / "touched")}, stream)
    with pytest.raises(ValueError, match=file):
        read_state_dict(tmp_path / file)
    assert not (tmp_path / "touched").exists()
    if save is pickle.dump:  # the payload is live
        pickle.loads((tmp_path / file).read_bytes())
        assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (torch.ones(2), "Tensor"),
        ([1, 2], "list"),
        ({"weight": torch.ones(2), "epoch": 3, "lr": 0.1}, "'epoch' of type int; 'lr' of type float"),
        ({0: torch.ones(2)}, "0 of type Tensor"),
    ],
)
def test_what_is_no_state_dictionary_is_refused(tmp_path: Path, content: object, got: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"expected named tensors in .*, got: {got}"):
        read_state_dict(tmp_path / "weights.pth")


def test_objects_beside_the_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"damaged or holds more than tensors \(UnpicklingError\)"):
        read_state_dict(tmp_path / "weights.pth")


def make_net(num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, num_classes))


def test_a_head_that_fits_is_loaded_without_a_word() -> None:
    source, net = make_net(4), make_net(4)
    load_pretrained(Path("file"), source.state_dict(), net, heads=("1.",))
    assert torch.equal(net[1].weight, source[1].weight)
    assert torch.equal(net[0].weight, source[0].weight)


def test_a_head_of_other_classes_stays_as_it_was() -> None:
    source, net = make_net(4).half(), make_net(5)
    before = net.state_dict()["1.weight"].clone()
    with pytest.warns(UserWarning, match=r"the head in file .*\(1\.weight has shape \(4, 3\) instead of \(5, 3\)"):
        load_pretrained(Path("file"), source.state_dict(), net, heads=("1.",))
    assert torch.equal(net[1].weight, before)
    assert torch.equal(net[0].weight, source[0].weight.float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    source = make_net(4)
    nn.init.constant_(source[0].bias, value)
    with pytest.raises(ValueError, match=r"expected finite numbers in file, got: 0\.bias is not finite"):
        load_pretrained(Path("file"), source.state_dict(), make_net(4), heads=("1.",))


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, None), (1e6, torch.float16)])
def test_nor_are_they_written(tmp_path: Path, value: float, dtype: torch.dtype | None) -> None:
    """Neither those of the network nor those that half precision makes infinite."""
    save_weights(tmp_path / "file", make_net(4))
    before = (tmp_path / "file").read_bytes()
    net = make_net(4)
    nn.init.constant_(net[0].bias, value)
    with pytest.raises(ValueError, match=r"expected finite numbers to write to .*file, got: 0\.bias is not finite"):
        save_weights(tmp_path / "file", net, dtype)
    assert (tmp_path / "file").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_anything_else_must_fit() -> None:
    stored = make_net(4).state_dict()
    del stored["0.bias"]
    with pytest.raises(ValueError, match=r"expected the tensors of this network in file, got: .*Missing key.*0\.bias"):
        load_pretrained(Path("file"), stored, make_net(4), heads=("1.",))
