"""`vitskip compare`: algorithms at several budgets and seeds, beside every baseline, as one table that can be resumed.

Each cell is a run directory with its own evaluation; what is finished is only read. Everything is chosen on the
validation part; the test part is touched once per cell, by `evaluate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..agents.backbone_tuner import JointConfig, tune_dense
from ..agents.baselines import whole_network
from ..agents.dynamic_vit import DynamicViT
from ..agents.run_directory import Run, check_settings, is_run, read, versions
from ..agents.training import TrainConfig, train
from ..backbone import load_backbone, load_dataset
from ..backbone.backbones import original_name, unmerged_name
from ..backbone.json_files import read_json, write_json
from .evaluation import evaluate_against, validation_masks
from .measurement import Measurement, measure
from .rivals import Rivals
from .static_networks import static_rivals


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        config: what is trained.
        folder: its run directory; that of an agent of several budgets is shared by several cells.
        budget: at which it is evaluated.
    """

    config: TrainConfig
    folder: Path
    budget: float

    @property
    def regime(self) -> str:
        """What is trained besides the agent, and how it decides."""
        tuned = self.tuned_backbone is not None
        trained = "joint" if self.config.joint else "frozen" + " on a jointly trained net" * tuned
        up_front = f", up front after {self.config.upfront}" if self.config.upfront else ""
        return trained + up_front + (", one agent" if self.config.env_config.budgets else "")

    @property
    def file(self) -> Path:
        """Where its numbers are kept."""
        return self.folder / f"evaluation-{100 * self.budget:g}.json"

    @property
    def tuned_backbone(self) -> Run | None:
        """The joint run that made the backbone; None for any other backbone."""
        path = Path(unmerged_name(self.config.env_config.backbone))
        run = read(path) if is_run(path) else None
        return run if run and run.record.get("train", {}).get("joint") else None

    @property
    def dense_folder(self) -> Path | None:
        """Where the full network is kept that was trained as long as a joint run trains its own.

        The run is this one, or that which made the backbone; None if there is no such run.
        """
        if self.config.joint:
            return _dense_beside(self.folder, self.config.seed)
        made = self.tuned_backbone
        return _dense_beside(made.path, made.record["train"].get("seed")) if made else None

    def evaluation(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The finished cell's numbers; None if it is not finished, or was evaluated with other settings."""
        if not self.file.is_file():
            return None
        known = read_json(self.file)
        return known if known.get("settings", settings) == settings else None


def check_each_once(**lists: Sequence[Any]) -> None:
    """Refuse what would narrow an interval without a measurement, or leave a table empty.

    Raises:
        ValueError: for a list with nothing in it or something twice.
    """
    for name, values in lists.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: expected one or more, each once, got {list(values)}")


def make_cells(
    base: TrainConfig, out: Path, algorithms: Sequence[str], budgets: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """All combinations, first seed first, so that a comparison that is stopped has a whole table of few seeds.

    One agent for each budget, or one that is shown the budget where `base.env` has `budgets`, which then must span
    those of the table.

    Raises:
        ValueError: for an unknown algorithm, a budget outside (0, 1), and what comes twice or not at all.
    """
    check_each_once(algorithms=algorithms, budgets=budgets, seeds=seeds)
    kind = ("joint-" if base.joint else "") + (f"upfront{base.upfront}-" if base.upfront else "")
    cells = []
    for seed in seeds:
        for algorithm in algorithms:
            for budget in budgets:
                shown = base.env_config.budgets
                config = replace(base, algorithm=algorithm, budget=None if shown else budget, seed=seed)
                _ = config.env_config  # unknown names are refused before anything is trained
                name = f"{kind}{algorithm}-{'all' if shown else f'{100 * budget:g}'}-seed{seed}"
                cells.append(Cell(config, out / name, budget))
                if shown and not min(shown) <= budget <= max(shown):
                    raise ValueError(f"budgets: expected them within those that the agent is shown, got {budget}")
    return cells


def compare(
    cells: Sequence[Cell], *, rivals: Sequence[str] = (), static_mask_images: int = 256, progress_bar: bool = True
) -> list[dict[str, Any]]:
    """Train and evaluate what is missing; what was evaluated beside other rivals is evaluated again.

    Args:
        cells: from `make_cells`.
        rivals: further backbones to compare with, by name or folder.
        static_mask_images: validation images on which all static masks are tried; 0 leaves that baseline out.
        progress_bar: show one.

    Returns:
        The evaluation of each cell, in order.

    Raises:
        ValueError: if a finished run was trained with other settings, or a rival is unknown; before any training.
    """
    for cell in cells:
        check_settings(cell.folder, cell.config.record)
        _check_dense(cell)
    for name in rivals:
        load_backbone(name)  # before hours of training, if it is unknown
    settings = {"rivals": list(rivals), "static_mask_images": static_mask_images}
    opponents: dict[Path | None, Rivals] = {}
    references: dict[int, dict[str, Measurement]] = {}  # by seed
    evaluations = []
    for cell in tqdm(cells, desc="compare", unit="run", disable=None if progress_bar else True):
        known = cell.evaluation(settings)
        if known is None:
            trained = cell.folder if cell.config.joint else None  # a frozen backbone is the same for all
            if trained not in opponents:
                opponents.clear()  # gives their memory back before training claims as much
            net = _trained(cell, progress_bar)
            seed = cell.config.seed
            if seed not in references:
                references[seed] = _references(cell, progress_bar)
            if trained not in opponents:
                opponents[trained] = _opponents(cell, net, rivals, static_mask_images)
            found = evaluate_against(opponents[trained], net, references[seed])
            known = {
                "algorithm": cell.config.algorithm,
                "regime": cell.regime,
                "budget": cell.budget,
                "seed": cell.config.seed,
                **found.summary(),
                "settings": settings,
                "versions": versions(),
            }
            write_json(cell.file, known)
        evaluations.append(known)
    return evaluations


def tuned_dense(run: Run) -> Path | None:
    """The run directory of the dense network trained as long as a joint run's own; None if `compare` left none."""
    folder, joint = _dense_beside(run.path, run.record["train"]["seed"]), run.record["train"]["joint"]
    if not is_run(folder):
        return None
    there = read(folder)
    fits = there.record["train"]["joint"] == asdict(JointConfig(**joint).of_dense) and there.backbone == run.original
    return folder if fits else None


def _dense_beside(folder: Path, seed: int | None) -> Path:
    return folder.parent / f"dense-seed{seed}"


def _trained(cell: Cell, progress_bar: bool) -> DynamicViT:
    if not is_run(cell.folder):
        train(cell.config, cell.folder, progress_bar=progress_bar)
    env = cell.config.env_config
    return DynamicViT.load(cell.folder, device=env.device, budget=cell.budget if env.budgets else None)


def _opponents(cell: Cell, net: DynamicViT, names: Sequence[str], static_mask_images: int) -> Rivals:
    env = cell.config.env_config
    validation, test = (load_dataset(env.dataset, split, env.data_root) for split in ("validation", "test"))
    masks = None
    if static_mask_images:
        masks = validation_masks(net.backbone, validation, static_mask_images, net.action_unit)
    return Rivals(net, validation, test, masks, static_rivals(net.backbone, names), env.prefix_cache)


def _references(cell: Cell, progress_bar: bool) -> dict[str, Measurement]:
    """Dense networks on test that a cell's own full network is not: what it began with, and that tuned as long.

    The former of a joint cell, and of one whose backbone merges tokens or was trained jointly; the latter of a joint
    one, kept beside the cells as a run directory that runs all. Of a backbone that was trained jointly it is the one
    beside that run, left out if there is none.
    """
    config, env = cell.config, cell.config.env_config
    name = original_name(env.backbone)
    if config.joint is None and name == env.backbone:
        return {}
    test = load_dataset(env.dataset, "test", env.data_root)
    whole = whole_network(load_backbone(name).to(env.device))
    found = {"original dense": measure(whole, test, description="original")}
    folder = cell.dense_folder
    if folder and config.joint and not is_run(folder):
        _tune_dense(cell, config.joint, whole, folder, progress_bar)
    if folder and is_run(folder):
        tuned = DynamicViT.load(folder, device=env.device)
        found["tuned dense"] = measure(tuned, test, description="tuned dense")
    return found


def _check_dense(cell: Cell) -> None:
    """Make sure that the dense network of a joint cell, if it is there, is the one that would be trained."""
    joint, folder = cell.config.joint, cell.dense_folder
    if not (joint and folder and is_run(folder)):
        return
    check_settings(folder, {"joint": asdict(joint.of_dense)})
    name, known = original_name(cell.config.env_config.backbone), read(folder).backbone
    if known != name:
        raise ValueError(f"{folder}: expected {name} tuned, got {known}; choose another folder, or remove this one")


def _tune_dense(cell: Cell, joint: JointConfig, whole: DynamicViT, folder: Path, progress_bar: bool) -> None:
    """Train a dense network as long as a joint run trains its own; `whole` is changed."""
    env = cell.config.env_config
    dataset, checkpoint = env.load_dataset("train").to(env.device), folder / "checkpoint.safetensors"
    tune_dense(whole.backbone, dataset, joint.of_dense, checkpoint, seed=cell.config.seed, progress_bar=progress_bar)
    record = {"train": {"joint": asdict(joint.of_dense), "seed": cell.config.seed}}
    whole.save(folder, backbone_name=original_name(env.backbone), record=record)
    checkpoint.unlink()
