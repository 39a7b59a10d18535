"""Make a trained run small enough to ship: half-precision weights, no learning curve, what it reaches on the test part.

python -m vitskip.eval.ship RUN OUT [--budgets 0.3 0.4 0.5] [--data-root FOLDER]
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro

from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import is_run, read
from ..backbone import Backbone, Dataset, load_dataset
from ..backbone.allocator import keep_buffers
from ..backbone.token_merging import unmerged
from .measurement import measure
from .static_networks import run_whole
from .statistics import paired_test


def ship(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    budgets: tuple[float, ...] = (),
    data_root: str | None = None,
) -> None:
    """Write the small copy.

    Args:
        run: run directory.
        out: run directory to write.
        budgets: that are measured, of an agent of several; all of them if none is given.
        data_root: folder of the data set, if it is not where it was in training.
    """
    source, net = read(run), DynamicViT.load(run)
    if out.resolve() == source.path.resolve():
        raise ValueError(f"out: expected another folder than that of the run, got {out}")
    env = source.record["train"]["env"]
    test = load_dataset(env["dataset"], "test", data_root or env["data_root"])
    train = {**source.record["train"], "env": {**env, "data_root": None}}
    record = {"train": train, "seconds": source.record["seconds"], "trained_with": source.record["versions"]}
    record |= {key: source.record[key] for key in ("distilled_from", "distill") if key in source.record}
    if is_run(Path(source.backbone)):  # a joint run, which made the net that this agent learnt on
        record["backbone_train"] = read(Path(source.backbone)).record["train"]
    net.save(out, backbone_name=source.backbone, record=record, dtype=torch.float16)
    record["test"] = results_on(DynamicViT.load(out), test, budgets, source.load_original())
    net.save(out, backbone_name=source.backbone, record=record, dtype=torch.float16)


def results_on(
    net: DynamicViT, test: Dataset, budgets: tuple[float, ...] = (), original: Backbone | None = None
) -> dict[str, dict[str, Any]]:
    """Accuracy and share of the dense compute by budget, and paired tests against full networks.

    Those are the net's own ("dense"), and the one that joint training or merging of tokens began with ("original"). The
    net's own without merging ("unmerged"), which runs where deciding does not pay, is measured only.
    """
    networks = {"dense": net.backbone} | ({"original": original} if original else {})
    full = {name: run_whole(network, test) for name, network in networks.items()}
    measured, whole = dict(full), unmerged(net.backbone)
    if whole is not net.backbone:
        networks["unmerged"], measured["unmerged"] = whole, run_whole(whole, test)
    found: dict[str, dict[str, Any]] = {
        name: {"accuracy": float(correct.mean()), "macs_fraction": networks[name].macs.total / net.backbone.macs.dense}
        for name, correct in measured.items()
    }
    for budget in budgets or sorted(net.budgets) or (None,):
        if budget is not None:
            net.set_budget(budget)
        measurement = measure(net, test)
        tests = {f"minus_{name}": asdict(paired_test(measurement.correct, correct)) for name, correct in full.items()}
        numbers = {"accuracy": measurement.accuracy, "macs_fraction": measurement.macs_fraction}
        found[str(budget or "net")] = numbers | tests
    return found


if __name__ == "__main__":
    keep_buffers()
    tyro.cli(ship)
