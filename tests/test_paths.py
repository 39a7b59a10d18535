"""The losses of a step: what the full path teaches the skipped ones, and that all are the network's own paths."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitskip.backbone.masked import run_masked
from vitskip.backbone.paths import Paths, path_losses
from vitskip.backbone.vit import ViT

ROWS = torch.arange(5)


def losses(full: Tensor, skipped: Tensor, targets: Tensor, rows: Tensor = ROWS, **changes: float) -> list[float]:
    settings = {"label_smoothing": 0.0, "distillation": 0.0} | changes
    return [loss.item() for loss in path_losses(full, skipped.unsqueeze(1), targets, rows, **settings)]


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    return draw[0], draw[1], F.one_hot(torch.tensor([0, 2, 1, 1, 0]), 3).float()


def test_the_paths_are_the_networks(tiny_vit: ViT, tiny_images: Tensor) -> None:
    images = tiny_images.float() / 255
    rows = torch.tensor([0, 2])
    for skip, units in (("block", 4), ("half", 8)):
        keep_mask = torch.rand(len(images), units, generator=torch.Generator().manual_seed(1)) < 0.5
        keep_mask[:, : units // 4] = True
        full, skipped = Paths(tiny_vit, skip)(images, keep_mask, rows)
        torch.testing.assert_close(full, tiny_vit(images)[rows])
        torch.testing.assert_close(skipped, run_masked(tiny_vit, images, keep_mask, skip).unsqueeze(1))
    full, skipped = Paths(tiny_vit, "none")(images, keep_mask, torch.arange(len(images)))
    torch.testing.assert_close(full, tiny_vit(images))
    assert skipped is None
    full, skipped = Paths(tiny_vit, "tail")(images, keep_mask, torch.arange(len(images)))
    torch.testing.assert_close(full, tiny_vit(images))
    for k in range(1, tiny_vit.depth):
        first_k = (torch.arange(tiny_vit.depth) < k).expand(len(images), -1)
        torch.testing.assert_close(skipped[:, k - 1], run_masked(tiny_vit, images, first_k))


def test_without_distillation_both_are_cross_entropies(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    full, skipped, targets = logits
    for smoothing in (0.0, 0.1):
        expected = [F.cross_entropy(one, targets.argmax(1), label_smoothing=smoothing).item() for one in logits[:2]]
        assert losses(full, skipped, targets, label_smoothing=smoothing) == pytest.approx(expected)


def test_distillation_is_the_cross_entropy_to_the_full_paths_belief(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    full, skipped, targets = logits
    taught = -(full.softmax(1) * skipped.log_softmax(1)).sum(1).mean().item()
    labelled = F.cross_entropy(skipped, targets.argmax(1)).item()
    assert losses(full, skipped, targets, distillation=1.0)[1] == pytest.approx(taught)
    assert losses(full, skipped, targets, distillation=0.3)[1] == pytest.approx(0.3 * taught + 0.7 * labelled)


def test_only_rows_with_a_full_path_are_taught(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    full, skipped, targets = logits
    rows = torch.tensor([1, 3])
    full_loss, skipped_loss = losses(full[rows], skipped, targets, rows, distillation=1.0)
    each = F.cross_entropy(skipped, targets.argmax(1), reduction="none")
    each[rows] = -(full[rows].softmax(1) * skipped[rows].log_softmax(1)).sum(1)
    assert skipped_loss == pytest.approx(each.mean().item())
    assert full_loss == pytest.approx(F.cross_entropy(full[rows], targets[rows].argmax(1), reduction="sum").item() / 5)


def test_the_teacher_is_not_taught(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    full, skipped, targets = logits[0].requires_grad_(), logits[1], logits[2]
    _, skipped_loss = path_losses(full, skipped.unsqueeze(1), targets, ROWS, label_smoothing=0.0, distillation=1.0)
    assert not skipped_loss.requires_grad


def test_several_skipped_paths_weigh_as_much_as_one(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    full, skipped, targets = logits
    others = torch.stack([skipped, full, skipped.flip(1)], 1)
    _, together = path_losses(full, others, targets, ROWS, label_smoothing=0.1, distillation=0.5)
    apart = [losses(full, one, targets, label_smoothing=0.1, distillation=0.5)[1] for one in others.unbind(1)]
    assert together.item() == pytest.approx(sum(apart) / 3)


def test_a_net_of_one_block_has_no_prefixes_to_train() -> None:
    vit = ViT(image_size=8, patch_size=4, embed_dim=4, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="skip: expected a net of at least 2 blocks to train its prefixes, got 1"):
        Paths(vit, "tail")
