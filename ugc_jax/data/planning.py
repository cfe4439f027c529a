"""The plan of a training run: which examples are in which row of which step.

It depends only on the examples' sizes, from the index, and on the settings; every process makes the
same plan before it opens a record. So the shapes, the number of steps and the order of the data are
known at the start, the state of the data is the number of the next step, and a run may be resumed
with other processes or workers.

    training_set (drop examples that do not fit) -> draws (mix, shuffle) -> rows (pack) -> steps
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ugc_jax.data.batching import BucketKey, Buckets, size_of_media
from ugc_jax.data.prompt import ChatTokenizer, is_learned, text_counts
from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import check_minimum

logger = logging.getLogger(__name__)

WINDOW = 4096  # examples that are packed together
SLACK = 1.1  # of picture and sound per token that a packed row can hold, over the data's average
# Axes of BucketKey whose sizes add up in a row.
_SUMMED = [BucketKey._fields.index(field) for field in ("tokens", "grids", "chunks")]
_DRAWS, _ROWS = 0, 1  # part of the seeds, so that draws and rows have independent orders


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the data and of its batches."""

    train: str  # extracted folder, or several: A,B (all of both) or A=2,B=1 (examples drawn 2:1)
    eval: str | None = None  # extracted folder to evaluate on
    batch_size: int = 8  # rows of a batch, over all devices and accumulated microbatches
    tokens: int = 4096  # most in a row; longer examples are dropped
    shuffle: bool = True  # false: the order of the folder, as far as rows of one shape keep it
    seed: int = 0  # of the order
    grids: int | None = None  # pairs of frames in a row (default: what the data needs)
    windows: int | None = None  # attention windows of a frame (default: what the data needs)
    chunks: int | None = None  # two-second chunks of sound in a row (default: what the data needs)
    workers: int = 1  # processes that read and lay out batches; 0: a thread of this process
    read_ahead: int = 2  # batches that each of them holds ready
    # folder on this machine for copies of files of remote records; none: one for temporary files
    cache: str | None = None

    def __post_init__(self):
        sizes = dict(batch_size=1, tokens=1, grids=0, windows=1, chunks=0)
        check_minimum(self, seed=0, workers=0, read_ahead=1, **sizes)


class ExampleSet(NamedTuple):
    """The examples of one data set that a run may use.

    name: in messages. numbers: i64[n], of the records. sizes: i64[n, 4], as BucketKey. digest: of
    all their ids and texts. draws: examples drawn from it in an epoch of the whole mixture.
    """

    name: str
    numbers: np.ndarray
    sizes: np.ndarray
    digest: str
    draws: int


class Step(NamedTuple):
    """One global batch: its shape, and the (data set, record) pairs of each row."""

    key: BucketKey
    rows: list[list[tuple[int, int]]]


@dataclasses.dataclass(frozen=True, eq=False)
class DataPlan:
    """All steps of a run; the rows of a step share a shape. `len(plan)` is the number of steps.

    buckets: the shapes. bucket: i32[steps], the shape of each step. starts: i64[steps * batch_size
    + 1], where in `items` each row begins; an empty row ends where it begins. items: i32[n, 2],
    (data set, record). steps_per_epoch: a fraction, as a step may hold rows of two epochs. fill:
    share of the token places that hold tokens. fingerprint: hash of the data and the settings that
    determine the order; the number of steps is not part of it. ends: (epochs, step): the rows left
    over by so many epochs are in steps of their own from this step on, completed by empty rows.
    """

    batch_size: int
    buckets: tuple[BucketKey, ...]
    bucket: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    steps_per_epoch: float
    fill: float
    fingerprint: str
    ends: tuple[tuple[float, int], ...] = ()

    def __len__(self) -> int:
        return len(self.bucket)

    def ends_before(self, number: int) -> tuple[float, ...]:
        """Return the epochs of those `ends` whose steps with empty rows begin before a step."""
        return tuple(epochs for epochs, first in self.ends if first < number)

    def step(self, number: int) -> Step:
        """Return step `number`, 0..len - 1."""
        first = number * self.batch_size
        bounds = self.starts[first : first + self.batch_size + 1].tolist()
        rows = [list(map(tuple, self.items[a:b].tolist())) for a, b in itertools.pairwise(bounds)]
        return Step(self.buckets[self.bucket[number]], rows)

    def describe(self) -> str:
        """Describe the plan in one line."""
        shapes = [
            f"{key.tokens} tokens, {key.grids} grids of {key.windows} windows, {key.chunks} chunks"
            for key in (self.buckets[i] for i in np.unique(self.bucket))
        ]
        shape = shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes up to {shapes[-1]}"
        return (
            f"{len(self)} steps of {self.batch_size} rows ({shape}), "
            f"{self.steps_per_epoch:.1f} steps an epoch, {self.fill:.1%} of the places filled"
        )


# ---- data sets -----------------------------------------------------------------------------------


def training_set(
    name: str, entries: Sequence, data: DataConfig, tokenizer: ChatTokenizer, model: OmniConfig
) -> ExampleSet:
    """Select the entries (records.IndexEntry) that have an answer to learn and fit a row.

    The dropped ones are counted and logged. Raises UserError if none is left.
    """
    answers = [[turn for turn in e.messages if turn["role"] == "assistant"] for e in entries]
    answered = np.array([bool(turns) for turns in answers], bool)
    learned = np.array([any(map(is_learned, turns)) for turns in answers], bool)
    reasons = [f"{np.sum(~answered)} without an answer"] if not answered.all() else []
    if unlearned := np.sum(answered & ~learned):
        reasons.append(f"{unlearned} whose answers all have loss false")
    texts = text_counts([(e.messages, e.media) for e in entries], tokenizer, False)
    return _fitting(name, entries, texts, learned, reasons, data, model)


def prompt_set(
    name: str, entries: Sequence, data: DataConfig, tokenizer: ChatTokenizer, model: OmniConfig
) -> ExampleSet:
    """Select the entries whose prompt, without its answer, fits a row; else as `training_set`."""
    texts = text_counts([(e.prompt, e.media) for e in entries], tokenizer)
    return _fitting(name, entries, texts, np.ones(len(entries), bool), [], data, model)


def _fitting(
    name: str,
    entries: Sequence,
    texts: Sequence[int],
    kept: np.ndarray,
    reasons: list[str],
    data: DataConfig,
    model: OmniConfig,
) -> ExampleSet:
    """Select the `kept` entries (bool[n]) that fit a row.

    texts: tokens of their text. reasons: why the others are not kept.
    """
    if not entries:
        raise UserError(f"{name}: it is empty; extract clips into it, or name another folder")
    sizes = np.array([size_of_media(entry.media, model) for entry in entries], np.int64)
    sizes[:, 0] += texts
    for axis, field in enumerate(BucketKey._fields):
        limit = getattr(data, field)
        if limit is not None and (excess := kept & (sizes[:, axis] > limit)).any():
            largest = sizes[excess, axis].max()
            reasons.append(f"{excess.sum()} over data.{field}={limit} (up to {largest})")
            kept = kept & ~excess
    dropped = f"{len(kept) - kept.sum()} of {len(kept)} examples are dropped: {', '.join(reasons)}"
    if not kept.any():
        raise UserError(f"{name}: no example to train on; {dropped}")
    if reasons:
        logger.warning("%s: %s", name, dropped)
    content = json.dumps([(entry.id, _texts(entry.messages), entry.solution) for entry in entries])
    digest = hashlib.sha256(content.encode()).hexdigest()
    numbers = np.flatnonzero(kept)
    return ExampleSet(name, numbers, sizes[kept], digest, draws=len(numbers))


def _texts(messages: Sequence[dict]) -> list:
    """Return what is learned of messages: texts and loss flags, not paths, which may change."""
    texts = []
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else [part.get("text") for part in content]
        texts.append(text if message.get("loss", True) else {"context": text})
    return texts


def parse_mixture(text: str) -> list[tuple[str, float | None]]:
    """ "A" or "A,B" or "A=2,B=1" -> (folder, weight) pairs. Raises UserError if it is neither."""
    parts = []
    for word in filter(None, map(str.strip, text.split(","))):
        folder, _, number = word.rpartition("=")
        try:
            parts.append((folder, float(number)) if folder else (word, None))
        except ValueError:
            parts.append((word, None))  # a folder with "=" in its name
    weights = [weight for _, weight in parts]
    if not parts or (None in weights and any(weights)):
        raise UserError(f"data: {text}: give A or A,B or a weight to each, as A=2,B=1")
    if None not in weights and not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"data: {text}: weights are positive numbers")
    return parts


def weighted(sets: Sequence[ExampleSet], weights: Sequence[float | None]) -> list[ExampleSet]:
    """Set the draws of each set: an epoch, as long as all sets together, divided by weights.

    Without weights each example is drawn once; with them a small set may be drawn more than once.
    """
    if None in weights:
        return list(sets)
    per_weight = sum(len(one.numbers) for one in sets) / sum(weights)
    return [
        one._replace(draws=max(1, round(weight * per_weight)))
        for one, weight in zip(sets, weights, strict=True)
    ]


# ---- the plan ------------------------------------------------------------------------------------


def make_plan(
    sets: Sequence[ExampleSet],
    data: DataConfig,
    steps: int | None = None,
    epochs: float = 1.0,
    *,
    packing: bool = True,
    one_shape: bool = False,
    ends: Sequence[float] = (),
) -> DataPlan:
    """Plan `steps` steps or, without them, `epochs` passes over the data.

    Rows of one shape are grouped into steps in their order; rows left over by an epoch join those
    of the next one, and empty rows complete the last steps. A longer run starts with the same full
    steps. packing: several examples in a row of data.tokens; False: one, in its bucket, or, with
    one_shape, all in that of the largest one.

    ends: epochs, ascending, at which shorter plans of this run ended (`DataPlan.ends_before`): as
    in those, empty rows complete the steps there. So a run that ended and is made longer still
    takes each example as often as all its epochs say.
    """
    sampler = _EpochSampler(sets, data, packing, one_shape)
    rows: list[np.ndarray] = []
    kinds: list[int] = []
    waiting: dict[int, list[np.ndarray]] = {}
    ended: list[tuple[float, int]] = []
    empty = np.zeros(0, np.int64)
    if not steps:
        ends = [*(end for end in ends if end < epochs), epochs]
    for begin, end in itertools.pairwise([0.0, *ends, *([math.inf] if steps else [])]):
        for row in sampler.rows(begin, end):
            kind = int(sampler.kind[row[0]])
            waiting.setdefault(kind, []).append(row)
            if len(waiting[kind]) == data.batch_size:
                rows += waiting.pop(kind)
                kinds.append(kind)
                if len(kinds) == steps:
                    waiting.clear()
                    break
        if waiting:
            ended.append((float(end), len(kinds)))
        for kind, group in waiting.items():
            rows += group + [empty] * (data.batch_size - len(group))
            kinds.append(kind)
        waiting.clear()
        if steps and len(kinds) >= steps:
            del kinds[steps:], rows[steps * data.batch_size :]
            break
    drawn = np.concatenate(rows)
    places = data.batch_size * sum(sampler.buckets[kind].tokens for kind in kinds)
    return DataPlan(
        batch_size=data.batch_size,
        buckets=sampler.buckets,
        bucket=np.array(kinds, np.int32),
        starts=np.cumsum([0, *map(len, rows)]),
        items=sampler.items[drawn],
        steps_per_epoch=len(sampler.first_epoch) / data.batch_size,
        fill=float(sampler.sizes[drawn, 0].sum() / places),
        fingerprint=_fingerprint(sets, sampler.buckets, data, packing),
        ends=tuple(ended),
    )


class _EpochSampler:
    """The rows of one epoch after the other; examples are numbered through all sets.

    sizes: i64[n, 4]. items: i32[n, 2], (data set, record). buckets: the shapes of rows. kind:
    i64[n], the shape of an example's row. first_epoch: the rows of epoch 0.
    """

    def __init__(
        self, sets: Sequence[ExampleSet], data: DataConfig, packing: bool, one_shape: bool
    ):
        self.sets, self.data, self.packing = sets, data, packing
        self.sizes = np.concatenate([one.sizes for one in sets])
        owner = np.repeat(np.arange(len(sets)), [len(one.numbers) for one in sets])
        numbers = np.concatenate([one.numbers for one in sets])
        self.items = np.stack([owner, numbers], axis=1).astype(np.int32)
        rates = np.array([one.draws / len(one.numbers) for one in sets])[owner]
        self.buckets, self.kind = (
            _packed_shape(self.sizes, rates, data)
            if packing
            else _single_shapes(self.sizes, data, one_shape)
        )
        self.first_epoch = self._rows_of(0)

    def rows(self, begin: float, end: float) -> Iterator[np.ndarray]:
        """Yield the examples of each row, i64[m], from `begin` to `end` (epochs, or infinite)."""
        for epoch in itertools.count(int(begin)):
            if epoch >= end:
                return
            rows = self._rows_of(epoch) if epoch else self.first_epoch
            first, last = (
                max(1, round(min(at - epoch, 1.0) * len(rows))) if at > epoch else 0
                for at in (begin, end)
            )
            yield from rows[first:last]

    def _rows_of(self, epoch: int) -> list[np.ndarray]:
        drawn = self._draws(epoch)
        if not self.packing:
            return np.split(drawn, len(drawn))
        limit = np.array(self.buckets[0])
        rows = []
        for number, window in enumerate(np.array_split(drawn, -(-len(drawn) // WINDOW))):
            packed = pack(self.sizes[window][:, _SUMMED], limit[_SUMMED])
            if self.data.shuffle:  # `pack` orders rows by their first examples
                rng = np.random.default_rng([self.data.seed, _ROWS, epoch, number])
                packed = [packed[i] for i in rng.permutation(len(packed))]
            rows += [window[row] for row in packed]
        return rows

    def _draws(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch, i64[draws]: each set's are spread evenly over it."""
        drawn, times, first = [], [], 0
        for number, one in enumerate(self.sets):
            drawn.append(first + self._draws_of_set(epoch, number))
            times.append((np.arange(one.draws) + 0.5) / one.draws)
            first += len(one.numbers)
        return np.concatenate(drawn)[np.argsort(np.concatenate(times), kind="stable")]

    def _draws_of_set(self, epoch: int, number: int) -> np.ndarray:
        """Return the draws of a set in an epoch, i64[draws]: passes over it, each reshuffled."""
        n, draws = len(self.sets[number].numbers), self.sets[number].draws
        first = epoch * draws
        if not self.data.shuffle:
            return np.arange(first, first + draws) % n
        orders = [
            np.random.default_rng([self.data.seed, _DRAWS, number, pass_]).permutation(n)
            for pass_ in range(first // n, (first + draws - 1) // n + 1)
        ]
        return np.concatenate(orders)[first % n :][:draws]


def pack(sizes: np.ndarray, limit: np.ndarray) -> list[np.ndarray]:
    """Distribute items over few rows by best-fit decreasing, within several limits.

    sizes: i64[n, k], k sizes of each item. limit: i64[k], the largest sums of a row; every item
    fits alone. Items are placed in descending order of their largest share of a limit, each into
    the row, of those where it fits, with the least of the first size free. Returns the items of
    each row, i64[m], ascending, rows in the order of their first items.
    """
    largest_share = (sizes / np.maximum(limit, 1)).max(axis=1)
    free = np.empty_like(sizes)
    row_of = np.empty(len(sizes), np.int64)
    rows = 0
    for item in np.argsort(-largest_share, kind="stable").tolist():
        size = sizes[item]
        fitting = np.flatnonzero((free[:rows] >= size).all(axis=1))
        if len(fitting):
            row = fitting[free[fitting, 0].argmin()]
        else:
            row, rows = rows, rows + 1
            free[row] = limit
        free[row] -= size
        row_of[item] = row
    order = np.argsort(row_of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(row_of))[:-1])
    return sorted(members, key=lambda row: row[0])


Shapes = tuple[tuple[BucketKey, ...], np.ndarray]


def _packed_shape(sizes: np.ndarray, rates: np.ndarray, data: DataConfig) -> Shapes:
    """Return one shape for all rows.

    rates: f64[n], how often an epoch draws an example. A row can hold the largest example, and a
    row full of average ones. It is no larger, as the encoders compute padding, too.
    """
    average = rates @ sizes / (rates @ sizes[:, 0])  # of each size per token
    need = sizes.max(axis=0)
    of_average = np.ceil(SLACK * data.tokens * average).astype(np.int64)
    need[_SUMMED] = np.maximum(need, of_average)[_SUMMED]
    return (_next_sizes(need, data)._replace(tokens=data.tokens),), np.zeros(len(sizes), np.int64)


def _single_shapes(sizes: np.ndarray, data: DataConfig, one_shape: bool) -> Shapes:
    """Return a shape for each bucket size of tokens; buckets of all four sizes would be many."""
    lengths = [length for length in Buckets().tokens if length < data.tokens] + [data.tokens]
    bucket = np.searchsorted(lengths, sizes[:, 0])
    if one_shape:
        bucket = np.full_like(bucket, bucket.max())
    used, kind = np.unique(bucket, return_inverse=True)
    shapes = [
        _next_sizes(sizes[bucket == number].max(axis=0), data)._replace(tokens=lengths[number])
        for number in used
    ]
    return tuple(shapes), kind


def _next_sizes(need: np.ndarray, data: DataConfig) -> BucketKey:
    """Return the sizes of the settings, or else the next bucket sizes above the need."""
    sizes = {}
    for field, size in zip(BucketKey._fields, need.tolist(), strict=True):
        above = [larger for larger in getattr(Buckets(), field) if larger >= size]
        given = getattr(data, field)
        sizes[field] = (above or [size])[0] if given is None else given
    return BucketKey(**sizes)


def _fingerprint(
    sets: Sequence[ExampleSet], buckets: Sequence[BucketKey], data: DataConfig, packing: bool
) -> str:
    out = hashlib.sha256()
    out.update(repr((data.batch_size, packing, data.shuffle, data.seed, buckets)).encode())
    for one in sets:
        out.update(f"{one.digest} {one.draws}".encode())
        out.update(one.numbers.tobytes() + one.sizes.tobytes())
    return out.hexdigest()[:16]
