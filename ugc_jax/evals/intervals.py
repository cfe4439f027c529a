"""Means over clips, weighted where clips count differently, and their confidence intervals."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 5000
_BATCH = 2**19  # resampled values in memory at a time


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float | None:
    """The mean of f[n], weighted by f[n] above 0 if these are given; None for no values."""
    if not len(values):
        return None
    if weights is None:
        return math.fsum(values) / len(values)
    products = (value * weight for value, weight in zip(values, weights, strict=True))
    return math.fsum(products) / math.fsum(weights)


def interval(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of f[n], by a percentile bootstrap with a fixed seed.

    weights: as of `mean`. groups: values of one group, such as the questions about one clip, are
    drawn together, as they are not independent; None: each value alone. Equal input gives equal
    bounds. None for fewer than two values or groups.
    """
    values = np.asarray(values, np.float64)
    is_plain = weights is None and (groups is None or len(set(groups)) == len(values))
    sums, counts = values, np.ones_like(values)
    if not is_plain:
        counts = counts if weights is None else np.asarray(weights, np.float64)
        sums, counts = _grouped(values * counts, groups), _grouped(counts, groups)
    if len(sums) < 2:
        return None
    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    def ratio(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    found = bootstrap(
        (values,) if is_plain else (sums, counts),
        np.mean if is_plain else ratio,
        paired=not is_plain,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(sums)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _grouped(values: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """The sum of the values of each group, f[groups]."""
    if groups is None:
        return values
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(numbers, weights=values)
