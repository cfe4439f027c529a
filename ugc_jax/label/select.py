"""Which labelled clips to train on: no near-duplicates, and few that stand for all others.

embeddings of n rows, quotas -> `select` -> Selection

1. A row is dropped if an earlier one is nearly the same clip.
2. Rows are chosen one at a time, each with the largest gain of the coverage, which is the mean over
   all kept rows of the similarity to the nearest chosen one (facility location; the greedy choice
   reaches at least 1 - 1/e of the best coverage, Nemhauser, Wolsey and Fisher 1978).
3. Quotas limit the choice: first rows that fill a minimum, never one beyond a maximum.

The similarity of two rows is the cosine between them, as seen from the mean of all rows; 0 where it
is negative.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ugc_jax.data.annotation import NO_VOICE, STAGES, TONES, VOICE_SOURCES, fields_of
from ugc_jax.errors import UserError

IDENTICAL = 1e-3  # distance, as a share of the length, up to which two rows are of one clip
_BLOCK = 1024  # rows whose similarities to all others are in memory at a time
_TRIED = 64  # candidates whose gains are computed at a time
_QUOTA = re.compile(r"(?P<field>\w+)=(?P<value>.+):(?P<low>[\d.]*%?)(?P<dash>-?)(?P<high>[\d.]*%?)")
# Fields of texts and lists, of which a quota knows only whether there is something.
_FILLED = ("text", "objects", "sounds", "background_change")
# Field -> the values that it can have in a quota.
OPTIONS = {
    "voice_source": (*VOICE_SOURCES, NO_VOICE),
    "tone": TONES,
    **dict.fromkeys(("music", *_FILLED), ("yes", "no")),
}
FIELDS = tuple(OPTIONS)


class Quota(NamedTuple):
    """How many chosen rows have a value of a field. low, high: numbers of rows; high None: any."""

    field: str
    value: str
    low: int
    high: int | None

    @property
    def name(self) -> str:
        """Field and value, as "tone=Negative"."""
        return f"{self.field}={self.value}"


class Chosen(NamedTuple):
    """A chosen row. gain: of the coverage, when it was chosen. fills: minimums it was taken for."""

    row: int
    gain: float
    fills: tuple[str, ...]


class Near(NamedTuple):
    """The nearest row, and the similarity to it."""

    row: int
    similarity: float


class Selection(NamedTuple):
    """chosen: in order; the first k are what a count of k without quotas chooses.

    nearest: chosen row -> the nearest one that was chosen before it (none of the first), and any
    other kept row -> the nearest chosen one. duplicates: dropped row -> the kept row that it
    repeats. coverage: mean similarity of the kept rows to the nearest chosen one. counts: quota ->
    chosen rows. short: what could not be had, a line each.
    """

    chosen: tuple[Chosen, ...]
    nearest: Mapping[int, Near]
    duplicates: Mapping[int, Near]
    coverage: float
    counts: Mapping[str, int]
    short: tuple[str, ...]


def read_quotas(texts: Sequence[str], count: int) -> tuple[Quota, ...]:
    """Return quotas as "tone=Negative:20%-", "music=yes:100-300", "text=no:-50", "tone=Neutral:40".

    A number is of rows, or with % a share of `count`; LOW- is at least, -HIGH at most, one number
    both. Of a share that is no whole number of rows, LOW is rounded up, HIGH down, and one number
    to the nearest. Raises UserError for another form, an unknown field or value, and minimums that
    exceed `count`.
    """
    quotas: list[Quota] = []
    for text in texts:
        match = _QUOTA.fullmatch(text.strip())
        if match is None or not (match["low"] or match["high"]):
            raise UserError(
                f"quota {text!r}: is not of the form FIELD=VALUE:LOW-HIGH, such as "
                "tone=Negative:20%-; leave out LOW or HIGH where there is none"
            )
        if match["field"] not in FIELDS:
            raise UserError(
                f"quota {text!r}: {match['field']} is no field of a label; use {', '.join(FIELDS)}"
            )
        options = OPTIONS[match["field"]]
        if match["value"].casefold() not in (one.casefold() for one in options):
            raise UserError(
                f"quota {text!r}: {match['field']} is never {match['value']}; use one of "
                f"{', '.join(options)}"
            )
        whole = math.ceil if match["dash"] else round
        low = _rows(match["low"], count, text, whole) if match["low"] else 0
        high = _rows(match["high"], count, text, math.floor) if match["high"] else None
        quota = Quota(match["field"], match["value"], low, high if match["dash"] else low)
        if quota.high is not None and quota.high < quota.low:
            raise UserError(f"quota {text!r}: at least {low} and at most {high}; correct one")
        if quota.name.casefold() in (other.name.casefold() for other in quotas):
            raise UserError(f"quota {text!r}: {quota.name} has a quota already; keep one")
        quotas.append(quota)
    for field in dict.fromkeys(quota.field for quota in quotas):
        least = sum(quota.low for quota in quotas if quota.field == field)
        if least > count:
            raise UserError(
                f"quota: the minimums of {field} are {least} rows together, and count is {count}; "
                "lower them"
            )
    return tuple(quotas)


def _rows(text: str, count: int, quota: str, whole: Callable[[Fraction], int]) -> int:
    try:
        number = Fraction(text.rstrip("%"))
    except ValueError:
        raise UserError(f"quota {quota!r}: {text!r} is not a number; write 100 or 20%") from None
    if text.endswith("%"):
        return whole(number * count / 100)
    if number.denominator != 1:
        raise UserError(f"quota {quota!r}: {text} is not a number of rows; write 100 or 20%")
    return int(number)


def attributes(label: Mapping) -> dict[str, str]:
    """Return {field: value} of a row's label, as quotas name them; absent fields are left out.

    true and false are yes and no; of texts and lists, whether there is something. Raises
    ValueError, which names the field, for a label of another form.
    """
    found = {}
    for stage in STAGES:
        said = {} if label.get(stage) is None else label[stage]
        if not isinstance(said, Mapping):
            raise ValueError(f"{stage} is {said!r:.40}, not the answers of a pass")
        for name in fields_of(stage):
            if name not in said or name not in FIELDS:
                continue
            value = said[name]
            if name in _FILLED:
                kinds, filled = (str, list), bool(value)
            else:
                kinds, filled = (bool,) if name == "music" else (str,), value
            if not isinstance(value, kinds):
                raise ValueError(f"{stage}.{name} is {value!r:.40}")
            found[name] = filled if isinstance(filled, str) else ("yes" if filled else "no")
    return found


def select(
    embeddings: Mapping[str, np.ndarray],
    values: Sequence[Mapping[str, str]],
    count: int,
    quotas: Sequence[Quota] = (),
    duplicate: float = 0.95,
) -> Selection:
    """Choose `count` of n rows.

    embeddings: modality -> f32[n, D], each as important as the others; a row of zeros has none.
    values: `attributes` of each row. duplicate: similarity from which a row repeats an earlier one.
    Equal arguments give an equal selection: of equal gains, the earlier row.
    """
    x_ND = centred(embeddings)
    duplicates = find_duplicates(x_ND, embeddings, duplicate)
    kept = [row for row in range(len(x_ND)) if row not in duplicates]
    greedy = _Greedy(x_ND[kept], [values[row] for row in kept], quotas)
    picked = greedy.choose(count)
    chosen = tuple(Chosen(kept[one.row], one.gain, one.fills) for one in picked)
    nearest = {kept[i]: Near(kept[j], s) for i, (j, s) in greedy.nearest().items()}
    short = greedy.short(count, len(duplicates))
    counts = {quota.name: number for quota, number in zip(quotas, greedy.have, strict=True)}
    return Selection(chosen, nearest, duplicates, greedy.coverage, counts, short)


def centred(embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return f32[n, D]: the modalities side by side, of length 1 in all, as seen from their means.

    Rows of an encoder have much in common whatever the clip, so that without this all cosines are
    near 1.
    """
    parts = []
    for rows in embeddings.values():
        rows = np.asarray(rows, np.float64)
        has_any = np.linalg.norm(rows, axis=1) > 0
        part = np.zeros_like(rows)
        if has_any.any():
            part[has_any] = rows[has_any] - rows[has_any].mean(axis=0)
        parts.append(_unit(part))
    return _unit(np.concatenate(parts, axis=1)).astype(np.float32)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x_ND, axis=1, keepdims=True)
    largest = length.max(initial=0.0)
    # What is left of equal rows without their mean is rounding, which has no direction.
    return np.where(length > 1e-9 * largest, x_ND / np.where(length > 0, length, 1), 0.0)


def find_duplicates(
    x_ND: np.ndarray, embeddings: Mapping[str, np.ndarray], threshold: float
) -> dict[int, Near]:
    """Return dropped row -> the earlier kept row that it repeats most.

    x_ND: of `centred`. embeddings: rows that are identical but for rounding are duplicates, too.
    """
    raw_ND = np.concatenate([np.asarray(rows, np.float64) for rows in embeddings.values()], axis=1)
    squares_N = (raw_ND**2).sum(axis=1)
    dropped: dict[int, Near] = {}
    kept = np.zeros(len(x_ND), bool)
    for start in range(0, len(x_ND), _BLOCK):
        stop = min(start + _BLOCK, len(x_ND))
        block = slice(start, stop)
        similar_BN = x_ND[block] @ x_ND[:stop].T
        apart_BN = squares_N[block, None] + squares_N[:stop] - 2 * raw_ND[block] @ raw_ND[:stop].T
        similar_BN[apart_BN <= IDENTICAL**2 * squares_N[block, None]] = 1.0
        for row in range(start, stop):
            similar = np.where(kept[:row], similar_BN[row - start, :row], -1.0)
            nearest = int(similar.argmax()) if row else 0
            if row and similar[nearest] >= threshold:
                dropped[row] = Near(nearest, float(similar[nearest]))
            else:
                kept[row] = True
    return dropped


class _Greedy:
    """The greedy choice from kept rows x [N, D]."""

    def __init__(self, x_ND: np.ndarray, values: Sequence[Mapping[str, str]], quotas):
        self._x, self._quotas = x_ND, quotas
        self._has = np.array(  # bool[Q, N]
            [
                [
                    value.get(quota.field, "").casefold() == quota.value.casefold()
                    for value in values
                ]
                for quota in quotas
            ],
            bool,
        ).reshape(len(quotas), len(x_ND))
        self.have = [0] * len(quotas)
        self._best = np.zeros(len(x_ND), np.float32)  # similarity to the nearest chosen row
        self._near = np.full(len(x_ND), -1)  # and that row
        self._before: dict[int, tuple[int, float]] = {}
        self._free = np.ones(len(x_ND), bool)
        self._bound = np.concatenate(
            [
                np.maximum(x_ND @ x_ND[start : start + _BLOCK].T, 0).sum(axis=0, dtype=np.float64)
                for start in range(0, len(x_ND), _BLOCK)
            ]
            or [np.zeros(0)]
        )

    @property
    def coverage(self) -> float:
        """Mean similarity to the nearest chosen row."""
        return float(self._best.mean(dtype=np.float64)) if len(self._best) else 0.0

    def choose(self, count: int) -> list[Chosen]:
        """Choose up to `count` rows; rows here are numbers of the kept ones."""
        chosen = []
        while len(chosen) < count:
            allowed, unmet = self._allowed(count - len(chosen))
            if not allowed.any():
                break
            row, gain = self._largest(allowed)
            fills = tuple(self._quotas[q].name for q in unmet if self._has[q, row])
            self._take(row)
            chosen.append(Chosen(row, gain / len(self._x), fills))
        return chosen

    def _allowed(self, left: int) -> tuple[np.ndarray, list[int]]:
        """The rows that quotas allow, bool[N], and the quotas whose minimum is not met."""
        allowed, unmet = self._free.copy(), []
        for q, quota in enumerate(self._quotas):
            if quota.high is not None and self.have[q] >= quota.high:
                allowed &= ~self._has[q]
            if self.have[q] < quota.low:
                unmet.append(q)
        filling = self._has[unmet].sum(axis=0) * allowed
        missing = sum(self._quotas[q].low - self.have[q] for q in unmet)
        if not filling.any():
            return allowed, []  # what is missing is not there: `short` says so
        # Where places get scarce, rows that fill several minimums at once.
        least = filling.max() if missing > left else 1
        return filling >= least, unmet

    def _largest(self, allowed: np.ndarray) -> tuple[int, float]:
        """The allowed row with the largest gain.

        Gains only fall as rows are chosen, so that those of earlier choices bound them, and most
        need not be computed again.
        """
        bounds = np.where(allowed, self._bound, -np.inf)
        fresh = np.zeros(len(bounds), bool)
        while True:
            row = int(bounds.argmax())
            if fresh[row]:
                return row, float(bounds[row])
            tried = np.argsort(-bounds, kind="stable")[:_TRIED]
            tried = tried[np.isfinite(bounds[tried]) & ~fresh[tried]]
            similar = self._x @ self._x[tried].T
            gains = np.maximum(similar - self._best[:, None], 0).sum(axis=0, dtype=np.float64)
            # Rounded: of gains that differ by rounding only, the earlier row's counts.
            self._bound[tried] = bounds[tried] = gains.round(6)
            fresh[tried] = True

    def _take(self, row: int):
        if self._near[row] >= 0:
            self._before[row] = int(self._near[row]), float(self._best[row])
        similar = np.maximum(self._x @ self._x[row], 0)
        nearer = similar > self._best
        nearer |= self._near < 0
        self._best = np.where(nearer, similar, self._best)
        self._near[nearer] = row
        self._free[row] = False
        for q in range(len(self._quotas)):
            self.have[q] += int(self._has[q, row])

    def nearest(self) -> dict[int, tuple[int, float]]:
        """Row -> its nearest chosen row; of a chosen one, that was chosen before it."""
        others = {
            row: (int(self._near[row]), float(self._best[row]))
            for row in np.flatnonzero(self._free & (self._near >= 0)).tolist()
        }
        return dict(sorted((others | self._before).items()))

    def short(self, count: int, duplicates: int) -> tuple[str, ...]:
        """What could not be had, a line each."""
        lines, chosen = [], int((~self._free).sum())
        if chosen < count:
            limit = "the quotas allow no other" if self._free.any() else "there are no others"
            dropped = f" (without {duplicates} duplicates)" if duplicates else ""
            lines.append(f"{chosen} rows are chosen instead of {count}: {limit}{dropped}")
        for quota, have, has in zip(self._quotas, self.have, self._has, strict=True):
            if have < quota.low:
                there = int(has.sum())
                why = f"{there} clips have it"
                if there >= quota.low:
                    why += ", but other quotas leave no place for them"
                lines.append(f"quota {quota.name}: {have} rows instead of {quota.low}; {why}")
        return tuple(lines)
