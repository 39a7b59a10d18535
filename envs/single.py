"""`ViTSkip-v0` as a plain `gym.Env`: the batched core with one row."""

from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from ..backbone.registry import unknown_name
from .config import EnvArguments, EnvConfig
from .core import SkipCore
from .episodes import Episodes, Snapshot, to_host
from .observation import ObservationLayout
from .viewer import Frame, draw_ansi, draw_rgb

ROW = np.zeros(1, np.int64)


class SkipEnv(gym.Env[NDArray[Any], np.int64], EzPickle):
    """Decide for each block of a Vision Transformer whether to run or skip it, one image per episode.

    ## Description
    An image is embedded; then, block by block, the agent sees what the classifier head would say now and chooses
    to run the next block or to pass the tokens on unchanged. The aim is the right class for little compute.

    ## Action Space
    `Discrete(2)`: 0 = SKIP, 1 = RUN.

    ## Observation Space
    A flat float32 `Box`; `ObservationLayout` names its parts. With `observation="belief"` and K <= 10 classes: K
    class probabilities, the scaled logit of the top one, normalised entropy, top-two margin, one-hot of the next
    block, share of the blocks' MACs spent, and with `budgets` the one of this episode. "confidence" leaves the
    probabilities out; "tokens" adds the layer-normed class token and mean patch token.

    ## Rewards
    `-cost_weight * (the block's share of all blocks' MACs)` when a block runs, plus at the end a task reward by
    name: `correct`, `gain`, `margin`, `logprob`, `kl`, `blockdrop`, `dynavit` (see `envs/reward.py`).

    ## Starting State
    The embedded image and no block run; the image is drawn from `np_random`, or in sequence with
    `order="sequential"`, or given: `reset(options={"index": 17})`.

    ## Episode End
    `terminated` after the last block: L steps, or 2L with `action_unit="half"`. Never `truncated`.

    ## Information
    The same keys at reset and at every step: `index` (of the image), `block_index` (next unit to decide), `macs` (of
    the net so far, head included), `macs_fraction` (of the dense net), `is_success` (prediction equals label),
    `prediction`, `label`, `keep_mask` (bool [U]), `difficulty` (in [0, 1]; -1 where the data set does not know); with
    `budgets` also `budget`.

    ## Arguments
    JSON values: `dataset, data_root, split, augmentation, copies, backbone, device, observation, reward, cost,
    cost_weight, budgets, action_unit, order, prefix_cache` as in `EnvConfig`, and `render_mode` ("rgb_array" or
    "ansi").

    ## Version History
    * v0: first version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, *, render_mode: str | None = None, **arguments: Unpack[EnvArguments]) -> None:
        EzPickle.__init__(self, render_mode=render_mode, **arguments)
        self.render_mode = check_render_mode(render_mode)
        config = EnvConfig.from_arguments(arguments, "render_mode")
        self.core = SkipCore(config.load_backbone(), config.load_dataset(), config, num_envs=1)
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = observation_box(self.core.layout)
        self._episodes = Episodes(self.core, AutoresetMode.DISABLED)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; `options={"index": i}` chooses the image."""
        super().reset(seed=seed)
        chosen = check_options(options, "index").get("index")
        index = None if chosen is None else check_index([chosen], 1)
        self._episodes.seed(seed, ROW)
        self._episodes.generators = [self.np_random]
        self._episodes.reset(ROW, index)
        observation, info, *_ = _translate(self._episodes.snapshot())
        return observation, info

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Skip (0) or run (1) the next block.

        Raises:
            ValueError: for any other action.
            gymnasium.error.ResetNeeded: after the end of the episode.
        """
        transition = self._episodes.step(np.asarray(action)[None])
        observation, info, reward = _translate(transition.now, transition.reward)
        return observation, float(reward[0]), bool(transition.terminated[0]), False, info

    def render(self) -> NDArray[np.uint8] | str | None:
        """The episode so far: image, blocks, confidence, compute. uint8 [H, W, 3], or text with ANSI colours."""
        return render_row(self.core, 0, self.render_mode)

    def action_masks(self) -> NDArray[np.bool_]:
        """Both actions are always valid; for MaskablePPO. bool [2]."""
        return np.ones(2, bool)


def _translate(snapshot: Snapshot, *others: Tensor) -> tuple[Any, ...]:
    """Observation and info of the only row, and other tensors as arrays: in one transfer from the device."""
    observation, prediction, *values = to_host(snapshot.observation, snapshot.prediction, *others)
    info = snapshot.full_info(prediction.astype(np.int64))
    plain = {key: value[0] if value.ndim > 1 else value[0].item() for key, value in info.items()}
    return observation[0], plain, *values


def observation_box(layout: ObservationLayout) -> gym.spaces.Box:
    """The space of one observation, float32 [O]."""
    return gym.spaces.Box(-layout.bound, layout.bound, (layout.size,), np.float32)


def check_render_mode(render_mode: str | None) -> str | None:
    """The render mode, if it is one; ValueError otherwise."""
    if render_mode not in (None, "rgb_array", "ansi"):
        raise ValueError(f"render_mode: expected None, 'rgb_array' or 'ansi', got {render_mode!r}")
    return render_mode


def check_options(options: dict[str, Any] | None, *valid: str) -> dict[str, Any]:
    """The reset options; ValueError names the nearest valid key for an unknown one."""
    for key in options or {}:
        if key not in valid:
            raise unknown_name("reset option", key, valid)
    return options or {}


def check_index(index: Any, count: int) -> NDArray[np.int64]:
    """The images to show, int64 [count]; ValueError for anything but integers of that shape."""
    array = np.asarray(index)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise ValueError(f"index: expected integers [{count}], got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def render_row(core: SkipCore, row: int, render_mode: str | None) -> NDArray[np.uint8] | str | None:
    """One row's episode so far: uint8 [H, W, 3] with "rgb_array", text with ANSI colours with "ansi"."""
    if render_mode is None:
        return None
    if core.image_index[row] < 0:
        raise gym.error.ResetNeeded("render: expected an episode to draw, but there was none yet; call reset() first")
    frame = episode_frame(core, row)
    return draw_rgb(frame) if render_mode == "rgb_array" else draw_ansi(frame)


def episode_frame(core: SkipCore, row: int) -> Frame:
    """What to draw of one row."""
    index, decided = int(core.image_index[row]), int(core.unit_index[row])
    kept = (*core.keep_mask[row, :decided].tolist(), *(None,) * (core.num_units - decided))
    logits = core.logits[row].float().cpu()
    return Frame(
        image=core.dataset.images[index].permute(1, 2, 0).cpu().numpy(),
        kept=kept,
        action_unit=core.config.action_unit,
        confidences=logits.softmax(0).numpy(),
        classes=core.dataset.classes,
        label=int(core.dataset.labels[index]),
        prediction=int(logits.argmax()),
        macs_fraction=float(core.info()["macs_fraction"][row]),
        difficulty=float(core.dataset.difficulty[index]),
    )
