"""A tiny ViT and a tiny data set under names, for tests that go through registries and `gym.make`."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitskip.backbone import Dataset, ViT, load_backbone, load_dataset, register_backbone, register_dataset
from vitskip.backbone.digits import digits
from vitskip.envs import EnvConfig, SkipCore

DEPTH = 4  # blocks of the tiny ViT
SIZE = 64  # images in each split of the tiny data set
TINY: dict[str, Any] = {"backbone": "tiny-vit4", "dataset": "tiny-digits"}
MERGING = "tome:1:tiny-vit4"  # of its 5 tokens


def tiny_vit4() -> ViT:
    """Four blocks, five tokens, ten classes; the weights are NumPy's draws, which are alike on every machine.

    They are large, so that every part matters and several classes are predicted.
    """
    with torch.random.fork_rng([]):
        vit = ViT(image_size=32, patch_size=16, embed_dim=16, depth=DEPTH, num_heads=2, num_classes=10)
    rng = np.random.default_rng(4)
    for name, parameter in vit.named_parameters():
        scale = 2 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        draws = rng.normal(float("norm.weight" in name), scale, parameter.shape)
        parameter.data = torch.from_numpy(draws.astype(np.float32))
    return vit


@functools.cache
def tiny_digits(split: Any, data_root: Path | None) -> Dataset:
    """The first images of the embedded data set."""
    del data_root
    images, labels, difficulty = digits(split, size=SIZE)
    return Dataset(images, labels, tuple("0123456789"), difficulty)


def tiny_core(num_envs: int, **arguments: Any) -> SkipCore:
    """The batched core on a backbone of its own, with `EnvConfig`'s arguments."""
    config = EnvConfig(**TINY, **arguments)
    backbone = load_backbone(config.backbone).requires_grad_(False)
    return SkipCore(backbone, load_dataset(config.dataset, config.split), config, num_envs)


def assert_same(actual: Any, expected: Any, where: str = "result", tolerance: float = 1e-5) -> None:
    """Same types, keys, shapes and dtypes all the way down; the same values, floats up to a tolerance."""
    assert type(actual) is type(expected), f"{where}: {type(actual)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}[{key!r}]", tolerance)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]", tolerance)
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        assert actual.dtype == object, where
        assert_same(actual.tolist(), expected.tolist(), where, tolerance)
    elif isinstance(expected, np.ndarray | Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=where)
    elif isinstance(expected, float):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=where)
    else:
        assert actual == expected, where


with contextlib.suppress(ValueError):  # registered already
    register_backbone("tiny-vit4", tiny_vit4)
with contextlib.suppress(ValueError):
    register_dataset("tiny-digits", tiny_digits)
