"""The optimizers of pretraining: which parameters go where, and that several are one."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from vitskip.backbone.checkpoint import load_optimizer, optimizer_tensors
from vitskip.backbone.optimizers import OptimizerGroup, make_optimizer
from vitskip.backbone.recipe import Recipe
from vitskip.backbone.token_merging import merge_in_stem
from vitskip.backbone.vit import ViT

MUON = Recipe(optimizer="muon", learning_rate=1e-2)


def make_vit() -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=16, embed_dim=8, depth=2, num_heads=2, num_classes=3, stem="conv", patch_size=4)


def loss_of(vit: ViT) -> torch.Tensor:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.cross_entropy(vit(images), torch.arange(6) % 3)


def descend(vit: ViT, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(vit).backward()
        optimizer.step()


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    vit = make_vit()
    optimizer = make_optimizer(vit, MUON)
    assert isinstance(optimizer, OptimizerGroup)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    hidden = {id(p) for name, p in vit.named_parameters() if name.startswith("blocks") and name.endswith("weight")}
    hidden -= {id(p) for name, p in vit.named_parameters() if "norm" in name}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == hidden
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in vit.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.05, 0.0]
    merging = make_optimizer(merge_in_stem(vit, 3), MUON)
    assert [group["params"] for group in merging.param_groups] == [group["params"] for group in optimizer.param_groups]


def test_several_optimizers_step_as_they_would_alone() -> None:
    together, apart = make_vit(), make_vit()
    descend(together, make_optimizer(together, MUON), 3)
    hidden = [p for block in apart.blocks for p in block.parameters() if p.ndim == 2]
    others = [p for p in apart.parameters() if all(p is not q for q in hidden)]
    muon = torch.optim.Muon(hidden, 1e-2, 0.05, adjust_lr_fn="match_rms_adamw")
    decays = [[p for p in others if p.ndim in (2, 4)], [p for p in others if p.ndim not in (2, 4)]]
    groups = [{"params": decays[0], "weight_decay": 0.05}, {"params": decays[1], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, 1e-2, (0.9, 0.99), fused=True)
    for _ in range(3):
        apart.zero_grad()
        loss_of(apart).backward()
        muon.step()
        adamw.step()
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(apart.state_dict()[name], tensor)


def test_a_reloaded_group_goes_on_exactly() -> None:
    vit = make_vit()
    optimizer = make_optimizer(vit, MUON)
    descend(vit, optimizer, 3)
    other = deepcopy(vit)
    resumed = make_optimizer(other, MUON)
    load_optimizer(resumed, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    for run, over in ((vit, optimizer), (other, resumed)):
        for group in over.param_groups:
            group["lr"] = 5e-3
        descend(run, over, 2)
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)


def test_muon_needs_to_know_the_blocks(unchecked: None) -> None:
    with pytest.raises(ValueError, match="vit: expected a backbone with its modules as `blocks`, got Linear"):
        make_optimizer(torch.nn.Linear(2, 2), MUON)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adm'"):
        replace(MUON, optimizer="adm")
