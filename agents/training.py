"""Train one agent, on a frozen backbone or jointly with it, and leave a run directory."""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

from ..backbone import load_dataset
from ..backbone.datasets import validation_splits
from ..backbone.paths import units_of_block_0
from ..backbone.weights import save_weights
from ..envs.config import EnvArguments, EnvConfig
from ..envs.core import SkipCore
from ..envs.plan import PlanVecEnv
from ..envs.sb3 import SkipVecEnv
from .algorithms import ALGORITHMS, RESERVED, check_hyperparameters, make_agent
from .backbone_tuner import JointConfig
from .budget import BudgetController, calibrate, check_budget
from .callbacks import Curriculum, SkipStatistics
from .checkpoint import Checkpoint, Resumable
from .dynamic_vit import DynamicViT
from .extraction import extract_planner
from .image_runner import make_runner
from .joint import JointTraining, check_rounds
from .policy import Policy
from .run_directory import check_settings, comparable, is_run, read

CALIBRATION_IMAGES = 2_000


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        algorithm: name in `ALGORITHMS`.
        total_timesteps: environment steps; an episode has L of them, with `upfront` one.
        seed: of images, weights and sampling.
        num_envs: images side by side; the algorithm's default where None.
        hyperparameters: override the algorithm's, as its class names them.
        env: arguments of the environment.
        budget: mean share of the dense net's MACs to hold, policy included; the cost weight is then steered, and the
            result corrected on validation images. None leaves the cost weight alone; for an agent of several budgets
            give `budgets` to the environment, which are held in the same way.
        joint: train the ViT too, on the training part, whatever split the agent learns on; None leaves it frozen.
        curriculum: share of the steps, in [0, 1], over which the units become free to be skipped, from the last to the
            first.
        upfront: decide all units at once, after so many blocks; 0 decides one by one.

    Raises:
        ValueError: for a value outside these.
    """

    algorithm: str = "ppo"
    total_timesteps: int = 1_000_000
    seed: int = 0
    num_envs: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    env: EnvArguments = field(default_factory=EnvArguments)
    budget: float | None = None
    joint: JointConfig | None = None
    curriculum: float = 0.0
    upfront: int = 0

    def __post_init__(self) -> None:
        if self.total_timesteps < 1:
            raise ValueError(f"total_timesteps: expected at least 1, got {self.total_timesteps}")
        check_budget(self.budget)
        if self.budget is not None and self.env_config.budgets:
            raise ValueError(f"budget: expected none beside the environment's budgets, got {self.budget}")
        if self.budgets and not self.env_config.cost_weight > 0:
            raise ValueError(
                f"cost_weight: expected more than 0 to steer to a budget, got {self.env_config.cost_weight}"
            )
        if not 0 <= self.curriculum <= 1:
            raise ValueError(f"curriculum: expected a share of the steps in [0, 1], got {self.curriculum}")
        if self.upfront and not ALGORITHMS[self.algorithm].plans:
            able = ", ".join(name for name in ALGORITHMS if ALGORITHMS[name].plans)
            raise ValueError(
                f"upfront: expected an algorithm that can decide all at once ({able}), got {self.algorithm}"
            )
        reserved = RESERVED & self.hyperparameters.keys()
        if reserved:
            raise ValueError(f"hyperparameters: expected none of {', '.join(sorted(RESERVED))}, got {sorted(reserved)}")
        try:
            json.dumps(self.hyperparameters)
        except TypeError as error:
            raise ValueError(f"hyperparameters: expected JSON values, which a run can record, got: {error}") from error

    @property
    def env_config(self) -> EnvConfig:
        """The environment's arguments, those that the algorithm was published with as defaults."""
        return EnvConfig.from_arguments({**ALGORITHMS[self.algorithm].env, **self.env})

    @property
    def record(self) -> dict[str, Any]:
        """All settings with the defaults filled in, as JSON has them."""
        algorithm = ALGORITHMS[self.algorithm]
        settings = {
            **asdict(self),
            "num_envs": algorithm.num_envs if self.num_envs is None else self.num_envs,
            "hyperparameters": {**algorithm.hyperparameters, **self.hyperparameters},
            "env": asdict(self.env_config),
        }
        return json.loads(json.dumps(settings))

    @property
    def budgets(self) -> tuple[float, ...]:
        """All that are held: the environment's, or the one, or none."""
        return self.env_config.budgets or (() if self.budget is None else (self.budget,))


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        path: the run directory.
        net: the deployable network with the agent's most likely decisions.
        curve: (environment steps, mean episode return, success rate, MACs fraction) after each rollout, columns.
        seconds: wall time of learning.
    """

    path: Path
    net: DynamicViT
    curve: dict[str, list[float]]
    seconds: float


def train(config: TrainConfig, path: str | Path, *, progress_bar: bool = True) -> TrainResult:
    """Train an agent by Stable-Baselines3 and write a run directory; go on with one that was stopped.

    A run that is finished is not trained again, but read.

    The directory holds what `DynamicViT.load` needs, and besides `agent.safetensors` (all that the algorithm learnt),
    the learning curve, and TensorBoard events under `tensorboard/`.

    Args:
        config: what to train.
        path: run directory to write.
        progress_bar: show one.

    Raises:
        ValueError: for unknown names or arguments, before anything is written, and if the folder holds another run or
            the checkpoint of one.
    """
    path, algorithm, env_config = Path(path), ALGORITHMS[config.algorithm], config.env_config
    check_hyperparameters(config.algorithm, config.hyperparameters)
    check_settings(path, config.record)
    if is_run(path):
        return _result(path, env_config)
    core = _make_core(config, env_config)
    venv: VecEnv = SkipVecEnv(core, seed=config.seed)
    if config.upfront:
        venv = PlanVecEnv(venv, config.upfront)
    agent = make_agent(
        config.algorithm, venv, seed=config.seed, tensorboard_log=str(path / "tensorboard"), **config.hyperparameters
    )
    if config.joint:
        check_rounds(agent, config.total_timesteps, config.joint)

    def extract() -> Policy:
        if config.upfront:
            return extract_planner(agent.policy, core.layout, config.upfront)
        return algorithm.extract(agent.policy, core.layout)

    statistics, joint, callbacks = _callbacks(config, core, extract, progress_bar)
    checkpoint = Checkpoint(
        path / "checkpoint.safetensors",
        {name: comparable(setting) for name, setting in config.record.items()},
        agent,
        core,
        {type(callback).__name__: callback for callback in callbacks if isinstance(callback, Resumable)},
        joint.tuner if joint else None,
    )
    done = checkpoint.resume()
    agent.learn(
        config.total_timesteps - done,
        callback=CallbackList([checkpoint, *callbacks]),
        log_interval=1,
        reset_num_timesteps=not done,
        progress_bar=progress_bar,
    )
    if core.prefix_cache is not None:
        core.prefix_cache.clear()  # calibration claims as much
    net = DynamicViT(core.backbone, extract(), action_unit=env_config.action_unit).to(core.device).eval()
    record = {
        "train": config.record,
        "seconds": checkpoint.elapsed,
        "curve": statistics.curve,
        "cost_weight": core.cost_weight.tolist(),
        "joint": joint.curve if joint else None,
        "calibrated_macs_fraction": _calibrate(net, env_config, config.budgets),
    }
    _save(path, net, agent, env_config, record)
    checkpoint.finish()
    return _result(path, env_config)


def _result(path: Path, env_config: EnvConfig) -> TrainResult:
    """As the finished run tells; its network is nobody else's."""
    record, net = read(path).record, DynamicViT.load(path, device=env_config.device).requires_grad_(False)
    return TrainResult(path, net, record["curve"], record["seconds"])


def _make_core(config: TrainConfig, env_config: EnvConfig) -> SkipCore:
    backbone = env_config.load_backbone()
    if config.joint:
        backbone = deepcopy(backbone)  # the loaded one is shared by all environments of this process
    if config.upfront and not 1 <= config.upfront < backbone.depth:
        raise ValueError(f"upfront: expected 0, or 1..{backbone.depth - 1} blocks, got {config.upfront}")
    most = backbone.macs.total / backbone.macs.dense
    if config.budgets and max(config.budgets) > most:
        raise ValueError(f"budget: expected at most {most:.3f}, what this backbone spends, got {max(config.budgets)}")
    macs, forced = backbone.macs, config.upfront * units_of_block_0(env_config.action_unit)
    least = (macs.stem + sum(macs.units(env_config.action_unit)[:forced]) + macs.head) / macs.dense
    if config.budgets and min(config.budgets) < least:
        raise ValueError(
            f"budget: expected at least {least:.3f}, what is spent before the first decision, got {min(config.budgets)}"
        )
    return SkipCore(backbone, env_config.load_dataset(), env_config, config.record["num_envs"])


def _callbacks(
    config: TrainConfig, core: SkipCore, extract: Callable[[], Policy], progress_bar: bool
) -> tuple[SkipStatistics, JointTraining | None, list[BaseCallback]]:
    statistics, joint = SkipStatistics(), None
    callbacks: list[BaseCallback] = [statistics]
    if config.budgets:
        callbacks.append(BudgetController(core, config.budgets, statistics))
    if config.curriculum:
        callbacks.append(Curriculum(core, config.curriculum))
    if config.joint:
        images = config.env_config.load_dataset("train").to(core.device)
        joint = JointTraining(
            core,
            extract,
            config.joint,
            dataset=images,
            draws=ALGORITHMS[config.algorithm].draws,
            seed=config.seed,
            progress_bar=progress_bar,
        )
        callbacks.append(joint)
    return statistics, joint, callbacks


def _calibrate(net: DynamicViT, env_config: EnvConfig, budgets: Sequence[float]) -> list[float]:
    """The share that is spent at each budget."""
    if not budgets:
        return []
    validation = load_dataset(env_config.dataset, validation_splits(env_config.split)[0], env_config.data_root)
    run = make_runner(validation.first(CALIBRATION_IMAGES), net.backbone, env_config.prefix_cache)
    return [calibrate(net, run, budget) for budget in budgets]


def _save(path: Path, net: DynamicViT, agent: BaseAlgorithm, env_config: EnvConfig, record: dict[str, Any]) -> None:
    save_weights(path / "agent.safetensors", agent.policy)
    net.save(path, backbone_name=env_config.backbone, record=record)
