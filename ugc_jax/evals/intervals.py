"""The confidence interval of a mean over clips."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 5000
_BATCH = 2**19  # resampled values in memory at a time


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the mean of f[n], by a percentile bootstrap with a fixed seed.

    Equal input gives equal bounds. None for fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
