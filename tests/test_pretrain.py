"""Skip-tolerant pretraining: what it learns, and that stopping or dividing it changes nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitskip.backbone import checkpoint
from vitskip.backbone.datasets import Dataset
from vitskip.backbone.masked import run_masked
from vitskip.backbone.pretrain import LOG_EVERY, PretrainResult, make_paths, pretrain
from vitskip.backbone.processes import Processes, process_rank
from vitskip.backbone.recipe import OptimizerName, Recipe
from vitskip.backbone.vit import ViT

RECIPE = Recipe(epochs=20, batch_size=32, learning_rate=1e-2, label_smoothing=0.0, ema_decay=0.9, augmentation="none")
LONG = replace(RECIPE, full_share=0.3, epochs=2 * LOG_EVERY + 3, augmentation="digits")  # two steps an epoch


@pytest.fixture(scope="module")
def toy() -> Dataset:
    return toy_dataset()


def toy_dataset() -> Dataset:
    """64 noisy images of four classes, each class a quadrant that is bright."""
    labels = torch.arange(64) % 4
    images = torch.randint(0, 100, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 100
    return Dataset(images.to(torch.uint8), labels, ("a", "b", "c", "d"), torch.zeros(64))


def make_vit(num_classes: int = 4) -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=num_classes)


def train(toy: Dataset, recipe: Recipe, **arguments: Any) -> tuple[ViT, PretrainResult]:
    vit = make_vit()
    return vit, pretrain(vit, toy, recipe, progress_bar=False, **arguments)


def loss_of(vit: ViT, toy: Dataset, keep_mask: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(run_masked(vit, toy.images, keep_mask), toy.labels).item()


def same(first: ViT, second: ViT) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("skip", ["block", "half"])
@pytest.mark.parametrize("full_share", [1.0, 0.3])
def test_a_short_run_learns_at_every_depth(toy: Dataset, skip: str, full_share: float) -> None:
    vit, result = train(toy, replace(RECIPE, skip=skip, full_share=full_share))
    untrained = make_vit()
    assert result.steps == 40
    for keep in ((True, True, True), (True, False, False), (True, False, True)):
        mask = torch.tensor(keep).expand(64, 3)
        assert loss_of(untrained, toy, mask) > 1.2
        assert loss_of(vit, toy, mask) < 0.5 * loss_of(untrained, toy, mask)
    assert not vit.training


def test_with_tails_skipped_every_prefix_learns(toy: Dataset) -> None:
    vit, _ = train(toy, replace(RECIPE, skip="tail"))
    untrained = make_vit()
    for k in (1, 2, 3):
        mask = (torch.arange(3) < k).expand(64, 3)
        assert loss_of(vit, toy, mask) < 0.5 * loss_of(untrained, toy, mask)
    with pytest.raises(ValueError, match='full_share: expected 1 with skip "tail"'):
        replace(RECIPE, skip="tail", full_share=0.5)


def test_a_plain_net_is_trained_on_its_full_path_only(toy: Dataset) -> None:
    vit, result = train(toy, replace(RECIPE, skip="none"))
    assert loss_of(vit, toy, torch.ones(64, 3, dtype=torch.bool)) < 0.6
    assert set(result.curve["skipped_loss"]) == {0.0}


def test_the_seed_decides_and_the_global_state_does_not(toy: Dataset) -> None:
    short = replace(RECIPE, epochs=2)
    first, _ = train(toy, short)
    torch.manual_seed(torch.seed())
    vit = make_vit()
    torch.rand(3)
    pretrain(vit, toy, short, progress_bar=False)
    other, _ = train(toy, replace(short, seed=1))
    assert same(first, vit)
    assert not same(first, other)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("kills", "optimizer"), [((1,), "adamw"), ((1, 2), "adamw"), ((1, 2), "muon")])
def test_a_run_that_was_killed_ends_with_the_same_weights(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...], optimizer: OptimizerName
) -> None:
    recipe = replace(LONG, optimizer=optimizer)
    straight, whole = train(toy, recipe)
    save = checkpoint.TrainingState.save
    saved = 0

    def save_and_die(self: checkpoint.TrainingState, path: Path, identity: dict[str, Any]) -> None:
        nonlocal saved
        save(self, path, identity)
        saved += 1
        if saved in kills:
            raise Killed

    monkeypatch.setattr(checkpoint.TrainingState, "save", save_and_die)
    for _ in kills:
        with pytest.raises(Killed):
            train(toy, recipe, folder=tmp_path, checkpoint_seconds=0.0)
    resumed, result = train(toy, recipe, folder=tmp_path, checkpoint_seconds=0.0)
    assert saved == 5  # after 50, 100, 150, 200 and 206 steps
    assert same(straight, resumed)
    assert result.curve == whole.curve
    again, _ = train(toy, recipe, folder=tmp_path)  # a finished run is only read
    assert same(again, resumed)
    assert saved == 5


def test_a_kill_between_checkpoints_loses_steps_and_nothing_else(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, _ = train(toy, LONG)
    update = checkpoint.TrainingState.update_average

    def die_at_step_77(self: checkpoint.TrainingState, decay: float) -> None:
        update(self, decay)
        if self.step == 77:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.TrainingState, "update_average", die_at_step_77)
        with pytest.raises(Killed):
            train(toy, LONG, folder=tmp_path, checkpoint_seconds=0.0)
    resumed, _ = train(toy, LONG, folder=tmp_path)
    assert same(straight, resumed)


def test_the_checkpoint_of_another_run_is_refused(toy: Dataset, tmp_path: Path) -> None:
    train(toy, RECIPE, folder=tmp_path)
    with pytest.raises(ValueError, match="made with other learning_rate, seed"):
        train(toy, replace(RECIPE, learning_rate=1e-3, seed=3), folder=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_corrupt_checkpoint_is_refused(toy: Dataset, tmp_path: Path, damage: bytes | None) -> None:
    file = tmp_path / "checkpoint.safetensors"
    if damage is None:
        train(toy, RECIPE, folder=tmp_path)
        damage = file.read_bytes()[:-100]
    file.write_bytes(damage)
    with pytest.raises(ValueError, match="checkpoint: expected one of a training run"):
        train(toy, RECIPE, folder=tmp_path)


def test_the_result_is_the_average_of_the_weights(toy: Dataset) -> None:
    """With a decay of 0 the average is the last weights; a slow one lags behind."""
    last, _ = train(toy, replace(RECIPE, ema_decay=0.0))
    slow, _ = train(toy, replace(RECIPE, ema_decay=0.999))
    assert not same(last, slow)


def test_a_loss_that_is_not_finite_stops_the_run(toy: Dataset) -> None:
    vit = make_vit()
    torch.nn.init.constant_(vit.head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="loss: expected a finite one"):
        pretrain(vit, toy, RECIPE, progress_bar=False)


def test_compiling_needs_to_know_the_blocks(unchecked: None) -> None:
    alone = Processes(0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="vit: expected a backbone with its modules as `blocks`, got Identity"):
        make_paths(torch.nn.Identity(), replace(RECIPE, compile=True), alone)


def test_weight_decay_spares_vectors_and_embeddings(toy: Dataset) -> None:
    short = replace(RECIPE, epochs=3, ema_decay=0.0)
    light, _ = train(toy, replace(short, weight_decay=0.0))
    heavy, _ = train(toy, replace(short, weight_decay=30.0))
    shares = {
        name: (parameter.norm() / light.get_parameter(name).norm()).item()
        for name, parameter in heavy.named_parameters()
    }
    assert max(shares["blocks.0.mlp.expand.weight"], shares["patches.weight"]) < 0.75
    assert min(shares["norm.weight"], shares["pos_embed"], shares["cls_token"]) > 0.9


@pytest.mark.filterwarnings("ignore:precision")  # on a CPU without bfloat16
def test_bfloat16_trains_too(toy: Dataset) -> None:
    vit, _ = train(toy, replace(RECIPE, precision="bfloat16"))
    exact, _ = train(toy, RECIPE)
    mask = torch.ones(64, 3, dtype=torch.bool)
    assert loss_of(vit, toy, mask) == pytest.approx(loss_of(exact, toy, mask), abs=0.1)
    assert next(vit.parameters()).dtype == torch.float32


def test_a_data_set_that_does_not_fit_is_refused(toy: Dataset) -> None:
    with pytest.raises(ValueError, match="expected at least 32 images of 10 classes, got 64 of 4"):
        pretrain(make_vit(num_classes=10), toy, RECIPE)
    with pytest.raises(ValueError, match="expected at least 66 images of 4 classes, got 64 of 4"):
        train(toy, replace(RECIPE, batch_size=66))


def test_tensorboard_has_the_losses(toy: Dataset, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result = train(toy, LONG, folder=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("full_loss", "skipped_loss"):
        logged = [scalar.value for scalar in events.Scalars(f"pretrain/{name}")]
        assert logged == pytest.approx(result.curve[name])


def test_two_processes_have_the_loss_curve_of_one(toy: Dataset, tmp_path: Path) -> None:
    """`torchrun` with two gloo processes, the same global batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*command, str(tmp_path)], check=True, timeout=240, env=environment, capture_output=True)
    divided = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    vit, whole = train(toy, LONG)
    assert divided[0] == divided[1]
    for name, column in whole.curve.items():
        assert divided[0]["curve"][name] == pytest.approx(column, rel=1e-3, abs=1e-4)
    assert divided[0]["norm"] == pytest.approx(sum(p.norm().item() for p in vit.parameters()), rel=1e-3)
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def main(folder: Path) -> None:
    """One of the processes of the test above."""
    torch.set_num_threads(1)
    vit = make_vit()
    result = pretrain(vit, toy_dataset(), LONG, folder=folder / "run", progress_bar=False)
    norm = sum(parameter.norm().item() for parameter in vit.parameters())
    values = {"curve": result.curve, "norm": norm}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_without_torchrun_a_rank_in_the_environment_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's scheduler may set it."""
    monkeypatch.setenv("RANK", "3")
    assert process_rank() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert process_rank() == 3
