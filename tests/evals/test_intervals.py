"""ugc_jax.evals.intervals: the same bounds at any time, right ones, and fast."""

import json
import math
import time

import numpy as np
import pytest

from ugc_jax.evals.intervals import interval, mean


def test_of_normal_values_it_is_that_of_the_textbook():
    values = np.random.default_rng(1).normal(50, 10, 2000)
    low, high = interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_it_holds_the_mean_of_the_population_as_often_as_it_says():
    draws = np.random.default_rng(2).uniform(size=(100, 60)) < 0.3  # an accuracy
    held = [low <= 0.3 <= high for low, high in map(interval, draws)]
    assert 88 <= sum(held) <= 100


def test_equal_values_give_equal_bounds():
    values = np.random.default_rng(3).normal(size=50)
    assert interval(values) == interval(list(values))
    assert all(type(bound) is float for bound in interval(values))


@pytest.mark.parametrize("values", [[], [58.6]])
def test_too_few(values):
    assert interval(values) is None


def test_all_the_same():
    assert interval([58.6] * 7) == (58.6, 58.6)
    assert interval([0.1 + 0.2, 0.3]) == pytest.approx((0.3, 0.3))


def test_two_values():
    assert interval([0, 100]) == (0, 100)


def test_weights():
    """As if each value stood there as often as its weight says, though drawn as one."""
    assert mean([10, 40], [2, 1]) == 20
    assert mean([10, 40]) == 25
    assert mean([]) is None
    rng = np.random.default_rng(5)
    values, weights = rng.normal(50, 10, 400), rng.integers(1, 9, 400)
    low, high = interval(values, weights)
    # of a ratio: the variance of weight * (value - mean), over the mean weight
    middle = mean(values, weights)
    error = np.std(weights * (values - middle)) / weights.mean() / math.sqrt(400)
    assert low == pytest.approx(middle - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(middle + 1.96 * error, abs=0.1 * error)
    assert interval(values, np.full(400, 3)) == pytest.approx(interval(values), abs=0.1)


def test_values_of_one_group_are_drawn_together():
    values = np.repeat(np.random.default_rng(6).normal(50, 10, 100), 4)
    groups = [f"v{n // 4}" for n in range(400)]
    (low, high), (near, far) = interval(values, groups=groups), interval(values)
    assert high - low == pytest.approx(2 * (far - near), rel=0.1)
    assert interval(values[::4], groups=groups[::4]) == interval(values[::4])
    assert interval([1.0, 2.0], groups=["a", "a"]) is None  # one group


def test_the_benchmark_is_fast():
    values = np.random.default_rng(4).normal(size=999)
    interval(values)  # imports
    begun = time.perf_counter()
    interval(values)
    assert time.perf_counter() - begun < 1  # 0.03 s


def test_the_papers_gain_from_rl(shared_data):
    """+1.05 of the average from 1k SFT to 1k SFT + 1k RL."""
    folder = shared_data / "ugc_videocap/results/caption_score"

    def averages(name):
        rows = json.loads((folder / name).read_text())["evaluations"]
        return {clip: row["average_score"] / 5 * 100 for clip, row in rows.items()}

    before, after = averages("1k_sft_4o.json"), averages("UGC_Videocaptioner_4o.json")
    gains = [after[clip] - before[clip] for clip in before]
    assert np.mean(gains) == pytest.approx(1.048, abs=5e-4)
    low, high = interval(gains)
    assert low == pytest.approx(0.23, abs=0.05)
    assert high == pytest.approx(1.90, abs=0.05)
