"""Bad input: each an error that says what was expected, and names the nearest valid name where there is one."""

import math
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from toys import DEPTH, SIZE, TINY, tiny_core

from vitskip.backbone import ViT
from vitskip.envs import EnvConfig, SkipCore, SkipEnv, SkipVectorEnv, make_sb3_env
from vitskip.envs.config import check_device

pytestmark = pytest.mark.usefixtures("unchecked")  # users have no run-time type checks: our own errors must do

FACES: dict[str, Callable[..., Any]] = {
    "single": lambda **arguments: gym.make("ViTSkip-v0", **{**TINY, **arguments}).unwrapped,
    "vector": lambda **arguments: gym.make_vec("ViTSkip-v0", num_envs=2, **{**TINY, **arguments}),
    "sb3": lambda **arguments: make_sb3_env("ViTSkip-v0", num_envs=2, **{**TINY, **arguments}),
}
EVERY_FACE = pytest.mark.parametrize("make", FACES.values(), ids=FACES)


def refused(message: str, error: type[Exception] = ValueError) -> Any:
    """The error must contain the message, word by word."""
    return pytest.raises(error, match=re.escape(message))


@EVERY_FACE
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rewrad", "unknown environment argument 'rewrad': expected one of action_unit, "),
        ("rewrad", "; did you mean 'reward'?"),
        ("back_bone", "; did you mean 'backbone'?"),
        ("costweight", "; did you mean 'cost_weight'?"),
        ("rendermode", "; did you mean 'render_mode'?"),
    ],
)
def test_an_unknown_argument(make: Callable[..., Any], argument: str, message: str) -> None:
    with refused(message):
        make(**{argument: "correct"})


@pytest.mark.parametrize(
    ("face", "argument", "nearest"),
    [("vector", "autoreset", "autoreset_mode"), ("vector", "outputs", "output"), ("sb3", "num_env", "num_envs")],
)
def test_a_faces_own_arguments_are_suggested_too(face: str, argument: str, nearest: str) -> None:
    with refused(f"; did you mean {nearest!r}?"):
        FACES[face](**{argument: 1})


@EVERY_FACE
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("dataset", "tiny-digit", "unknown data set 'tiny-digit': expected one of "),
        ("dataset", "tiny-digit", "; did you mean 'tiny-digits'?"),
        ("backbone", "tiny-vit5", "unknown backbone 'tiny-vit5': expected one of "),
        ("backbone", "tiny-vit5", "; did you mean 'tiny-vit4'?"),
        ("reward", "corect", "; did you mean 'correct'?"),
        ("reward", "accuracy", "unknown reward 'accuracy': expected one of blockdrop, correct, "),
        ("cost", "flops", "unknown cost 'flops': expected one of "),
        ("cost", "mac", "; did you mean 'macs'?"),
        ("cost", "latency", "unknown cost 'latency': expected one of latency:FILE, macs"),
        ("cost", "latency:", "unknown cost 'latency:': expected one of latency:FILE, macs"),
        ("observation", "token", "; did you mean 'tokens'?"),
        ("split", "val", "unknown split 'val': expected one of test, train, validation"),
        ("split", "tests", "; did you mean 'test'?"),
        (
            "order",
            "sequence",
            "unknown order 'sequence': expected one of random, sequential; did you mean 'sequential'?",
        ),
        ("action_unit", "blocks", "unknown action_unit 'blocks': expected one of block, half; did you mean 'block'?"),
        ("reward", None, "unknown reward None: expected one of "),
        ("split", ["train"], "unknown split ['train']: expected one of "),
        ("dataset", 3, "dataset: expected a name (a string), got 3"),
        ("backbone", None, "backbone: expected a name (a string), got None"),
        ("device", 0, "device: expected a name (a string), got 0"),
        ("data_root", 3, "data_root: expected a folder's path (a string) or None, got 3"),
        ("copies", 0, "copies: expected an integer of at least 1, got 0"),
        ("copies", 2.0, "copies: expected an integer of at least 1, got 2.0"),
        ("copies", True, "copies: expected an integer of at least 1, got True"),
        ("augmentation", "shift-flop", "; did you mean 'shift-flip'?"),
        ("cost_weight", -0.1, "cost_weight: expected a finite number of at least 0, got -0.1"),
        ("cost_weight", math.nan, "cost_weight: expected a finite number of at least 0, got nan"),
        ("cost_weight", math.inf, "cost_weight: expected a finite number of at least 0, got inf"),
        ("cost_weight", True, "cost_weight: expected a number of at least 0, got True"),
        ("cost_weight", "0.1", "cost_weight: expected a number of at least 0, got '0.1'"),
        ("cost_weight", None, "cost_weight: expected a number of at least 0, got None"),
        ("budgets", 0.5, "budgets: expected a list of shares of the dense compute in (0, 1), got 0.5"),
        ("budgets", [0.5, 1.0], "budgets: expected a list of shares of the dense compute in (0, 1), got [0.5, 1.0]"),
        ("budgets", [0.5, 0.5], "budgets: expected each of them once, got [0.5, 0.5]"),
        ("device", "gpu", 'device: expected a PyTorch device such as "cpu" or "cuda:0", got \'gpu\''),
    ],
)
def test_a_bad_argument(make: Callable[..., Any], argument: str, value: Any, message: str) -> None:
    with refused(message):
        make(**{argument: value})


def test_a_missing_folder() -> None:
    with refused(
        "data_root: expected an existing folder with the data set 'tiny-digits', got /no/such", FileNotFoundError
    ):
        FACES["single"](data_root="/no/such")


def test_a_bad_render_mode() -> None:
    for make in (SkipEnv, SkipVectorEnv, make_sb3_env):
        with refused("render_mode: expected None, 'rgb_array' or 'ansi', got 'human'"):
            make(render_mode="human", **TINY)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("output", "tensor", "unknown output 'tensor': expected one of numpy, torch"),
        ("output", "pytorch", "; did you mean 'torch'?"),
        ("autoreset_mode", "SAMESTEP", "; did you mean 'SAME_STEP'?"),
        ("autoreset_mode", None, "unknown autoreset_mode None: expected one of DISABLED, NEXT_STEP, SAME_STEP"),
    ],
)
def test_a_bad_argument_of_the_vector_face(argument: str, value: Any, message: str) -> None:
    with refused(message):
        FACES["vector"](**{argument: value})


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, "2", True, None])
def test_a_bad_number_of_environments(num_envs: Any) -> None:
    message = f"num_envs: expected an integer of at least 1, got {num_envs!r}"
    with refused(message):
        gym.make_vec("ViTSkip-v0", num_envs=num_envs, **TINY)
    with refused(message):
        make_sb3_env("ViTSkip-v0", num_envs=num_envs, **TINY)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ViTSkip-v9", "ViTSkip"])
def test_an_id_that_is_not_ours(env_id: str) -> None:
    with refused(f"unknown environment id {env_id!r}: expected one of ViTSkip-v0"):
        make_sb3_env(env_id, **TINY)


@pytest.mark.parametrize(
    ("num_classes", "height", "message"),
    [
        (5, 32, "expected square images of 5 classes, as the backbone takes, got 32x32 images of 10 classes"),
        (10, 24, "expected square images of 10 classes, as the backbone takes, got 24x32 images of 10 classes"),
    ],
)
def test_a_backbone_and_a_data_set_that_do_not_fit(num_classes: int, height: int, message: str) -> None:
    backbone = ViT(patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=num_classes)
    dataset = tiny_core(1).dataset
    with refused(message):
        SkipCore(backbone.eval(), replace(dataset, images=dataset.images[:, :, :height]), EnvConfig(), 1)


def test_images_of_another_size_are_resized() -> None:
    backbone = ViT(image_size=48, patch_size=16, embed_dim=16, depth=1, num_heads=2).eval()
    core = SkipCore(backbone, tiny_core(1).dataset, EnvConfig(), 1)
    core.reset(np.array([0]), np.array([3]))
    core.step(np.array([1]))
    with torch.no_grad():
        torch.testing.assert_close(core.logits, backbone(core.dataset.images[3:4]))


BAD_ACTIONS = [
    ([0, 2], "actions: expected 0 (SKIP) or 1 (RUN), got 2 in row 1"),
    ([-1, 0], "actions: expected 0 (SKIP) or 1 (RUN), got -1 in row 0"),
    ([0, 1, 1], "actions: expected integers [2], got int64 (3,)"),
    ([[0], [1]], "actions: expected integers [2], got int64 (2, 1)"),
    (1, "actions: expected integers [2], got int64 ()"),
    ([0.0, 1.0], "actions: expected integers [2], got float64 (2,)"),
    (["run", "skip"], "actions: expected integers [2], got <U4 (2,)"),
    (None, "actions: expected integers [2], got object ()"),
]


@pytest.mark.parametrize(("actions", "message"), BAD_ACTIONS)
@pytest.mark.parametrize("face", ["vector", "sb3"])
def test_bad_actions(face: str, actions: Any, message: str) -> None:
    env = FACES[face]()
    env.reset()
    with refused(message):
        env.step(np.array(actions) if isinstance(actions, list) else actions)
    env.step(np.array([0, 1]))  # the episode goes on


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (2, "actions: expected 0 (SKIP) or 1 (RUN), got 2 in row 0"),
        (-1, "actions: expected 0 (SKIP) or 1 (RUN), got -1 in row 0"),
        (1.0, "actions: expected integers [1], got float64 (1,)"),
        (np.array([1]), "actions: expected integers [1], got int64 (1, 1)"),
        (None, "actions: expected integers [1], got object (1,)"),
        ("run", "actions: expected integers [1], got <U3 (1,)"),
    ],
)
def test_a_bad_action(action: Any, message: str) -> None:
    env = FACES["single"]()
    env.reset()
    with refused(message):
        env.step(action)
    env.step(np.int64(1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, bool])
def test_actions_of_every_integer_dtype_are_taken(dtype: type) -> None:
    for make in FACES.values():
        env = make()
        env.reset()
        env.step(np.array(1, dtype) if isinstance(env, SkipEnv) else np.array([1, 0], dtype))


@EVERY_FACE
def test_a_step_before_the_first_reset(make: Callable[..., Any]) -> None:
    env = make()
    with refused(
        "step: expected a running episode, but row 0 was never reset or has ended (4 steps); call reset()", ResetNeeded
    ):
        env.step(1 if isinstance(env, SkipEnv) else np.array([1, 0]))


@EVERY_FACE
def test_a_picture_before_the_first_reset(make: Callable[..., Any]) -> None:
    env = make(render_mode="ansi")
    with refused("render: expected an episode to draw, but there was none yet; call reset()", ResetNeeded):
        env.render()
    env.reset()
    assert env.render()


def test_a_step_before_the_first_reset_in_every_autoreset_mode() -> None:
    for mode in ("SAME_STEP", "NEXT_STEP", "DISABLED"):
        with refused("step: expected a running episode", ResetNeeded):
            FACES["vector"](autoreset_mode=mode).step(np.array([1, 0]))


def test_a_step_after_the_end_of_the_single_face() -> None:
    env = FACES["single"]()
    env.reset()
    for _ in range(DEPTH):
        env.step(1)
    for _ in range(2):
        with refused("step: expected a running episode, but row 0 was never reset or has ended (4 steps)", ResetNeeded):
            env.step(1)
    env.reset()
    env.step(1)


def test_a_step_after_the_end_of_some_rows_of_the_vector_face() -> None:
    envs = FACES["vector"](autoreset_mode="DISABLED")
    envs.reset()
    for _ in range(DEPTH):
        envs.step(np.array([1, 0]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    with refused("step: expected a running episode, but row 1 was never reset or has ended", ResetNeeded):
        envs.step(np.array([1, 0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idnex": 3}, "unknown reset option 'idnex': expected one of index; did you mean 'index'?"),
        ({"reset_mask": np.ones(1, bool)}, "unknown reset option 'reset_mask': expected one of index"),
        ({"index": SIZE}, "image index: expected 0..63, got [64]"),
        ({"index": -1}, "image index: expected 0..63, got [-1]"),
        ({"index": 1.7}, "index: expected integers [1], got float64 (1,)"),
        ({"index": True}, "index: expected integers [1], got bool (1,)"),
        ({"index": "3"}, "index: expected integers [1], got <U1 (1,)"),
        ({"index": [3]}, "index: expected integers [1], got int64 (1, 1)"),
    ],
)
def test_bad_options_of_the_single_face(options: dict[str, Any], message: str) -> None:
    with refused(message):
        FACES["single"]().reset(options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mask": np.ones(2, bool)},
            "unknown reset option 'mask': expected one of index, reset_mask; did you mean 'reset_mask'?",
        ),
        ({"reset_mask": np.ones(3, bool)}, "reset_mask: expected bool [2] with at least one True, got bool (3,)"),
        ({"reset_mask": np.ones(2, int)}, "reset_mask: expected bool [2] with at least one True, got int64 (2,)"),
        ({"reset_mask": np.zeros(2, bool)}, "reset_mask: expected bool [2] with at least one True, got bool (2,)"),
        ({"index": [0, SIZE]}, "image index: expected 0..63, got [0, 64]"),
        ({"index": [0, -1]}, "image index: expected 0..63, got [0, -1]"),
        ({"index": 3}, "index: expected integers [2], got int64 ()"),
        ({"index": [1, 2, 3]}, "index: expected integers [2], got int64 (3,)"),
        ({"index": [1.5, 2.0]}, "index: expected integers [2], got float64 (2,)"),
    ],
)
def test_bad_options_of_the_vector_face(options: dict[str, Any], message: str) -> None:
    with refused(message):
        FACES["vector"]().reset(options=options)


def test_a_list_of_seeds_of_another_length() -> None:
    with refused("seed: expected an int or one seed for each of 2 environments, got 3"):
        FACES["vector"]().reset(seed=[1, 2, 3])


@EVERY_FACE
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_where_there_is_none(make: Callable[..., Any]) -> None:
    with refused("device: expected \"cpu\", as PyTorch finds no CUDA device here, got 'cuda'"):
        make(device="cuda")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of other tests' threads
def test_cuda_in_a_forked_worker() -> None:
    """As in `AsyncVectorEnv(..., context="fork")`."""
    message = "device: expected \"cpu\" in a forked worker process, got 'cuda': CUDA does not survive a fork. "
    with multiprocessing.get_context("fork").Pool(1) as pool:
        with refused(message + 'One process runs a batch faster: gym.make_vec("ViTSkip-v0", num_envs=..., device='):
            pool.apply(check_device, ("cuda",))
        assert pool.apply(check_device, ("cpu",)) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_in_a_spawned_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that imports the module itself is not mistaken for a forked one, though fork may be the default."""
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    with refused("device: expected \"cpu\", as PyTorch finds no CUDA device here, got 'cuda'"):
        check_device("cuda")


def test_an_unknown_argument_is_a_type_error_too() -> None:
    """As of any function; TorchRL's GymEnv relies on its usual words."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        EnvConfig.from_arguments({"frameskip": 1})


def test_a_data_set_has_a_backbone_of_its_own() -> None:
    """Where one is shipped for it; the backbone of another data set is never run instead."""
    assert EnvConfig().backbone == "digits-vit12"
    assert EnvConfig(dataset="cifar10").backbone == "cifar10-p4-vit12-nested"
    assert EnvConfig(dataset="cifar100").changed() == {"dataset": "cifar100"}
    named = EnvConfig(dataset="cifar10", backbone="digits-vit12")
    assert EnvConfig.from_arguments(named.changed()) == named
    with pytest.raises(ValueError, match="backbone: expected the name of one that knows the data set 'tiny-digits'"):
        EnvConfig(dataset="tiny-digits")
    with pytest.raises(ValueError, match=r"unknown data set 'digit': .*did you mean 'digits'"):
        EnvConfig(dataset="digit")


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_others_vits_are_to_be_trained_first(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected one trained on this data set, got '{name}'; fine-tune it by"):
        EnvConfig(backbone=name).load_backbone()


def test_a_backbone_of_another_data_set_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="'cifar10-vit4-plain' was trained on 'cifar10', the data set is 'digits'"):
        EnvConfig(backbone="cifar10-vit4-plain").load_backbone()
