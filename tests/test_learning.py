"""Agents must find the best way through a toy ViT on which it is known.

Block 1 copies the class from a patch token to a hidden channel of the class token, block 3 moves it from there to the
channels that the head reads, blocks 0 and 2 stir channels that nobody reads. Running exactly blocks 1 and 3 is right
on every image; at cost weight 0.4 that is worth 1 - 0.2 = 0.8. In the second data set half of the images can be read
at once, which the head's belief shows: there the best return is (1 + 0.8) / 2 = 0.9, and no static mask has it.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitskip.agents import DynamicViT, Policy, baselines, enumerate_static_masks, train
from vitskip.agents.training import TrainConfig
from vitskip.backbone import Backbone, Dataset, load_backbone, load_dataset, register_backbone, register_dataset
from vitskip.backbone.macs import Macs
from vitskip.backbone.protocol import to_float_images
from vitskip.envs import ObservationLayout
from vitskip.eval import measure

CLASSES, COUNT, COST_WEIGHT = 4, 400, 0.4
ENV = {"backbone": "toy-vit4", "cost_weight": COST_WEIGHT}
BEST = [False, True, False, True]
READABLE, HIDDEN, SCRAP = slice(0, 4), slice(4, 8), slice(8, 12)  # channels


class ToyViT(nn.Module):
    """Implements `Backbone`; the class token is token 0, the class stands in the patch token."""

    depth, embed_dim, num_classes, num_tokens, num_prefix_tokens, image_size = 4, 12, CLASSES, 2, 1, 8
    macs = Macs(stem=0, attention=(50,) * 4, mlp=(50,) * 4, head=0)

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def embed(self, images: Tensor) -> Tensor:
        """Red of pixel (0, k) is on where the class is k, green where it can be read at once."""
        pixels = to_float_images(images)
        tokens = pixels.new_zeros(len(images), 2, 12)
        tokens[:, 1, READABLE] = pixels[:, 0, 0, :CLASSES]
        tokens[:, 0, READABLE] = pixels[:, 1, 0, :CLASSES]
        return tokens

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        if index == 1:
            tokens[:, 0, HIDDEN] = tokens[:, 1, READABLE]
        elif index == 3:
            tokens[:, 0, READABLE] += tokens[:, 0, HIDDEN]
        else:
            tokens[:, :, SCRAP] = tokens[:, :, SCRAP].roll(1, 2) + 1
        return tokens

    def run_half_block(self, index: int, tokens: Tensor) -> Tensor:
        return tokens if index % 2 else self.run_block(index // 2, tokens)

    def classify(self, tokens: Tensor) -> Tensor:
        return self.sharpness * tokens[:, 0, READABLE]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        for index in range(self.depth):
            tokens = self.run_block(index, tokens)
        return self.classify(tokens)


def toy_images(easy_every: int, split: str) -> Dataset:
    """Equally many images of each class; every `easy_every`-th can be read at once, none where it is 0."""
    labels = torch.randperm(COUNT, generator=torch.Generator().manual_seed(len(split))) % CLASSES
    easy = torch.arange(COUNT) % easy_every == 0 if easy_every else torch.zeros(COUNT, dtype=torch.bool)
    images = torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8)
    images[torch.arange(COUNT), 0, 0, labels] = 255
    images[torch.arange(COUNT)[easy], 1, 0, labels[easy]] = 255
    return Dataset(images, labels, tuple("abcd"), 1 - easy.float())


def hard(split: Any, data_root: Path | None) -> Dataset:
    return toy_images(0, split)


def half_easy(split: Any, data_root: Path | None) -> Dataset:
    return toy_images(2, split)


with contextlib.suppress(ValueError):  # registered already
    register_backbone("toy-vit4", ToyViT)
    register_dataset("toy-hard", hard)
    register_dataset("toy-half-easy", half_easy)

LAYOUT = ObservationLayout.of(ToyViT(), "belief", "block")


def returns(policy: Policy, dataset: str) -> tuple[float, np.ndarray]:
    """Mean return on the test images, which follows from accuracy and units run, and the masks."""
    net = DynamicViT(load_backbone("toy-vit4"), policy).eval()
    measurement = measure(net, load_dataset(dataset, "test"))
    return measurement.accuracy - COST_WEIGHT * measurement.units_run / 4, measurement.keep_mask


PPO = (64, 14_000, {"batch_size": 256, "learning_rate": 3e-3, "n_epochs": 4, "ent_coef": 0.01})
OFF_POLICY = {
    "n_steps": 4,
    "learning_starts": 2000,
    "batch_size": 512,
    "train_freq": 1,
    "gradient_steps": 4,
    "learning_rate": 3e-3,
    "target_update_interval": 1000,
    "exploration_fraction": 0.9,
    "exploration_final_eps": 0.1,
}
SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {  # environments, steps, hyperparameters
    "ppo": PPO,
    "a2c": (64, 25_000, {"learning_rate": 0.01, "ent_coef": 0.01}),
    "trpo": (64, 14_000, {"batch_size": 256, "learning_rate": 0.01, "target_kl": 0.05}),
    "maskable-ppo": PPO,
    "recurrent-ppo": (64, 40_000, {"batch_size": 128, "learning_rate": 0.005, "n_epochs": 8, "ent_coef": 0.02}),
    "dqn": (64, 25_000, OFF_POLICY),
    "qrdqn": (64, 25_000, OFF_POLICY),
    "reinforce": (64, 25_000, {"learning_rate": 0.02, "ent_coef": 0.05, "probability_floor": 0.05}),
    "self-critical": (64, 25_000, {"learning_rate": 0.02, "ent_coef": 0.01}),
    "gumbel": (64, 20_000, {"learning_rate": 0.02}),
}
SLOW = ("recurrent-ppo", "dqn", "qrdqn")
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SETTINGS]


def learn(algorithm: str, dataset: str, path: Path, **options: Any) -> Policy:
    num_envs, total_timesteps, hyperparameters = SETTINGS[algorithm]
    env = {**ENV, "dataset": dataset, **options.pop("env", {})}
    config = TrainConfig(algorithm, total_timesteps, 0, num_envs, hyperparameters, env, **options)
    return train(config, path, progress_bar=False).net.policy


def test_the_toy_is_a_backbone() -> None:
    backbone = load_backbone("toy-vit4")
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        prediction = backbone(load_dataset("toy-hard", "test").images).argmax(1)
    assert torch.equal(prediction, load_dataset("toy-hard", "test").labels)


def test_the_best_mask_is_the_known_one() -> None:
    """Of all 16 masks, by their returns: 0.8, and then all blocks but one, which is worth 0.7."""
    test = load_dataset("toy-hard", "test")
    masks = enumerate_static_masks(load_backbone("toy-vit4"), test.images, test.labels)
    values = masks.accuracy - COST_WEIGHT * masks.keep_mask.mean(1)
    best, second = np.sort(values)[:-3:-1]
    assert masks.keep_mask[values.argmax()].tolist() == BEST
    assert (best, second) == (pytest.approx(0.8), pytest.approx(0.7))
    assert values.min() < 0.1


def test_half_easy_images_are_worth_more_than_any_static_mask() -> None:
    test = load_dataset("toy-half-easy", "test")
    masks = enumerate_static_masks(load_backbone("toy-vit4"), test.images, test.labels)
    assert (masks.accuracy - COST_WEIGHT * masks.keep_mask.mean(1)).max() == pytest.approx(0.8)


def test_policies_that_do_not_learn_stay_below() -> None:
    assert returns(baselines.run_all(LAYOUT), "toy-hard")[0] == pytest.approx(0.6)
    assert returns(baselines.skip_all(LAYOUT), "toy-hard")[0] == pytest.approx(0.25)
    for rate in (0.25, 0.5, 0.75):
        assert returns(baselines.random_skip(LAYOUT, rate), "toy-hard")[0] < 0.6


@pytest.mark.parametrize("algorithm", EVERY)
def test_agents_find_the_blocks_that_matter(algorithm: str, tmp_path: Path) -> None:
    value, keep_mask = returns(learn(algorithm, "toy-hard", tmp_path), "toy-hard")
    assert (keep_mask == BEST).all(1).mean() > 0.95
    assert value > 0.77


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "reinforce", "gumbel"])
def test_agents_skip_more_on_easy_images(algorithm: str, tmp_path: Path) -> None:
    """They must look at the belief: the best static mask reaches 0.8."""
    value, keep_mask = returns(learn(algorithm, "toy-half-easy", tmp_path), "toy-half-easy")
    assert value > 0.87
    assert (keep_mask[1::2] == BEST).all(1).mean() > 0.95
    assert not keep_mask[::2].any(1).mean() > 0.05


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_planners_decide_by_one_look(algorithm: str, tmp_path: Path) -> None:
    """Block 0 runs in any case, which is worth 0.1 less."""
    policy = learn(algorithm, "toy-half-easy", tmp_path, upfront=1)
    assert policy.look_after == 1
    value, keep_mask = returns(policy, "toy-half-easy")
    assert keep_mask[:, 0].all()
    assert value > 0.77
    assert (keep_mask[1::2, 1:] == BEST[1:]).all(1).mean() > 0.95
