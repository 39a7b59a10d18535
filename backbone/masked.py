"""Run a batch under a keep-mask, computing only the rows that are kept."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .protocol import ActionUnit, Backbone, num_units, unit_runner

AfterUnit = Callable[[Tensor, Tensor], None]  # rows [R] that ran a unit, their new tokens [R, N, D]


def run_rows(
    run: Callable[[Tensor], Tensor], tokens: Float[Tensor, "B N D"], rows: Shaped[Tensor, " R"]
) -> Float[Tensor, "B N D"]:
    """Apply `run` to some rows of a batch and pass the others through unchanged.

    Without gradients the rows are written back in place (no copy of the full batch) and `tokens` is returned,
    unless all rows run; with gradients a new tensor is returned.

    Args:
        run: maps tokens [R, N, D] to tokens of the same shape.
        tokens: all rows.
        rows: int64 indices of the rows to run, without repeats; on the device of `tokens`.
    """
    if len(rows) == 0:
        return tokens
    if len(rows) == len(tokens):
        return run(tokens)
    computed = run(tokens.index_select(0, rows))
    if torch.is_grad_enabled():
        return tokens.index_copy(0, rows, computed)
    return tokens.index_copy_(0, rows, computed)


def run_masked(
    backbone: Backbone,
    images: Shaped[Tensor, "B 3 H W"],
    keep_mask: Bool[Tensor, "B U"],
    action_unit: ActionUnit = "block",
    after: AfterUnit | None = None,
) -> Float[Tensor, "B K"]:
    """Logits of the backbone when image b runs exactly the (half-)blocks that row b of the mask keeps.

    Args:
        backbone: the ViT.
        images: float32 in [0, 1] or uint8.
        keep_mask: True where the unit runs; U is L with blocks and 2L with half-blocks. Best left on the CPU,
            as the host must know how many rows run each unit.
        action_unit: "block" or "half".
        after: as for `run_units`.

    Raises:
        ValueError: if the mask does not have one row per image and one column per unit.
    """
    expected = (len(images), num_units(backbone, action_unit))
    if keep_mask.shape != expected:
        raise ValueError(f"keep_mask: expected shape {expected}, got {tuple(keep_mask.shape)}")
    return backbone.classify(run_units(backbone, backbone.embed(images), keep_mask, action_unit, after=after))


def run_units(
    backbone: Backbone,
    tokens: Float[Tensor, "B N D"],
    keep_mask: Bool[Tensor, "B U"],
    action_unit: ActionUnit = "block",
    first: int = 0,
    after: AfterUnit | None = None,
) -> Float[Tensor, "B N D"]:
    """Run the kept units `first`, `first` + 1, ... on tokens; the mask's earlier columns are not looked at.

    `after` is called with what each unit has computed, unless no row runs it.
    """
    run_unit, kept = unit_runner(backbone, action_unit), keep_mask[:, first:].cpu().t()
    rows_of_all = kept.nonzero()[:, 1].to(tokens.device, non_blocking=True)  # one transfer
    for index, rows in enumerate(rows_of_all.split(kept.sum(1).tolist()), first):

        def run(active: Tensor, index: int = index, rows: Tensor = rows) -> Tensor:
            computed = run_unit(index, active)
            if after is not None:
                after(rows, computed)
            return computed

        tokens = run_rows(run, tokens, rows)
    return tokens
