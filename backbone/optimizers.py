"""The optimizers of pretraining: AdamW alone, or with Muon on the matrices of the blocks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .protocol import Backbone
from .recipe import Recipe
from .token_merging import unmerged


class OptimizerGroup(torch.optim.Optimizer):
    """Several optimizers that step, save and load as one.

    Args:
        parts: over disjoint parameters; their groups follow one another in `param_groups`.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def step(self, closure: Any = None) -> Any:
        for part in self.parts:
            part.step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Make the parts work on this optimizer's state and groups."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[first:last]
            first = last


def make_optimizer(vit: Backbone, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe; only matrices and convolutions decay.

    Raises:
        ValueError: if the recipe wants Muon, and the backbone does not have its modules as `blocks`.
    """
    parameters = list(vit.parameters())
    if recipe.optimizer == "adamw":
        return _adamw(parameters, recipe)
    hidden = [p for block in module_blocks(vit) for p in block.parameters() if p.ndim == 2]
    numbers = {id(p) for p in hidden}
    muon = torch.optim.Muon(
        hidden, recipe.learning_rate, recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )  # steps as large as AdamW's, so that one learning rate serves both
    return OptimizerGroup(muon, _adamw([p for p in parameters if id(p) not in numbers], recipe))


def _adamw(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in parameters if p.ndim in (2, 4)]
    others = [p for p in parameters if p.ndim not in (2, 4)]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def module_blocks(vit: Backbone) -> Iterable[nn.Module]:
    """The blocks of a backbone that has them as modules, or of the one that it merges the tokens of.

    Raises:
        ValueError: if it does not.
    """
    blocks: Iterable[nn.Module] | None = getattr(unmerged(vit), "blocks", None)
    if blocks is None:
        raise ValueError(f"vit: expected a backbone with its modules as `blocks`, got {type(vit).__name__}")
    return blocks
