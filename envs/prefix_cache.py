"""States of episodes that were visited before: exact, in bounded memory, so that a frozen ViT computes each one once.

What the head says depends on the image and on the units that ran, and on nothing else. Agents come back to the same
images and take the same paths again and again; a step into a state that was visited before looks it up instead of
running the unit. The tokens of the row are then left behind. Where an episode leaves the known paths they are fetched
from the nearest state whose tokens are stored, or made again from the image, and the units in between run again.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbone import Backbone
from ..backbone.masked import run_units
from ..backbone.protocol import ActionUnit

MEGABYTE = 10**6  # bytes
WAYS = 8  # places of a bucket
ANSWERS_SHARE = 0.25  # of the memory, for what the head says; the rest is for tokens, which are many times larger

Compute = Callable[[NDArray[np.int64]], tuple[Tensor, ...]]

_version = attrgetter("_version")


class StateTable:
    """Rows of tensors under integer keys, in bounded memory: set-associative, as the caches of processors are.

    Each key belongs into one bucket of eight places, where a newcomer takes the place of the eldest. Keys are looked
    up and inserted many at once, by a few array operations. A copy, pickled or not, begins empty.

    Args:
        max_bytes: of keys and rows together. The memory is claimed with the first insertion, which gives the shapes;
            where it does not hold one bucket, nothing is kept.
    """

    _keys: NDArray[np.int64]  # -1 where a place is empty
    _eldest: NDArray[np.uint8]  # place of each bucket that is given away next
    _values: tuple[Tensor, ...] | None  # each [buckets * WAYS, ...]

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def __getstate__(self) -> dict[str, object]:
        return vars(type(self)(self.max_bytes)).copy()

    def __len__(self) -> int:
        return int((self._keys >= 0).sum())

    @property
    def nbytes(self) -> int:
        """Memory claimed [bytes]."""
        values = sum(value.numel() * value.element_size() for value in self._values or ())
        return self._keys.nbytes + self._eldest.nbytes + values

    def clear(self) -> None:
        """Forget everything, and give the memory back."""
        self._keys, self._eldest, self._values = np.zeros((0, WAYS), np.int64), np.zeros(0, np.uint8), None

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of keys of any shape, -1 where a key is not there."""
        if not len(self._keys):
            return np.full(keys.shape, -1)
        buckets = self._buckets(keys)
        equal = self._keys[buckets] == keys[..., None]
        return np.where(equal.any(-1), buckets * WAYS + equal.argmax(-1), -1)

    def rows(self, slots: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Copies of the rows in these slots [R], as they were inserted."""
        assert self._values is not None
        return tuple(value.index_select(0, _to(value.device, slots)) for value in self._values)

    def insert(self, keys: NDArray[np.int64], *values: Tensor) -> None:
        """Insert rows [R, ...] under keys [R] that are not there; of several newcomers to one bucket one stays."""
        if self._values is None:
            self._claim(values)
        if not len(self._keys):
            return
        buckets, chosen = np.unique(self._buckets(keys), return_index=True)
        places = self._eldest[buckets]
        self._keys[buckets, places] = keys[chosen]
        self._eldest[buckets] = (places + 1) % WAYS
        for mine, value in zip(self._values or (), values, strict=True):
            mine.index_copy_(
                0, _to(mine.device, buckets * WAYS + places), value.index_select(0, _to(value.device, chosen))
            )

    def _claim(self, values: tuple[Tensor, ...]) -> None:
        entry = self._keys.itemsize + sum(value[0].numel() * value.element_size() for value in values)
        buckets = self.max_bytes // (WAYS * entry + self._eldest.itemsize)
        try:
            self._keys, self._eldest = np.full((buckets, WAYS), -1), np.zeros(buckets, np.uint8)
            self._values = tuple(value.new_empty(buckets * WAYS, *value.shape[1:]) for value in values)
        except (MemoryError, RuntimeError) as error:
            raise ValueError(
                f"prefix_cache: expected no more memory than there is on {values[0].device}, got: {error}"
            ) from error

    def _buckets(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Spreads keys that lie close together, and those a power of two apart (SplitMix64, Steele et al., 2014)."""
        mixed = keys.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        high = mixed >> np.uint64(32)
        return ((high * np.uint64(len(self._keys))) >> np.uint64(32)).astype(np.int64)


class PrefixCache:
    """What the head said in the states visited so far, and the tokens of those computed last.

    A state's key is the number of its image followed by a bit for each unit that ran.

    Args:
        megabytes: bound of the memory [10^6 bytes]; a quarter is for answers, the rest for tokens.
        backbone: the ViT; what is stored is forgotten when its parameters change in place.
        images: uint8 or float [N, 3, H, W], on the backbone's device.
        action_unit: "block" or "half".
        num_units: U.
        num_envs: rows of the core.

    Attributes:
        visits: states asked for.
        hits: those that needed no computation.
        replays: units that ran again because tokens had been left behind.

    Raises:
        ValueError: if a state does not fit into 63 bits.
    """

    def __init__(
        self,
        megabytes: float,
        backbone: Backbone,
        images: Tensor,
        *,
        action_unit: ActionUnit,
        num_units: int,
        num_envs: int,
    ) -> None:
        if len(images) << num_units > 2**63:
            raise ValueError(
                f"prefix_cache: expected at most 2^63 states, got {len(images)} images of {num_units} units"
            )
        self.backbone, self.images, self.num_units = backbone, images, num_units
        self.action_unit: ActionUnit = action_unit
        max_bytes = int(megabytes * MEGABYTE)
        self.answers = StateTable(int(ANSWERS_SHARE * max_bytes))
        self.tokens = StateTable(max_bytes - self.answers.max_bytes)
        self.visits = self.hits = self.replays = 0
        self._of_tokens = np.full(num_envs, -1)  # key of the state whose tokens each row of the core holds; -1: none
        self._bits = 1 << np.arange(num_units)
        self._weights = [parameter for parameter in backbone.parameters() if not parameter.is_inference()]
        self._version = self._weights_version()

    @property
    def nbytes(self) -> int:
        """Memory claimed [bytes]."""
        return self.answers.nbytes + self.tokens.nbytes

    def clear(self) -> None:
        """Forget all states, those that rows hold too: they are made again from the image, with the weights as now."""
        self.answers.clear()
        self.tokens.clear()
        self._of_tokens.fill(-1)
        self._version = self._weights_version()

    def keys(self, image_index: NDArray[np.int64], keep_mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Keys [R] of the states of images [R] after the units of a mask [R, U]."""
        return (image_index << self.num_units) + keep_mask @ self._bits

    def reach(
        self,
        rows: NDArray[np.int64],
        keys: NDArray[np.int64],
        compute: Compute,
        tokens: Tensor,
        answers: tuple[Tensor, ...],
    ) -> None:
        """Bring rows to new states: those visited before are looked up, each other one is computed once.

        Args:
            rows: int64 [R], without repeats.
            keys: of the states to reach, [R].
            compute: maps some of the rows to their new tokens and answers.
            tokens: of all rows, [B, N, D]; written where computed.
            answers: of all rows, each [B, ...]; written in these rows.
        """
        if self._version != self._weights_version():
            self.clear()
        slots = self.answers.find(keys)
        found = slots >= 0
        self.visits += len(rows)
        self.hits += int(found.sum())
        if found.any():
            _write(answers, rows[found], self.answers.rows(slots[found]))
        if not found.all():
            self._reach_new(rows[~found], keys[~found], compute, tokens, answers)

    def _reach_new(
        self,
        rows: NDArray[np.int64],
        keys: NDArray[np.int64],
        compute: Compute,
        tokens: Tensor,
        answers: tuple[Tensor, ...],
    ) -> None:
        first, place = _distinct(keys)
        self.hits += len(rows) - len(first)
        new_tokens, *new = compute(rows[first])
        self._of_tokens[rows[first]] = keys[first]
        self.tokens.insert(keys[first], new_tokens)
        self.answers.insert(keys[first], *new)
        _write((tokens,), rows[first], (new_tokens,))
        everyone = new if len(first) == len(rows) else [one.index_select(0, _to(one.device, place)) for one in new]
        _write(answers, rows, everyone)

    @torch.no_grad()
    def current_tokens(
        self,
        rows: NDArray[np.int64],
        image_index: NDArray[np.int64],
        keep_mask: NDArray[np.bool_],
        tokens: Tensor,
    ) -> Tensor:
        """Tokens [R, N, D] of some rows, made again where the rows left theirs behind.

        Args:
            rows: int64 [R].
            image_index: of these rows, [R].
            keep_mask: of these rows, [R, U].
            tokens: of all rows, [B, N, D].
        """
        current = tokens.index_select(0, _to(tokens.device, rows))
        keys = self.keys(image_index, keep_mask)
        stale = np.flatnonzero(keys != self._of_tokens[rows])
        if not stale.size:
            return current
        slots = self.tokens.find(keys[stale])
        stored = slots >= 0
        if stored.any():
            _write([current], stale[stored], self.tokens.rows(slots[stored]))
        lost = stale[~stored]
        if lost.size:
            own = current.index_select(0, _to(tokens.device, lost))
            replayed = self._replay(rows[lost], image_index[lost], keep_mask[lost], own)
            _write([current], lost, [replayed])
        return current

    def _replay(
        self, rows: NDArray[np.int64], image_index: NDArray[np.int64], keep_mask: NDArray[np.bool_], own: Tensor
    ) -> Tensor:
        """Tokens [S, N, D] from those of the longest prefix that there are, by running the units after it.

        Args:
            rows: int64 [S].
            image_index: of these rows, [S].
            keep_mask: of these rows, [S, U].
            own: the tokens [S, N, D] that the rows have, whatever state they are of.
        """
        empty = image_index[:, None] << self.num_units
        prefixes = np.concatenate([empty, empty + np.cumsum(keep_mask * self._bits, 1)], 1)  # [S, U + 1]
        slots = self.tokens.find(prefixes)
        is_own = prefixes == self._of_tokens[rows, None]
        known = is_own | (slots >= 0)
        first = np.where(known.any(1), self.num_units - known[:, ::-1].argmax(1), 0)  # unit after that prefix
        here = np.arange(len(rows))
        stored, unknown = slots[here, first], np.flatnonzero(~known.any(1))
        fetched = np.flatnonzero(known[here, first] & ~is_own[here, first])
        if unknown.size:
            images = self.images[_to(own.device, image_index[unknown])]
            _write([own], unknown, [self.backbone.embed(images)])
        if fetched.size:
            _write([own], fetched, self.tokens.rows(stored[fetched]))
        pending = keep_mask & (np.arange(self.num_units) >= first[:, None])
        self.replays += int(pending.sum())
        return run_units(self.backbone, own, torch.from_numpy(pending), self.action_unit)

    def _weights_version(self) -> int:
        """Grows whenever a parameter is written to in place."""
        return sum(map(_version, self._weights))


def _distinct(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of one of each key, and for each key its place among them; the order stays where all differ."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    everything = np.arange(len(keys))
    return (everything, everything) if len(first) == len(keys) else (first, inverse)


def _write(targets: Sequence[Tensor], rows: NDArray[np.int64], values: Sequence[Tensor]) -> None:
    device_rows = _to(targets[0].device, rows)
    for target, value in zip(targets, values, strict=True):
        target.index_copy_(0, device_rows, value)


def _to(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
