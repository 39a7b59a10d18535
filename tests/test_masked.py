"""Masked batches: ends of the range, rows apart, gradients, in-place writing."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from vitskip.backbone.masked import run_masked, run_rows
from vitskip.backbone.protocol import num_units, unit_runner
from vitskip.backbone.vit import ViT

UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])
GRAD = pytest.mark.parametrize("grad", [True, False])
KEEP_MASK = torch.tensor(
    [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool
)


def run_one(vit: ViT, image: Tensor, keep_mask: Tensor, action_unit: str) -> Tensor:
    """Logits [K] of one image by the plain loop."""
    tokens = vit.embed(image[None])
    for index, kept in enumerate(keep_mask.tolist()):
        if kept:
            tokens = unit_runner(vit, action_unit)(index, tokens)
    return vit.classify(tokens)[0]


@UNITS
@GRAD
def test_all_run_equals_the_plain_vit(tiny_vit: ViT, tiny_images: Tensor, action_unit: str, grad: bool) -> None:
    keep_mask = torch.ones(6, num_units(tiny_vit, action_unit), dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        assert torch.equal(run_masked(tiny_vit, tiny_images, keep_mask, action_unit), tiny_vit(tiny_images))


@UNITS
@GRAD
def test_all_skip_equals_the_head_on_the_embedding(
    tiny_vit: ViT, tiny_images: Tensor, action_unit: str, grad: bool
) -> None:
    keep_mask = torch.zeros(6, num_units(tiny_vit, action_unit), dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        logits = run_masked(tiny_vit, tiny_images, keep_mask, action_unit)
        assert torch.equal(logits, tiny_vit.classify(tiny_vit.embed(tiny_images)))
        assert not torch.allclose(logits, tiny_vit(tiny_images), atol=0.1)


@UNITS
@GRAD
def test_each_row_runs_its_own_mask(tiny_vit: ViT, tiny_images: Tensor, action_unit: str, grad: bool) -> None:
    keep_mask = KEEP_MASK if action_unit == "block" else torch.cat([KEEP_MASK, KEEP_MASK.roll(1, 0)], 1)
    with torch.set_grad_enabled(grad):
        logits = run_masked(tiny_vit, tiny_images, keep_mask, action_unit)
        alone = torch.stack(
            [run_one(tiny_vit, image, mask, action_unit) for image, mask in zip(tiny_images, keep_mask, strict=True)]
        )
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


@UNITS
@GRAD
@pytest.mark.parametrize("row", range(6))
def test_other_rows_cannot_change_a_row(
    tiny_vit: ViT, tiny_images: Tensor, action_unit: str, grad: bool, row: int
) -> None:
    """Neither other images, be they NaN, nor other masks as long as as many rows run."""
    keep_mask = KEEP_MASK if action_unit == "block" else torch.cat([KEEP_MASK, KEEP_MASK.roll(1, 0)], 1)
    others = torch.arange(6) != row
    garbage = tiny_images.clone()
    garbage[others] = torch.nan
    shuffled = keep_mask.clone()
    shuffled[others] = keep_mask[others].roll(1, 0)
    with torch.set_grad_enabled(grad):
        expected = run_masked(tiny_vit, tiny_images, keep_mask, action_unit)[row]
        actual = run_masked(tiny_vit, garbage, shuffled, action_unit)
    torch.testing.assert_close(actual[row], expected, rtol=1e-6, atol=1e-6)
    assert actual[others].isnan().any()


def test_permuting_the_batch_permutes_the_logits(tiny_vit: ViT, tiny_images: Tensor) -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    logits = run_masked(tiny_vit, tiny_images, KEEP_MASK)
    torch.testing.assert_close(run_masked(tiny_vit, tiny_images[order], KEEP_MASK[order]), logits[order])


def test_gradients_reach_kept_blocks_only(tiny_vit: ViT, tiny_images: Tensor) -> None:
    keep_mask = torch.zeros(6, 4, dtype=torch.bool)
    keep_mask[:, 0], keep_mask[2, 3] = True, True
    run_masked(tiny_vit, tiny_images, keep_mask).square().sum().backward()
    for index, kept in enumerate(keep_mask.any(0).tolist()):
        for name, parameter in tiny_vit.blocks[index].named_parameters():
            assert (parameter.grad is not None) == kept, f"block {index} {name}"
            assert not kept or parameter.grad.abs().max() > 0 or name == "attention.qkv.bias"
    for parameter in (tiny_vit.cls_token, tiny_vit.pos_embed, *tiny_vit.patches.parameters(), tiny_vit.head.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_gradients_equal_those_of_the_rows_alone(tiny_vit: ViT, tiny_images: Tensor) -> None:
    def gradients(logits: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(logits.square().sum(), list(tiny_vit.parameters()), allow_unused=True))

    together = gradients(run_masked(tiny_vit, tiny_images, KEEP_MASK))
    rows = zip(tiny_images, KEEP_MASK, strict=True)
    alone = gradients(torch.stack([run_one(tiny_vit, image, mask, "block") for image, mask in rows]))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def double(tokens: Tensor) -> Tensor:
    return tokens * 2


def test_run_rows_writes_in_place_without_gradients() -> None:
    tokens = torch.ones(4, 2, 3)
    with torch.no_grad():
        result = run_rows(double, tokens, torch.tensor([3, 1]))
    assert result is tokens
    assert tokens[:, 0, 0].tolist() == [1, 2, 1, 2]


def test_run_rows_leaves_its_input_with_gradients() -> None:
    tokens = torch.ones(4, 2, 3, requires_grad=True)
    result = run_rows(double, tokens, torch.tensor([3, 1]))
    assert (tokens == 1).all()
    assert result[:, 0, 0].tolist() == [1, 2, 1, 2]
    result.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, 0, 0].tolist() == [1, 2, 1, 2]


@GRAD
def test_run_rows_computes_the_given_rows_only(grad: bool) -> None:
    seen: list[Tensor] = []

    def run(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens + 1

    tokens = torch.arange(4.0)[:, None, None].expand(4, 2, 3).clone()
    with torch.set_grad_enabled(grad):
        assert run_rows(run, tokens, torch.tensor([], dtype=torch.int64)) is tokens
        assert not seen
        run_rows(run, tokens, torch.tensor([2]))
        run_rows(run, tokens, torch.arange(4))
    assert [len(part) for part in seen] == [1, 4]
    assert (seen[0] == 2).all()


def test_images_are_not_modified(tiny_vit: ViT, tiny_images: Tensor) -> None:
    before = tiny_images.clone()
    with torch.no_grad():
        run_masked(tiny_vit, tiny_images, KEEP_MASK)
        run_masked(tiny_vit, tiny_images, ~KEEP_MASK)
    assert torch.equal(tiny_images, before)


@pytest.mark.parametrize(
    ("shape", "action_unit", "message"),
    [
        ((6, 3), "block", r"keep_mask: expected shape \(6, 4\), got \(6, 3\)"),
        ((6, 4), "half", r"keep_mask: expected shape \(6, 8\), got \(6, 4\)"),
        ((5, 4), "block", r"keep_mask: expected shape \(6, 4\), got \(5, 4\)"),
    ],
)
def test_a_mask_of_another_shape_is_refused(
    tiny_vit: ViT, tiny_images: Tensor, unchecked: None, shape: tuple[int, int], action_unit: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_masked(tiny_vit, tiny_images, torch.ones(shape, dtype=torch.bool), action_unit)


def test_a_mask_of_another_dtype_is_refused(tiny_vit: ViT, tiny_images: Tensor) -> None:
    with pytest.raises(TypeCheckError, match="keep_mask"):
        run_masked(tiny_vit, tiny_images, torch.ones(6, 4))
