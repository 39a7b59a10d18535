"""Make a trained run small enough to ship: half-precision weights, no learning curve, what it reaches on the test part.

python -m vitskip.eval.ship RUN OUT [--budgets 0.3 0.4 0.5] [--data-root FOLDER]
"""

from pathlib import Path
from typing import Any

import torch
import tyro

from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import read
from ..backbone import Dataset, load_dataset
from .measurement import measure


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
    env = source.record["train"]["env"]
    test = load_dataset(env["dataset"], "test", data_root or env["data_root"])
    train = {**source.record["train"], "env": {**env, "data_root": None}}
    record = {"train": train, "seconds": source.record["seconds"], "trained_with": source.record["versions"]}
    record |= {key: source.record[key] for key in ("distilled_from", "distill") if key in source.record}
    net.save(out, backbone_name=source.backbone, record=record, dtype=torch.float16)
    record["test"] = results_on(DynamicViT.load(out), test, budgets)
    net.save(out, backbone_name=source.backbone, record=record, dtype=torch.float16)


def results_on(net: DynamicViT, test: Dataset, budgets: tuple[float, ...] = ()) -> dict[str, dict[str, Any]]:
    """Accuracy and share of the dense compute by budget, and of the full network ("dense")."""
    with torch.no_grad():
        full = torch.cat([net.backbone(batch).argmax(1) for batch in test.images.split(500)])
    found = {"dense": {"accuracy": (full == test.labels).double().mean().item(), "macs_fraction": 1.0}}
    for budget in budgets or sorted(net.budgets) or (None,):
        if budget is not None:
            net.set_budget(budget)
        measurement = measure(net, test)
        numbers = {"accuracy": measurement.accuracy, "macs_fraction": measurement.macs_fraction}
        found[str(budget or "net")] = numbers
    return found


if __name__ == "__main__":
    tyro.cli(ship)
